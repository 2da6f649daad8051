"""Rewards as reward functions of TRL, ms-swift and verl: what the environment gives, from rows."""

import inspect
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest

import rewards
import seg_env  # noqa: F401  (registers the environments)
from rewards.trainers import RowRewards
from seg_env.data import export_jsonlines
from seg_env.data.export import run_lengths
from seg_env.data.records import RecordError
from seg_env.data.scenes import Scenes
from seg_env.geometry.rle import Rle
from seg_env.grammar import encode

SPEC = "mask_iou=1.0 centroid_distance=0.5 format=0.1"
TRIANGLE = "[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]"
SQUARE = {"rle": run_lengths(Rle.from_mask(np.pad(np.ones((4, 4), bool), 2)))}
"""The middle of 8 x 8 pixels."""
HIT = "[[[0.25,0.25],[0.75,0.25],[0.75,0.75],[0.25,0.75]]]"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = export_jsonlines(Scenes("val", length=6, size=64), tmp_path_factory.mktemp("rows"))
    return list(map(json.loads, path.read_text().splitlines()))


def answers_to(dataset, task):
    """An answer of each kind: right, near, of another form, none at all."""
    outline = encode(dataset[0].target.outline(0.01))
    form = {"mask": TRIANGLE, "bbox": "[0.1,0.2,0.6,0.7]", "point": "[0.4,0.6]"}
    return [outline, form[task.partition("->")[2]], "It is at " + TRIANGLE, "[0.5,0.5]", "no", ""]


@pytest.mark.parametrize("task", ["text->mask", "text->bbox", "text->point"])
@pytest.mark.parametrize("frame", ["unit", "permille", "qwen2.5-vl", "paligemma"])
def test_rows_earn_what_they_earn_in_the_environment(exported, task, frame):
    env = gym.make_vec(
        "SimpleSeg-Scenes-v0", 6, split="val", size=64, task=task, frame=frame, rewards=SPEC,
        autoreset_mode="Disabled",
    )  # fmt: skip
    env.reset(options={"indices": np.arange(6)})
    texts = answers_to(env.unwrapped.dataset, task)
    _, earned, _, _, infos = env.step(texts)
    columns = {name: [row.get(name) for row in exported] for name in ("rle", "size", "box")}
    logged = {}
    found = rewards.for_trl(SPEC, frame=frame)(
        completions=texts,
        prompts=None,
        log_metric=logged.__setitem__,
        trainer_state=None,
        task=[task] * 6,
        **columns,
    )
    assert found == earned.tolist()
    terms = {f"reward/{name}": infos[f"reward/{name}"] for name in RowRewards(SPEC).rewards.terms}
    assert logged == {name: float(values.mean()) for name, values in terms.items()}
    by_swift = rewards.for_swift(SPEC, frame=frame)(args=None)(texts, task=[task] * 6, **columns)
    assert by_swift == found
    score = rewards.for_verl(SPEC, frame=frame)
    for row, text in enumerate(texts):
        truth = {**exported[row], "task": task}
        given = truth if row % 2 else json.dumps(truth)
        result = score("scenes", text, given, extra_info={"num_turns": None}, reward_router=None)
        assert result == {
            "score": earned[row], **{name: values[row] for name, values in terms.items()}
        }  # fmt: skip


def test_outlines_void_pixels_and_annotated_boxes_count_as_in_data_sets():
    left = np.zeros((10, 10), bool)
    left[:, :5] = True
    void = np.zeros((10, 10), bool)
    void[:5, 5:] = True
    row = {
        "size": [10, 10],
        "rings": [[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]],
        "ignore": run_lengths(Rle.from_mask(void)),
    }
    whole = "[[[0,0],[1,0],[1,1],[0,1]]]"
    assert rewards.for_verl("mask_iou=1")("", whole, row)["score"] == pytest.approx(50 / 75)
    asked = {"rle": run_lengths(Rle.from_mask(left)), "task": "text->bbox"}
    score = rewards.for_verl("mask_iou=1")
    assert score("", "[0,0,1,1]", asked)["score"] == pytest.approx(0.5)
    assert score("", "[0,0,1,1]", {**asked, "box": [0, 0, 1, 1]})["score"] == pytest.approx(1)


