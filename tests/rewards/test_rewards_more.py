"""Rewards of boundaries and of length, on outlines whose scores are known by hand."""

import numpy as np
import pytest

from rewards import BoundaryF, BoundaryIoU, LengthPenalty, MaskIoU, RewardSum, VertexBudget
from seg_env.geometry.polygon import Ring
from seg_env.metrics import boundary_f, boundary_iou
from seg_env.types import IssueKind, ParseIssue, Prediction, Target


def box(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def with_vertices(count: int) -> Prediction:
    """A circle in the middle."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return Prediction((0.5 + 0.2 * np.stack((np.cos(angles), np.sin(angles)), axis=1),))


SQUARE = np.zeros((60, 80), dtype=bool)
SQUARE[15:45, 20:60] = True
TARGET = Target.from_mask(SQUARE)
NOTHING = Target.from_mask(np.zeros((60, 80), dtype=bool))
EXACT, NEAR = Prediction((box(0.25, 0.25, 0.75, 0.75),)), Prediction((box(0.2, 0.25, 0.75, 0.75),))
SILENT = Prediction(())
GIBBERISH = Prediction((), (ParseIssue(IssueKind.NO_POLYGON, 0),))


def test_rewards_are_known_by_name() -> None:
    spec = "mask_iou=1 boundary_iou=0.5 boundary_f=0.5 length_penalty=0.1 vertex_budget=0.1"
    scores = RewardSum.from_spec(spec).score([EXACT], [TARGET])
    values = {name: float(value[0]) for name, value in scores.terms.items()}
    assert values == {
        "mask_iou": 1.0,
        "boundary_iou": 1.0,
        "boundary_f": 1.0,
        "length_penalty": 0.0,
        "vertex_budget": 1.0,
    }
    assert scores.total == [pytest.approx(2.1)]


@pytest.mark.parametrize("reward", [BoundaryIoU(), BoundaryF()])
def test_boundary_rewards_see_more_than_mask_iou(reward: BoundaryIoU | BoundaryF) -> None:
    answers, targets = [EXACT, NEAR, SILENT], [TARGET] * 3
    exact, near, silent = reward(answers, targets)
    assert (exact, silent) == (1.0, 0.0)
    assert 0 < near < MaskIoU()(answers, targets)[1]


@pytest.mark.parametrize("reward", [BoundaryIoU(), BoundaryF(), VertexBudget()])
@pytest.mark.parametrize(("answer", "score"), [(SILENT, 1.0), (GIBBERISH, 0.0)])
def test_an_absent_object_wants_it_said(
    reward: BoundaryIoU | BoundaryF | VertexBudget, answer: Prediction, score: float
) -> None:
    assert reward([answer], [NOTHING]) == [score]


def test_boundary_rewards_take_a_share_of_the_diagonal() -> None:
    for reward, measure, ratio in [
        (BoundaryIoU(dilation_ratio=0.1), boundary_iou, {"dilation_ratio": 0.1}),
        (BoundaryF(tolerance_ratio=0.05), boundary_f, {"tolerance_ratio": 0.05}),
    ]:
        (near,) = reward([NEAR], [TARGET])
        assert near == measure([NEAR], [TARGET], **ratio) > measure([NEAR], [TARGET])
    for ratio in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive"):
            boundary_iou([NEAR], [TARGET], dilation_ratio=ratio)
        with pytest.raises(ValueError, match="positive"):
            boundary_f([NEAR], [TARGET], tolerance_ratio=ratio)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_parameters_of_rewards_are_positive(wrong: float) -> None:
    for build, names in [
        (BoundaryIoU, ["dilation_ratio"]),
        (BoundaryF, ["tolerance_ratio"]),
        (LengthPenalty, ["scale"]),
        (VertexBudget, ["epsilon", "slack", "least"]),
    ]:
        for name in names:
            with pytest.raises(ValueError, match=f"{build.name}: {name} must be a positive number"):
                build(**{name: wrong})


def test_length_penalty_counts_characters() -> None:
    texts = ["", "x" * 250, "x" * 1000, "x" * 9999]
    scores = LengthPenalty()([Prediction((), text=text) for text in texts], [TARGET] * 4)
    assert scores.tolist() == [0.0, -0.25, -1.0, -1.0]
    assert LengthPenalty(scale=500)([Prediction((), text="x" * 250)], [TARGET]) == [-0.5]


def test_vertex_budget_is_full_up_to_the_budget_and_ends_at_twice_as_many() -> None:
    # A rectangle needs 4 vertices; like every target it may cost 8.
    answers = [with_vertices(count) for count in (3, 8, 12, 16, 100)]
    scores = VertexBudget()(answers, [TARGET] * 5)
    assert scores.tolist() == [1.0, 1.0, pytest.approx(0.5), 0.0, 0.0]
    # Twice four vertices are granted where not more are to everyone.
    assert VertexBudget(slack=2.0, least=1)([with_vertices(12)], [TARGET]) == [pytest.approx(0.5)]
    assert VertexBudget(least=16)([with_vertices(16)], [TARGET]) == [1.0]


def test_vertex_budget_grows_with_what_the_outline_of_the_target_needs() -> None:
    rows, columns = np.indices((60, 80))
    disc = Target.from_mask((rows - 30) ** 2 + (columns - 40) ** 2 < 25**2)
    needed = sum(map(len, disc.outline(0.005)))
    assert needed > 8
    answers = [with_vertices(count) for count in (needed * 3 // 2, needed * 3)]
    assert VertexBudget()(answers, [disc] * 2).tolist() == [1.0, 0.0]
    assert VertexBudget(epsilon=0.1)(answers, [disc] * 2).tolist() == [0.0, 0.0]


def test_vertex_budget_pays_nothing_for_filling_nothing() -> None:
    line = Prediction((np.full((3, 2), 0.5),))
    assert VertexBudget()([SILENT, line, GIBBERISH], [TARGET] * 3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("reward", [BoundaryIoU(), BoundaryF(), LengthPenalty(), VertexBudget()])
def test_no_answers_give_no_scores(
    reward: BoundaryIoU | BoundaryF | LengthPenalty | VertexBudget,
) -> None:
    assert reward([], []).shape == (0,)
