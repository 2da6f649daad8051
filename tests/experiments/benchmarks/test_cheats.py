"""What rewards pay for cheats: the answers are what their names say, and no cheat pays."""

import json

import numpy as np
import pytest
from shapely import Polygon

from experiments.benchmarks.cheats import (
    CHEATS,
    HONEST,
    SUM,
    answers,
    benchmark_cheats,
    payments,
)
from rewards import known_rewards
from seg_env.data.scenes import Scenes
from seg_env.grammar import decode

SAMPLES = [Scenes("val", "medium")[index] for index in range(48)]


@pytest.fixture(scope="module")
def texts():
    return answers(SAMPLES)


@pytest.fixture(scope="module")
def paid(texts):
    return payments(SAMPLES, texts)


def test_every_answer_is_well_formed(texts):
    for name, written in texts.items():
        assert all(decode(text).valid for text in written), name
        assert len(set(written)) > 1 or name in ("whole image", "nothing, and the object is there")


@pytest.mark.parametrize("wanted", HONEST)
def test_honest_answers_have_the_overlap_that_they_say(paid, wanted):
    found = paid[f"honest, IoU {wanted}"]["mask_iou"]
    np.testing.assert_allclose(found, wanted, atol=0.05)


def test_hulls_and_boxes_enclose_the_object(texts):
    for name in ("box", "convex hull", "whole image"):
        for sample, text in zip(SAMPLES, texts[name], strict=True):
            (ring,) = decode(text).rings
            grown = Polygon(ring).buffer(0.002)
            assert all(grown.covers(Polygon(part)) for part in sample.target.rings), name


def test_every_built_in_reward_is_asked(paid):
    for by_reward in paid.values():
        assert set(by_reward) == {*known_rewards(), SUM}


@pytest.mark.parametrize("cheat", CHEATS)
def test_the_default_sum_pays_no_cheat_more_than_an_honest_answer(paid, cheat):
    """Of IoU .5, or of the IoU that it has, which boxes and hulls of many shapes have more of."""
    honest = [paid[f"honest, IoU {iou}"][SUM].mean() for iou in HONEST]
    own = paid[cheat]["mask_iou"].mean()
    fair = np.interp(max(own, 0.5), HONEST, honest)
    if own > HONEST[-1]:  # what an honest answer of its overlap and perfect centre and form earns
        fair = own + 0.6
    assert paid[cheat][SUM].mean() <= fair + 0.03


def test_figures_are_written(tmp_path, capsys):
    benchmark_cheats(tmp_path / "all.json", tmp_path / "out", questions=6)
    found = json.loads((tmp_path / "all.json").read_text())
    assert found == json.loads((tmp_path / "out/cheats.json").read_text())
    assert found["paid"]["nothing, and the object is absent"][SUM] == pytest.approx(1.6)
    assert found["paid"]["an outline, and the object is absent"][SUM] < 0.2
    table = (tmp_path / "out/cheats.md").read_text()
    assert table.count("\n") == 2 + len(found["paid"])
    assert "What is paid" in capsys.readouterr().out