@pytest.mark.parametrize(
    "completion",
    [
        HIT,
        [{"role": "assistant", "content": HIT}],
        [{"role": "assistant", "content": [{"type": "text", "text": HIT}]}],
        [{"role": "assistant", "content": "thinking"}, {"role": "assistant", "content": HIT}],
    ],
)
def test_completions_are_texts_or_messages(completion):
    assert rewards.for_trl("mask_iou=1")([completion], **columns_of(SQUARE)) == [1.0]


@pytest.mark.parametrize("completion", ["", [], [{"role": "assistant", "content": None}]])
def test_no_answer_earns_nothing(completion):
    assert rewards.for_trl("mask_iou=1")([completion], **columns_of(SQUARE)) == [0.0]


def test_targets_may_be_arrays_and_bytes():
    counts = SQUARE["rle"]["counts"]
    row = {"size": np.array([8, 8]), "rle": {"size": np.array([8, 8]), "counts": counts.encode()}}
    assert rewards.for_trl("mask_iou=1")([HIT], **columns_of(row)) == [1.0]


def columns_of(*rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_trainers_find_names():
    spec = "mask_iou=1 format=gate length_penalty=0"
    functions = [
        rewards.for_trl(spec),
        rewards.for_swift(spec),
        rewards.for_swift(spec)(),
        rewards.for_verl(spec),
    ]
    for function in functions:
        assert function.__name__ == "mask_iou_and_format_and_length_penalty"
        assert inspect.isfunction(function)  # ms-swift names anything else by its class


def test_the_default_is_that_of_environments():
    assert rewards.for_trl().__name__ == "mask_iou_and_centroid_distance_and_format"


def test_answers_to_one_question_share_their_target():
    scorer = RowRewards("mask_iou=1")
    _, targets = scorer.read([HIT] * 3, [SQUARE, dict(SQUARE), {**SQUARE, "task": "text->bbox"}])
    assert targets[0] is targets[1]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"rle": None}, "'size' must be [height, width]"),
        ({"rle": 5}, "'size' must be"),
        (
            {"rle": {"size": [8], "counts": "0"}},
            "'size' must be [height, width], got a value of type list",
        ),
        ({"rle": {"size": [8, 8], "counts": "\x00"}}, "compressed RLE"),
        ({"rle": {"size": [10**9, 10**9], "counts": "0"}}, "the limit is"),
        ({**SQUARE, "size": [8, 9]}, "'size' must be the (height, width) of the image, (8, 9)"),
        ({**SQUARE, "rings": []}, "expected one of 'rle' and 'rings', got ['rle', 'rings']"),
        ({**SQUARE, "task": "mask"}, "'mask'"),
        ({**SQUARE, "task": ["text->mask"]}, "text->mask"),
        ({**SQUARE, "box": [1, 2]}, "'box' must be"),
        ({"mask": "/etc/passwd", "size": [8, 8]}, "expected one of 'rle' and 'rings', got []"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, complaint):
    with pytest.raises(RecordError) as caught:
        RowRewards().read([HIT, HIT], [SQUARE, row])
    assert str(caught.value).startswith("row 1: ")
    assert complaint in str(caught.value)


def test_data_without_targets_are_refused():
    with pytest.raises(ValueError, match=r"no column .rle. or .rings. .* but \[.solution.\]"):
        rewards.for_trl()([HIT], solution=["5"])
    with pytest.raises(RecordError, match="ground_truth: expected an object"):
        rewards.for_verl()("scenes", HIT, [1, 2])


def test_a_bug_in_a_reward_is_no_zero():
    class Broken(rewards.Reward):
        def __call__(self, predictions, targets):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rewards.for_trl([(Broken(), 1.0)])([HIT], **columns_of(SQUARE))


def test_functions_reach_other_processes():
    cloudpickle = pytest.importorskip("cloudpickle")
    sent = pickle.loads(cloudpickle.dumps(rewards.for_verl("mask_iou=1")))
    assert sent("scenes", HIT, SQUARE)["score"] == 1.0
