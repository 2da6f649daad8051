"""The environment of one question at a time, as Gymnasium and its users expect it."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import seg_env
from rewards import MaskIoU, Reward, RewardSum
from seg_env.envs.core import PADDING_GRAY
from seg_env.frames import PERMILLE, UNIT, letterbox_frame, pixel_frame
from seg_env.geometry.raster import rasterize
from seg_env.grammar import encode

SCENES = "SimpleSeg-Scenes-v0"
SQUARE = "[[[0.2,0.2],[0.7,0.2],[0.7,0.7],[0.2,0.7]]]"


@pytest.fixture(autouse=True)
def no_data_of_the_user(monkeypatch):
    monkeypatch.delenv("SIMPLESEG_DATA", raising=False)


def make(dataset, **arguments):
    return gym.make(SCENES, dataset=dataset, **arguments)


@pytest.mark.parametrize("identifier", seg_env.ENVIRONMENT_IDS)
@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_gymnasium_finds_nothing_to_object_to(identifier, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The one warning that there is: the data is the sample that comes with the package.
        warnings.filterwarnings("ignore", message=".*embedded")
        env = gym.make(identifier, render_mode=render_mode)
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_size": 48},
        {"image_size": [48, 30], "frame": "permille"},
        {"frame": pixel_frame(100, 50), "rewards": {"mask_iou": 1.0}},
    ],
    ids=str,
)
def test_gymnasium_finds_nothing_to_object_to_with_images_of_all_sizes(pictures, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(pictures, **arguments).unwrapped)
        check_env(make(pictures).unwrapped)


def test_five_environments_are_registered_without_a_time_limit():
    assert seg_env.ENVIRONMENT_IDS == (
        "SimpleSeg-Scenes-v0",
        "SimpleSeg-RefCOCO-v0",
        "SimpleSeg-RefCOCOPlus-v0",
        "SimpleSeg-RefCOCOg-v0",
        "SimpleSeg-RefCLEF-v0",
    )
    assert {gym.spec(name).max_episode_steps for name in seg_env.ENVIRONMENT_IDS} == {None}


def test_registering_again_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seg_env.register_environments()


def test_an_id_with_the_module_in_it_needs_no_import_and_importing_stays_light():
    program = """
import sys, time
start = time.process_time()
import seg_env
duration = time.process_time() - start
import gymnasium
env = gymnasium.make("seg_env:SimpleSeg-Scenes-v0")
env.reset(seed=0)
env.step("[]")
heavy = {"torch", "transformers", "matplotlib", "scipy", "cv2"} & set(sys.modules)
assert duration < 1.0, duration
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_specification_survives_json():
    env = gym.make(SCENES, split="val", image_size=[48, 64], rewards="mask_iou=0.5 format=0.5")
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    one, two = (made.reset(seed=5) for made in (env, again))
    assert one[1] == two[1]
    np.testing.assert_array_equal(one[0]["image"], two[0]["image"])
    assert env.step(SQUARE)[1] == again.step(SQUARE)[1]


def test_an_episode_is_one_question_and_one_answer(scenes):
    env = make(scenes, rewards="mask_iou=1.0 format=0.1")
    observation, info = env.reset(options={"index": 7})
    sample = env.unwrapped.dataset[7]
    assert observation["prompt"] == (
        f"Output the polygon coordinates of {sample.expression} in the image."
    )
    np.testing.assert_array_equal(observation["image"], sample.image)
    asked = {"sample_id": sample.id, "dataset": "scenes-easy", "index": 7, "task": "text->mask"}
    assert info == asked

    exact = encode(sample.target.rings, decimals=9)
    observation, reward, terminated, truncated, info = env.step(exact)
    np.testing.assert_array_equal(observation["image"], sample.image)
    assert reward == pytest.approx(1.1)
    assert terminated is True
    assert truncated is False
    assert info == asked | {
        "iou": 1.0,
        "valid": True,
        "issues": "",
        "num_vertices": sum(len(ring) for ring in sample.target.rings),
        "reward/mask_iou": 1.0,
        "reward/format": 1.0,
    }


def test_info_reports_the_iou_whatever_the_rewards_are(scenes):
    env = make(scenes, rewards="format=1.0")
    env.reset(options={"index": 3})
    _, reward, _, _, info = env.step(SQUARE)
    mask = scenes[3].target.mask()
    answered = rasterize([np.array([[0.2, 0.2], [0.7, 0.2], [0.7, 0.7], [0.2, 0.7]])], mask.shape)
    assert info["iou"] == pytest.approx((mask & answered).sum() / (mask | answered).sum())
    assert reward == info["reward/format"] == 1.0
    assert "reward/mask_iou" not in info


