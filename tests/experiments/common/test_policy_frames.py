"""A policy is asked, trained, measured and shown in the frame that it writes."""

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from scripted_policy import SIZES, WRITERS, scripted_policy, write_tree

from agents.gspo import GSPO, GSPOConfig
from agents.policy.loading import recorded_frame
from experiments.demo.questions import Demo
from experiments.evaluate import Args as EvaluateArgs
from experiments.evaluate import TaskEvaluation
from experiments.evaluation.loop import evaluate
from rewards import RewardSum
from seg_env.data.scenes import Scenes
from seg_env.envs.core import ReferringCore
from seg_env.errors import WrongOptionError
from seg_env.frames import FAMILIES, AnswerFrame, ResizeSettings, find_answer_frame, pixel_frame
from seg_env.grammar.answers import read_answer
from seg_env.tasks import TEXT_TASKS, answer, form_of
from seg_env.types import Sample, Target

COUNT = len(SIZES)
ENV = "SimpleSeg-RefCOCO-v0"
SQUARE_SCENE = 155
"""A scene whose object has few corners."""
frames = pytest.mark.parametrize("frame", WRITERS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(params=WRITERS)
def policy(request):
    return scripted_policy(request.param)


def environment(policy, tree, **more):
    return {"data_root": str(tree), "split": "val", "frame": policy.answer_frame, **more}


def test_there_is_a_writer_for_every_frame():
    assert {name for name in WRITERS if ":" not in name} == set(FAMILIES)


def test_perfect_answers_earn_everything_in_the_environment(policy, tree):
    env = gym.make(ENV, **environment(policy, tree))
    for index in range(COUNT):
        observation, _ = env.reset(options={"index": index})
        policy.prepare([observation["image"]], [observation["prompt"]])
        *_, info = env.step(policy.texts_written[0])
        assert (info["iou"], info["valid"]) == (1.0, True), policy.texts_written


def test_perfect_answers_earn_everything_in_a_rollout(policy, tree):
    config = GSPOConfig(prompts_per_update=COUNT, group_size=2, max_new_tokens=200, muon=False)
    arguments = environment(policy, tree, split="train")
    envs = gym.make_vec(
        ENV, num_envs=2 * COUNT, autoreset_mode="Disabled", rewards="mask_iou=1", **arguments
    )
    rollout, metrics = GSPO(policy, envs, config).collect()
    assert metrics["rollout/iou"] == 1.0
    assert metrics["rollout/truncated"] == 0.0
    assert rollout.rewards.tolist() == [1.0] * 2 * COUNT


def test_perfect_answers_earn_everything_when_measured(policy, tree, tmp_path):
    args = EvaluateArgs(
        env=ENV,
        data_root=str(tree),
        split="val",
        output_dir=tmp_path / "out",
        max_new_tokens=200,
        batch_size=3,
    )
    scores = TaskEvaluation(args, Console(), policy).run()
    assert scores["giou"] == scores["ciou"] == scores["well_formed"] == 1.0
    assert scores["frame"].startswith(f"{policy.answer_frame.family} (")
    core = ReferringCore("refcoco", **environment(policy, tree))
    found = evaluate(policy, core, np.arange(COUNT), max_new_tokens=200)
    assert found.iou.tolist() == [[1.0]] * COUNT


def test_perfect_answers_are_drawn_in_their_place(policy, tree):
    core = ReferringCore("refcoco", **environment(policy, tree))
    for index in range(COUNT):
        question = core.ask(index)
        policy.prepare([question.image], [question.prompt])
        size = question.image.shape[:2]
        found = read_answer(policy.texts_written[0], size, policy.answer_frame)
        assert found.valid
        scores = core.judge([found], [question])
        assert scores.iou.tolist() == [1.0]


@frames
def test_the_demo_judges_perfect_answers_by_the_frame(frame):
    scene = Scenes("val")[SQUARE_SCENE]
    corners = [tuple(corner) for corner in (scene.target.rings[0] * 128).tolist()]
    policy = scripted_policy(frame, {scene.expression: corners})
    demo = Demo(
        {"scripted": policy},
        RewardSum.from_spec("mask_iou=1"),
        Scenes("val"),
        constraints={"scripted": policy.constraint},  # it is what writes the answers
    )
    shown = demo.show("easy", SQUARE_SCENE)
    asked = demo.ask_by_text(shown, "scripted", "text->mask", scene.expression)
    *_, texts = demo.answers(asked, temperature=0, count=1, constrained=True)
    (found,) = demo.read(asked, texts)
    assert found.issues == []
    coarse = frame in ("qwen2.5-vl", "pixel:64x32")  # fewer pixels than the scene has
    assert found.scored.iou > 0.85 if coarse else found.scored.iou == 1.0


@pytest.mark.parametrize("size", [64, [80, 100]])
def test_images_may_be_letterboxed(policy, tree, size):
    env = gym.make(ENV, **environment(policy, tree, image_size=size))
    core = env.unwrapped._core
    question = core.ask(0)
    seen = core.answer_frame.for_view(question.sample.target.size)
    inner = question.frame.from_unit(question.sample.target.rings[0])
    assert (inner <= np.add(seen.limits, 1e-9)).all()
    if policy.answer_frame.family == "pixels":
        side = [size, size] if isinstance(size, int) else size
        assert seen == pixel_frame(height=side[0], width=side[1])


@frames
@pytest.mark.parametrize("task", TEXT_TASKS)
@pytest.mark.parametrize("present", [True, False])
def test_true_answers_of_every_form_earn_everything(frame, task, present):
    mask = np.zeros((160, 192), dtype=bool)
    mask[40:120, 48:144] = present
    image = np.zeros((160, 192, 3), dtype=np.uint8)
    sample = Sample("one", "the square", Target.from_mask(mask), lambda: image)
    written = find_answer_frame(frame)
    text = answer(sample, task, frame=written)
    read = read_answer(text, sample.target.size, written, form_of(task))
    assert read.valid, read.issues
    scores = RewardSum.from_spec("mask_iou=1 format=1").score([read], [sample.target])
    coarse = frame in ("florence", "paligemma", "pixel:64x32", "qwen2.5-vl")
    assert scores.terms["mask_iou"][0] > 0.95 if coarse else scores.terms["mask_iou"][0] == 1.0
    assert scores.terms["format"][0] == 1.0


def test_questions_give_no_places_in_location_tokens(tree):
    for task in ("point->mask", "text->mask=0.5 bbox->mask=0.5"):
        with pytest.raises(WrongOptionError, match="location tokens"):
            gym.make(ENV, data_root=str(tree), frame="florence", task=task)


def test_names_and_objects_make_the_same_frame():
    for name in (*FAMILIES, "qwen3_vl", "pixel:64x32"):
        assert AnswerFrame.from_spec(name) == find_answer_frame(name)
    given = pixel_frame(100, 50)
    assert AnswerFrame.from_spec(given).for_image((10, 20)) is given
    resize = ResizeSettings(factor=8, max_pixels=80 * 96)
    frame = find_answer_frame("qwen2_5_vl", resize=resize)
    assert frame.for_image((160, 192)) == pixel_frame(width=96, height=80)


def test_vertices_are_no_location_tokens(tree):
    for arguments in ({"step_mode": "vertex"},):
        with pytest.raises(ValueError, match="writes location tokens"):
            gym.make(ENV, data_root=str(tree), frame="florence", **arguments)
    with pytest.raises(ValueError, match="writes location tokens"):
        gym.make("SimpleSegRefine-RefCOCO-v0", data_root=str(tree), frame="paligemma")


def test_a_frame_that_depends_on_the_image_holds_when_answers_are_improved(tree):
    policy = scripted_policy("qwen2.5-vl")
    env = gym.make("SimpleSegRefine-RefCOCO-v0", turns=2, **environment(policy, tree))
    observation, _ = env.reset(options={"index": 0})
    policy.prepare([observation["image"]], [observation["prompt"]])
    observation, reward, *_ = env.step(policy.texts_written[0])
    assert policy.texts_written[0] in observation["prompt"]
    terms = env.unwrapped._core.rewards.terms.values()
    assert reward == pytest.approx(sum(term.weight for term in terms))
    outline = env.unwrapped._core.answer_frame.for_view((160, 192))
    assert outline.size == (96, 80)


@pytest.mark.parametrize(("updates", "recorded"), [(0, None), (1, "permille")])
def test_training_records_the_frame_if_it_changed_anything(tree, updates, recorded):
    policy = scripted_policy("permille")
    policy.constraint = None
    config = GSPOConfig(prompts_per_update=2, group_size=2, max_new_tokens=8, muon=False)
    envs = gym.make_vec(
        ENV,
        num_envs=4,
        autoreset_mode="Disabled",
        rewards="length_penalty=1",
        **environment(policy, tree, split="train"),
    )
    agent = GSPO(policy, envs, config)
    agent.learn(updates)
    assert recorded_frame(policy.model) == recorded
