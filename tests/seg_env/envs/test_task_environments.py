"""Environments that ask any task, or several."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from sized_images import SizedImages

import seg_env  # noqa: F401  (registers the environments)
from seg_env.envs.core import ReferringCore
from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.grammar.answers import decode_answer
from seg_env.tasks import TASKS, answer, form_of, query_of

SCENES = "SimpleSeg-Scenes-v0"
SMALL = {"split": "val", "size": 48}
MIXTURE = "text->mask=0.4 point->bbox=0.3 mask->point=0.3"


def place_in(prompt):
    return prompt[prompt.index("[") : prompt.rindex("]") + 1]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_asked_and_its_perfect_answer_earns_most(task):
    env = gym.make(SCENES, task=task, rewards="mask_iou=1 format=1", **SMALL)
    observation, info = env.reset(seed=1)
    assert info["task"] == task
    assert observation in env.observation_space
    assert env.action_space.sample() in env.action_space
    sample = env.unwrapped.dataset[info["index"]]
    assert ("[" in observation["prompt"]) == (query_of(task) != "text")
    _, reward, terminated, _, info = env.step(answer(sample, task, epsilon=0.0))
    assert terminated
    assert (info["valid"], info["task"]) == (True, task)
    assert reward > 1.95
    filled = {"mask": (0.98, 1), "bbox": (0.2, 1), "point": (0, 0)}[form_of(task)]
    assert filled[0] <= info["iou"] <= filled[1]


@pytest.mark.parametrize("task", [*TASKS, MIXTURE])
def test_one_environment_and_many_ask_and_score_alike(task):
    arguments = {"task": task, "negatives": 0.2, **SMALL}
    ours = ReferringSegmentationVectorEnv(num_envs=3, **arguments)
    theirs = SyncVectorEnv(
        [lambda: ReferringSegmentationEnv(**arguments)] * 3, autoreset_mode="SameStep"
    )
    found = [envs.reset(seed=7) for envs in (ours, theirs)]
    for step in range(4):
        (one, one_info), (other, other_info) = ((each[0], each[-1]) for each in found)
        assert one["prompt"] == other["prompt"]
        assert one_info["task"].tolist() == other_info["task"].tolist()
        np.testing.assert_array_equal(one["image"], other["image"])
        if step:
            np.testing.assert_array_equal(found[0][1], found[1][1])
        texts = ["[0.5,0.5]", "[0.2,0.2,0.7,0.7]", "[[[0.2,0.2],[0.7,0.2],[0.7,0.7]]]"]
        found = [envs.step(texts) for envs in (ours, theirs)]


def test_the_default_task_draws_what_it_drew_before():
    core = ReferringCore("scenes", split="val", size=48)
    rng = np.random.default_rng(3)
    assert core.draw_seed(rng) == 0
    assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state
    env = gym.make(SCENES, **SMALL)
    assert env.reset(seed=5)[1]["index"] == int(
        gym.utils.seeding.np_random(5)[0].integers(len(env.unwrapped.dataset))
    )


def test_a_mixture_asks_by_weight_and_follows_the_seed():
    env = gym.make(SCENES, task=MIXTURE, **SMALL)

    def asked(seed):
        prompts = [env.reset(seed=seed)[0]["prompt"]]
        return prompts + [env.reset()[0]["prompt"] for _ in range(30)]

    assert asked(0) == asked(0) != asked(1)
    tasks = [env.reset()[1]["task"] for _ in range(150)]
    assert tasks.count("text->mask") / 150 == pytest.approx(0.4, abs=0.13)
    assert set(tasks) == {"text->mask", "point->bbox", "mask->point"}


def test_a_chosen_sample_is_asked_the_same_question_again_until_the_seed_changes():
    env = gym.make(SCENES, task="point->mask", **SMALL)

    def asked(**options):
        return env.reset(options={"index": 4, **options})[0]["prompt"]

    assert asked() == asked() == asked(query_seed=0)
    assert len({asked(query_seed=seed) for seed in range(6)}) > 2
    env.reset(seed=9)
    assert asked() == asked(query_seed=0)
    assert "bounding box" in asked(task="text->bbox")


def test_equal_indices_are_one_question_and_tasks_can_be_fixed():
    envs = gym.make_vec(SCENES, num_envs=6, task=MIXTURE, autoreset_mode="Disabled", **SMALL)
    indices = [3, 3, 8, 8, 9, 9]
    observations, infos = envs.reset(options={"indices": indices, "query_seed": 2})
    for row in (0, 2, 4):
        assert observations["prompt"][row] == observations["prompt"][row + 1]
    single = gym.make(SCENES, task=MIXTURE, **SMALL)
    alone = single.reset(options={"index": 8, "query_seed": 2})
    assert alone[0]["prompt"] == observations["prompt"][2]
    assert alone[1]["task"] == infos["task"][2]
    tasks = ["bbox->mask", None, "mask->bbox", "text->mask", None, None]
    _, fixed = envs.reset(options={"indices": indices, "query_seed": 2, "tasks": tasks})
    assert [fixed["task"][row] for row in (0, 2, 3)] == ["bbox->mask", "mask->bbox", "text->mask"]
    assert fixed["task"][4] == infos["task"][4]
    _, same = envs.reset(options={"indices": indices, "tasks": "text->point"})
    assert set(same["task"]) == {"text->point"}


@pytest.mark.parametrize("frame", ["unit", "permille"])
def test_a_place_means_in_a_letterboxed_image_what_the_answer_would(frame):
    core = ReferringCore(
        SizedImages(), task="point->mask", image_size=64, frame=frame, queries={"decimals": 5}
    )
    for index in range(4):
        for task in ("point->mask", "bbox->mask", "mask->bbox"):
            question = core.ask(index, task=task)
            read = decode_answer(place_in(question.prompt), query_of(task), question.frame)
            assert read.valid
            if task == "point->mask":
                assert question.sample.target.contains(read.point)
            else:
                scores = core.judge([read], [question])
                assert scores.iou[0] > 0.7


def test_an_absent_object_is_asked_about_by_text():
    env = gym.make(SCENES, task="point->bbox", negatives=1.0, rewards="no_target=1", **SMALL)
    _, info = env.reset(seed=0)
    assert info["task"] == "text->bbox"
    assert env.step("[]")[1] == 1
    env.reset(seed=0)
    assert env.step("[0.1,0.1,0.5,0.5]")[1] == 0


def test_gymnasium_finds_no_fault():
    check_env(gym.make(SCENES, task=MIXTURE, **SMALL).unwrapped, skip_render_check=True)


def test_a_point_is_drawn():
    env = gym.make(SCENES, task="text->point", render_mode="rgb_array", **SMALL)
    drawn = []
    for text in ("[0.2,0.2]", "[]"):
        env.reset(options={"index": 0})
        env.step(text)
        drawn.append(env.render())
    side = drawn[0].shape[1]
    assert (drawn[0][:side] != drawn[1][:side]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "text->bbox", "step_mode": "vertex"}, "vertex.* is about outlines; .*text->bbox"),
        ({"task": "point->mask", "queries": {"jitter": 2}}, "jitter=2"),
        ({"negatives": -1}, "negatives=-1"),
        ({"negatives": "x"}, "negatives='x' is no share"),
        ({"task": None}, "task=None is unknown; use one of"),
        ({"queries": 3}, "queries=3; use a dictionary"),
        ({"queries": {"decimals": 2.5}}, "decimals=2.5; use a whole number"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReferringSegmentationEnv(**arguments)


def test_outlines_drawn_step_by_step_may_be_asked_for_by_a_place():
    env = gym.make(SCENES, task="point->mask", step_mode="vertex", **SMALL)
    assert env.reset(seed=0)[1]["task"] == "point->mask"
    with pytest.raises(ValueError, match=r"about outlines; task='text->bbox'"):
        env.reset(options={"task": "text->bbox"})
    with pytest.raises(ValueError, match="is about outlines"):
        gym.make("SimpleSegRefine-Scenes-v0", task="text->point")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["text->mask"]}, "one for each of the 2"),
        ({"tasks": ["text->mask", "text->outline"]}, "task='text->outline' is unknown"),
        ({"query_seed": -1}, "use a whole number from 0"),
        ({"query_seed": "two"}, "use a whole number from 0"),
    ],
)
def test_wrong_options_are_explained(options, message):
    envs = ReferringSegmentationVectorEnv(num_envs=2, **SMALL)
    with pytest.raises(ValueError, match=message):
        envs.reset(options=options)


def test_only_outlines_have_vertices_to_credit():
    envs = ReferringSegmentationVectorEnv(
        num_envs=1, task="text->point", autoreset_mode="Disabled", **SMALL
    )
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"only outlines have vertices.*text->point"):
        envs.vertex_credit(["[0.5,0.5]"])