def test_faults_are_named_in_info(scenes):
    env = make(scenes)
    env.reset(options={"index": 3})
    info = env.step("I see [[[0.2,0.2],[0.7,0.2],[0.7,oops],[0.7,0.7],[0.2")[4]
    assert info["valid"] is False
    assert {"truncated", "bad_number"} <= set(info["issues"].split(","))
    assert all(type(value) in (str, bool, int, float) for value in info.values())


def test_seeds_repeat_and_samples_are_drawn_from_all_of_the_data(scenes):
    env = make(scenes)
    drawn = [env.reset(seed=4)[1]["index"]] + [env.reset()[1]["index"] for _ in range(400)]
    again = [env.reset(seed=4)[1]["index"]] + [env.reset()[1]["index"] for _ in range(400)]
    assert drawn == again
    assert set(drawn) == set(range(64))


def test_choosing_an_index_draws_nothing(scenes):
    env = make(scenes)
    env.reset(seed=1)
    expected = env.reset()[1]
    env.reset(seed=1)
    env.reset(options={"index": 0})
    assert env.reset()[1] == expected


def test_observations_belong_to_the_caller(scenes):
    env = make(scenes)
    first, _ = env.reset(options={"index": 2})
    kept = first["image"].copy()
    first["image"][:] = 0
    second = env.step("[]")[0]
    np.testing.assert_array_equal(second["image"], kept)
    second["image"][:] = 0
    np.testing.assert_array_equal(env.reset(options={"index": 2})[0]["image"], kept)


def test_steps_out_of_turn_need_a_reset(scenes):
    env = make(scenes).unwrapped
    with pytest.raises(ResetNeeded):
        env.step("[]")
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset()
    env.step("[]")
    with pytest.raises(ResetNeeded, match="ended with its one answer"):
        env.step("[]")


@pytest.mark.parametrize("action", [None, 3, b"[]", ["[]"], np.zeros(2)], ids=repr)
def test_an_action_that_is_no_text_is_a_bug_of_the_caller(scenes, action):
    env = make(scenes).unwrapped
    env.reset()
    with pytest.raises(TypeError, match=type(action).__name__):
        env.step(action)
    assert env.step(np.str_("[]"))[2]


class Broken(Reward):
    """Divides by zero."""

    name = "broken"

    def __call__(self, predictions, targets):
        raise ZeroDivisionError("a bug of the reward")


def test_a_bug_in_a_reward_is_not_hidden(scenes):
    env = make(scenes, rewards=RewardSum.from_spec([(Broken(), 1.0)]))
    env.reset()
    with pytest.raises(ZeroDivisionError):
        env.step("[]")


def test_rewards_may_be_text_mapping_or_object(scenes):
    given = ["mask_iou=2", {"mask_iou": 2}, RewardSum.from_spec([(MaskIoU(), 2.0)])]
    totals = []
    for rewards in given:
        env = make(scenes, rewards=rewards)
        env.reset(options={"index": 1})
        totals.append(env.step(SQUARE)[1])
    assert totals[0] == totals[1] == totals[2] > 0


def test_native_sizes_are_kept_and_declared(pictures):
    env = make(pictures)
    for index, size in enumerate(pictures.sizes):
        observation, _ = env.reset(options={"index": index})
        assert observation["image"].shape == (*size, 3)
        assert observation in env.observation_space


@pytest.mark.parametrize("canvas", [(64, 64), (40, 120), (50, 31)])
@pytest.mark.parametrize(
    "frame", [UNIT, PERMILLE, pixel_frame(200, 100)], ids=lambda frame: frame.name
)
def test_answers_are_about_the_image_seen(pictures, canvas, frame):
    env = make(pictures, image_size=canvas, frame=frame)
    for index, size in enumerate(pictures.sizes):
        seen = env.reset(options={"index": index})[0]["image"]
        assert seen.shape == (*canvas, 3)
        # The rectangle is white on black, the padding a little darker than the mean of the two.
        rows, columns = np.nonzero(seen[..., 0] > PADDING_GRAY)
        x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) / (canvas[1], canvas[0])
        info = env.step(encode([corners], decimals=6, frame=frame))[4]
        # Each side may be off by half a pixel of what is seen, and by rounding.
        rows, columns = np.nonzero(pictures[index].target.mask())
        allowed = 1 + max(1.0, size[0] / canvas[0], size[1] / canvas[1])
        slack = (1 + allowed / (np.ptp(rows) + 1)) * (1 + allowed / (np.ptp(columns) + 1))
        assert info["iou"] >= 1 / slack


@pytest.mark.parametrize("canvas", [(64, 64), (40, 120), (17, 23)])
def test_the_letterbox_is_inverted_exactly(pictures, canvas):
    env = make(pictures, image_size=canvas)
    for index, size in enumerate(pictures.sizes):
        env.reset(options={"index": index})
        frame = env.action_space.frame
        if size != canvas:
            frame = letterbox_frame(frame, size, canvas)
        # Encoding clips to the image seen; the target lies within it.
        text = encode(pictures[index].target.rings, decimals=9, frame=frame)
        assert env.step(text)[4]["iou"] == 1.0


def test_padding_is_gray_and_proportions_stay(pictures):
    env = make(pictures, image_size=60)
    seen = env.reset(options={"index": 0})[0]["image"]  # 40 x 60 pixels: ten rows above and below
    assert (seen[:10] == PADDING_GRAY).all()
    assert (seen[-10:] == PADDING_GRAY).all()
    np.testing.assert_array_equal(seen[10:50], pictures[0].image)


def test_the_question_can_be_worded(pictures):
    env = make(pictures, prompt_template="{expression}'s polygon, as {json}")
    assert env.reset(options={"index": 1})[0]["prompt"] == "rectangle 1's polygon, as {json}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "text->outline"}, r"task='text->outline' is unknown.*'text->mask'"),
        ({"frame": "inches"}, r"frame='inches' is unknown; use one of unit, permille"),
        ({"image_size": 0}, r"image_size=0"),
        ({"image_size": (3, 4, 5)}, r"image_size=\(3, 4, 5\)"),
        ({"image_size": "big"}, r"image_size='big'"),
        ({"prompt_template": "Where?"}, r"prompt_template='Where\?'.*\{expression\}"),
        ({"rewards": "mask_uoi=1.0"}, r"mask_uoi.*mask_iou"),
        ({"rewards": "mask_iou"}, r"mask_iou.*name=weight"),
        ({"dataset": "voc"}, r"dataset='voc' is unknown, .*; use one of scenes, refcoco"),
        ({"difficulty": "brutal"}, r"difficulty='brutal'.*easy"),
        ({"split": "testA"}, r"split='testA'.*train"),
        ({"split_by": "unc"}, r"split_by='unc' cannot be used with dataset='scenes'"),
        ({"dataset": "refcoco", "difficulty": "easy"}, r"difficulty='easy' cannot be used"),
        ({"render_mode": "svg"}, r"render_mode='svg'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(arguments, message):
    from seg_env.envs.referring import ReferringSegmentationEnv

    with pytest.raises(ValueError, match=message):
        ReferringSegmentationEnv(**arguments)


def test_the_embedded_sample_is_never_reported_as_the_real_data():
    with pytest.warns(UserWarning, match="embedded sample"):
        env = gym.make("SimpleSeg-RefCOCOg-v0")
    info = env.reset(seed=0)[1] | env.step(SQUARE)[4]
    assert info["dataset"] == env.unwrapped.dataset.name == "embedded-sample"


def test_a_folder_without_the_data_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="refcoco"):
        gym.make("SimpleSeg-RefCOCO-v0", data_root=str(tmp_path))
    monkeypatch.setenv("SIMPLESEG_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="refcoco"):
        gym.make("SimpleSeg-RefCOCO-v0")


def test_an_argument_beside_a_data_set_object_is_refused(scenes):
    with pytest.raises(ValueError, match=r"split='val' cannot be used with a data set object"):
        make(scenes, split="val")


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="splitt"):
        gym.make(SCENES, splitt="val")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"index": 64}, IndexError, "64 samples; use 0 to 63"),
        ({"index": -1}, IndexError, "is -1"),
        ({"index": "3"}, TypeError, "'3' of str"),
        ({"index": 1.0}, TypeError, "1.0 of float"),
        ({"index": True}, TypeError, "True of bool"),
        ({"indices": [1]}, ValueError, r"unknown reset options \['indices'\].*'index'"),
        ([1], TypeError, "use a dict"),
    ],
    ids=str,
)
def test_wrong_options_are_explained(scenes, options, error, message):
    with pytest.raises(error, match=message):
        make(scenes).unwrapped.reset(options=options)


def test_an_image_that_does_not_fit_its_target_is_reported(pictures):
    class Mismatched(type(pictures)):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return type(sample)(
                sample.id, "x", sample.target, lambda: np.zeros((5, 5, 3), np.uint8)
            )

    with pytest.raises(ValueError, match=r"'pictures-0'.*\(5, 5, 3\).*\(40, 60\)"):
        make(Mismatched()).reset(options={"index": 0})


def test_an_empty_data_set_is_refused(pictures):
    pictures.sizes = ()
    with pytest.raises(ValueError, match="no sample"):
        make(pictures)


def test_closing_twice_is_allowed(scenes):
    env = make(scenes)
    env.close()
    env.close()
