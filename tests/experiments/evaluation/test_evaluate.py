"""The evaluation script: answers from files and policies, scored, resumed, compared, reported."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from agents_fixtures import small_policy
from PIL import Image
from scripted_policy import write_tree
from shapely.geometry import Polygon
from short_runs import run_on_two_ranks

from experiments.common.command import run_command
from experiments.evaluate import FIRST, Args, command_line, main
from experiments.evaluation.answers import (
    AnswerRecord,
    keep_whole_answers,
    match_answers,
    read_answers,
)
from experiments.evaluation.scores import load_samples, score
from seg_env.envs.referring import open_questions
from seg_env.frames import find_answer_frame, pixel_frame, write_tokens
from seg_env.grammar import encode
from seg_env.tasks import box_of
from seg_env.tasks.queries import QueryStyle

DATA = Path(
    os.environ.get("SIMPLESEG_TEST_DATA", Path(__file__).parents[4] / "shared" / "data")
).absolute()
SCENES = "SimpleSeg-Scenes-v0"
COUNT = 6


def write_answers(path, answers):
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in answers))
    return path


def scene_samples():
    core = open_questions(SCENES, split="val")
    return [core.dataset[index] for index in range(COUNT)]


@pytest.fixture
def truth(tmp_path):
    """A file with the outlines of the first scenes."""
    rows = [(sample.id, encode(sample.target.outline(0.005))) for sample in scene_samples()]
    return write_answers(tmp_path / "truth.jsonl", rows)


def evaluate(folder, predictions=None, **options):
    settings = {"questions": COUNT, "details": False, "pictures": False, **options}
    return main(Args(predictions=predictions, output_dir=folder, **settings))


def test_an_evaluation_leaves_scores_samples_report_and_pictures(tmp_path, truth):
    scores = evaluate(tmp_path / "out", truth, details=True, pictures=True)
    assert scores["giou"] > 0.98
    assert scores["empty_union"] == 1.0
    low, high = scores["intervals"]["giou"]
    assert low <= scores["giou"] <= high
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    samples = load_samples(tmp_path / "out")
    assert samples["iou"].mean() == pytest.approx(scores["giou"])
    assert samples["id"].tolist() == [sample.id for sample in scene_samples()]
    assert {"boundary_iou", "polis", "ceiling", "failure", "characters"} <= samples.keys()
    for name in ("worst", "best"):
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).std() > 5
    report = (tmp_path / "out" / "report.md").read_text()
    for words in ("empty union counts 1", "95 % interval", "scenes-easy", "worst.png", "gIoU"):
        assert words in report


@pytest.mark.filterwarnings("ignore::seg_env.data.readers.refer.CountWarning")
def test_answers_are_scored_and_reported_where_no_image_can_be_read(tmp_path):
    tree = write_tree(tmp_path / "tree")
    where = {"env": "SimpleSeg-RefCOCO-v0", "data_root": str(tree), "questions": None}
    dataset = open_questions(where["env"], data_root=str(tree), split="val").dataset
    rows = [(sample.id, encode(sample.target.rings)) for sample in dataset]
    answers = write_answers(tmp_path / "a.jsonl", rows)
    for image in (tree / "images").rglob("*.*"):
        image.write_bytes(b"broken")
    scores = evaluate(tmp_path / "out", answers, pictures=True, **where)
    assert scores["questions"] == len(rows)
    assert "worst.png" not in (tmp_path / "out" / "report.md").read_text()


def test_scores_equal_those_of_the_environment(tmp_path):
    samples = scene_samples()
    texts = [
        encode(samples[0].target.rings),
        "",
        "[]",
        "[[[0.1,0.1],[0.9,0.1],[0.5,0.9]",
        "x",
        "[[",
    ]
    rows = [(sample.id, text) for sample, text in zip(samples, texts, strict=True)]
    evaluate(tmp_path / "out", write_answers(tmp_path / "a.jsonl", rows))
    core = open_questions(SCENES, split="val")
    expected = core.score(texts, [core.ask(index) for index in range(COUNT)])
    found = load_samples(tmp_path / "out")
    np.testing.assert_array_equal(found["iou"], expected.iou)
    assert found["valid"].tolist() == [each.valid for each in expected.predictions]


@pytest.mark.parametrize(
    ("frame", "family"),
    [
        ("permille", "permille"),
        ("qwen2_5_vl", "qwen2.5-vl"),
        ("florence", "florence"),
        ("paligemma", "paligemma"),
        ("pixel:256x512", "pixel:256x512"),
    ],
)
def test_answers_in_any_frame_score_the_same(tmp_path, truth, frame, family):
    reader = find_answer_frame(frame)
    assert reader.family == family
    rows = []
    for sample in scene_samples():
        text = encode(sample.target.outline(0.005), frame=reader.for_image(sample.target.size))
        rows.append((sample.id, text if ":" in frame else write_tokens(text, reader.family)))
    found = evaluate(tmp_path / "out", write_answers(tmp_path / "a.jsonl", rows), frame=frame)
    assert found["giou"] > 0.95
    assert found["well_formed"] == 1.0
    assert found["frame"].startswith(family)


def test_a_wrong_frame_is_noticed_and_the_right_one_named(tmp_path, truth, capsys):
    permille = find_answer_frame("permille")
    rows = [
        (
            sample.id,
            encode(sample.target.outline(0.005), frame=permille.for_image(sample.target.size)),
        )
        for sample in scene_samples()
    ]
    found = evaluate(tmp_path / "out", write_answers(tmp_path / "a.jsonl", rows))
    assert found["giou"] == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "100% of the answers have numbers of another frame than unit" in printed
    assert "--frame permille" in printed


def test_frames_follow_the_model_and_the_picture_it_sees():
    reader = find_answer_frame("auto", model_type="qwen2_5_vl")
    assert "picked by model type qwen2_5_vl" in reader.description
    (sample,) = scene_samples()[:1]
    assert reader.for_image(sample.target.size) == pixel_frame(140, 140)
    letterboxed = find_answer_frame("auto", model_type="qwen2_5_vl").on_canvas((64, 100))
    assert (
        letterboxed.for_image(sample.target.size).name
        == "letterbox-128x128-in-100x64-pixels-112x56"
    )
    named = find_answer_frame("auto", model_type="qwen2_5_vl", model_name="org/SimpleSeg-Qwen")
    assert named.family == "unit"
    assert find_answer_frame("auto", model_type="brand_new").family == "unit"
    with pytest.raises(ValueError, match=r"bins.*pixel:WxH.*qwen3_vl"):
        find_answer_frame("bins")
    with pytest.raises(ValueError, match="pixel:0x5"):
        find_answer_frame("pixel:0x5")


def test_answers_and_questions_must_fit(tmp_path, truth):
    rows = [json.loads(line) for line in truth.read_text().splitlines()]
    some = write_answers(tmp_path / "some.jsonl", [(r["id"], r["text"]) for r in rows[:4]])
    with pytest.raises(ValueError, match=r"2 of 6 questions have no answer.*--missing"):
        evaluate(tmp_path / "out", some)
    empty = evaluate(tmp_path / "out", some, missing="empty")
    skipped = evaluate(tmp_path / "out", some, missing="skip")
    assert (empty["questions"], skipped["questions"]) == (6, 4)
    assert empty["giou"] == pytest.approx(skipped["giou"] * 4 / 6)
    assert empty["failures"] == {"good": 4, "malformed": 2}
    with pytest.raises(ValueError, match=r"4 of 6 ids .* not among the 2 questions.*--split"):
        evaluate(tmp_path / "out", truth, questions=2)
    assert evaluate(tmp_path / "out", truth, questions=2, ignore_unknown=True)["questions"] == 2
    with pytest.raises(ValueError, match=r"1 answers and --answers is 2"):
        evaluate(tmp_path / "out", truth, answers=2)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not a JSON object"),
        ("[" * 100_000, "line 2: not a JSON object"),
        ("[1]", "line 2 has list"),
        ('{"id": "a", "answer": "[]"}', "line 2 has id, answer; each line is"),
        ('{"id": null, "text": "[]"}', "line 2: id is None"),
        ('{"id": "a", "text": ["[]"]}', "line 2: text is a list"),
    ],
)
def test_a_broken_file_of_answers_is_named_with_its_line(tmp_path, line, complaint):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": 7, "text": "[]", "model": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, " + complaint):
        read_answers(path)


def test_an_interrupted_file_keeps_whole_answers(tmp_path):
    path = write_answers(tmp_path / "a.jsonl", [("a", "1"), ("a", "2"), ("b", "3")])
    path.write_text(path.read_text() + '{"id": "b", "te')
    assert keep_whole_answers(path, 2) == {"a": [AnswerRecord("1"), AnswerRecord("2")]}
    assert read_answers(path) == {"a": [AnswerRecord("1"), AnswerRecord("2")]}
    assert match_answers(read_answers(path), {7: "a"}, count=2) == {
        7: [AnswerRecord("1"), AnswerRecord("2")]
    }
    with pytest.raises(ValueError, match="1 ids belong to several questions, such as 'a'"):
        match_answers(read_answers(path), {7: "a", 8: "a"}, count=2)


def test_a_policy_answers_and_goes_on_to_the_same_answers(tmp_path, capsys):
    small_policy().save(tmp_path / "policy")
    options = {"policy": str(tmp_path / "policy"), "questions": 5, "batch_size": 2, "answers": 3}
    options |= {"temperature": 1.0, "max_new_tokens": 8}
    first = evaluate(tmp_path / "out", **options)
    answers = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert answers.count(b"\n") == 15
    assert first["tokens"] <= 8
    assert "cut off at 8 tokens" in " ".join(capsys.readouterr().out.split())
    assert set(first["intervals"]) >= {"giou", "ciou", "well_formed"}
    with pytest.raises(FileExistsError, match="--resume"):
        evaluate(tmp_path / "out", **options)
    with pytest.raises(ValueError, match="other values of temperature"):
        evaluate(tmp_path / "out", **{**options, "temperature": 0.5}, resume=True)
    # What an interruption in the second batch leaves.
    (tmp_path / "out" / "answers.jsonl").write_bytes(
        b"".join(answers.splitlines(True)[:8]) + b'{"i'
    )
    assert evaluate(tmp_path / "out", **options, resume=True) == first
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answers
    again = evaluate(tmp_path / "again", tmp_path / "out" / "answers.jsonl", questions=5, answers=3)
    assert again["giou"] == first["giou"]


def test_two_ranks_share_the_questions_and_score_as_one(tmp_path):
    small_policy().save(tmp_path / "policy")
    words = ["--policy", tmp_path / "policy", "--max-new-tokens", "8", "--precision", "float32"]
    words += ["--questions", "9", "--batch-size", "2", "--answers", "2", "--temperature", "1"]
    words = [*map(str, words), "--no-details", "--no-pictures", "--output-dir"]
    command_line([*words, str(tmp_path / "one")])
    said = run_on_two_ranks("evaluate.py", *words, str(tmp_path / "two"))
    assert said.count("report: ") == 1, "one rank prints"
    for name in ("answers.jsonl", "scores.json", "report.md"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_intervals_over_questions_do_not_take_repeated_answers_for_evidence(tmp_path, truth):
    rows = [json.loads(line) for line in truth.read_text().splitlines()]
    texts = [row["text"] if place % 2 else "[]" for place, row in enumerate(rows)]
    once = [(row["id"], text) for row, text in zip(rows, texts, strict=True)]
    thrice = [row for row in once for _ in range(3)]
    evaluate(tmp_path / "out", write_answers(tmp_path / "3.jsonl", thrice), answers=3)
    columns = load_samples(tmp_path / "out")
    together = score(columns, 3, 1.0, 0)
    alone = score({name: column[::3] for name, column in columns.items()}, 1, 1.0, 0)
    for name in ("giou", "ciou", "precision@0.5"):
        np.testing.assert_allclose(together["intervals"][name], alone["intervals"][name])


def test_two_evaluations_are_compared_in_pairs(tmp_path, truth):
    evaluate(tmp_path / "good", truth)
    blank = write_answers(tmp_path / "b.jsonl", [(sample.id, "[]") for sample in scene_samples()])
    found = evaluate(tmp_path / "blank", blank, compare=tmp_path / "good")
    gain = found["gains"]["giou"]
    assert gain["gain"] < -0.9
    assert gain["interval"][1] < 0
    assert "Gain over" in (tmp_path / "blank" / "report.md").read_text()
    with pytest.raises(ValueError, match="only in one of them"):
        evaluate(tmp_path / "x", truth, questions=3, ignore_unknown=True, compare=tmp_path / "good")


def test_the_ceiling_needs_no_answers(tmp_path, capsys):
    found = main(
        Args(
            ceiling=True, questions=COUNT, epsilon=(0.0, 0.02), decimals=(2, 3), output_dir=tmp_path
        )
    )
    ceilings = {(row["epsilon"], row["decimals"]): row for row in found["ceilings"]}
    assert list(ceilings) == [(0.0, 2), (0.02, 2), (0.0, 3), (0.02, 3)]
    assert ceilings[0.0, 3]["giou"] == 1.0
    assert ceilings[0.0, 3]["giou"] > ceilings[0.02, 3]["giou"] > 0.9
    assert ceilings[0.0, 3]["vertices"]["mean"] > ceilings[0.02, 3]["vertices"]["mean"]
    assert json.loads((tmp_path / "ceiling.json").read_text()) == found
    assert "Best scores that text allows" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the embedded sample")
def test_scores_on_the_embedded_sample_are_not_called_scores_on_refcoco(tmp_path, monkeypatch):
    monkeypatch.delenv("SIMPLESEG_DATA", raising=False)
    core = open_questions("SimpleSeg-RefCOCO-v0", split="val")
    rows = [(core.dataset[i].id, "[]") for i in range(len(core.dataset))]
    answers = write_answers(tmp_path / "a.jsonl", rows)
    found = evaluate(tmp_path / "out", answers, env="SimpleSeg-RefCOCO-v0", questions=None)
    assert found["dataset"] == "embedded-sample"
    report = (tmp_path / "out" / "report.md").read_text()
    assert "not a score on RefCOCO" in report


def test_a_policy_and_a_file_cannot_both_answer(tmp_path, truth):
    with pytest.raises(ValueError, match="--policy and --predictions"):
        evaluate(tmp_path, truth, policy="embedded")
    with pytest.raises(ValueError, match="use 1 to 4096"):
        evaluate(tmp_path, truth, questions=5000)


def run_python(code, *words):
    """A Python program in a process of its own."""
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=root,
        env=os.environ | {"COLUMNS": "80"},
        check=False,
        capture_output=True,
        text=True,
    )


def test_scoring_a_file_needs_no_torch(tmp_path, truth):
    code = """
import sys
from experiments.evaluate import command_line
scores = command_line(sys.argv[1:])
print(scores["giou"])
sys.exit('torch' in sys.modules)
"""
    words = ["--predictions", truth, "--questions", COUNT, "--output-dir", tmp_path / "out"]
    process = run_python(code, *words, "--no-pictures")
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.split()[-1]) > 0.98


def test_help_is_one_page_and_help_all_has_every_option():
    code = """
import sys
from experiments.evaluate import command_line
try:
    command_line(sys.argv[1:])
finally:
    assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules
"""
    page, whole = run_python(code, "--help"), run_python(code, "--help-all")
    assert page.returncode == whole.returncode == 0, page.stderr + whole.stderr
    assert len(page.stdout.splitlines()) <= 60
    assert "--help-all" in page.stdout
    for field in fields(Args):
        option = "--queries.decimals" if field.name == "queries" else f"--{field.name}"
        assert option.replace("_", "-") in whole.stdout
    for option in ("--env", "--policy", "--predictions", "--output-dir"):
        assert option in page.stdout


def test_words_of_the_command_line_become_the_settings():
    words = "--task point->mask --questions 3 --answers 2 --epsilon 0 .1 --queries.jitter 0"
    assert run_command(Args, lambda args: args, None, FIRST, words.split()) == Args(
        task="point->mask", questions=3, answers=2, epsilon=(0, 0.1), queries=QueryStyle(jitter=0)
    )


@pytest.mark.parametrize(
    "words",
    [
        "--questions 5000",
        "--policy embedded --predictions FILE",
        "--predictions NOWHERE",
        "--predictions FILE --questions 2",
        "--predictions FILE --questions 6 --compare NOWHERE",
        "--predictions FILE --questions 6 --frame no-such-frame",
        "--ceiling --task text->bbox",
        "--split no-such-split",
    ],
)
def test_wrong_options_end_the_command_with_a_sentence(words, tmp_path, truth, capsys):
    places = {"FILE": str(truth), "NOWHERE": str(tmp_path / "nowhere")}
    given = [places.get(word, word) for word in words.split()]
    with pytest.raises(SystemExit) as ended:
        command_line([*given, "--no-pictures", "--output-dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def released_outline(target):
    """The published convention: through the centres of border pixels, in pixel indices."""
    height, width = target.size
    rings = []
    for ring in target.rings:
        inner = Polygon(ring * (width, height)).buffer(-0.5, join_style="mitre")
        for part in getattr(inner, "geoms", [inner]):
            line = part.exterior.simplify(0.005 * part.length, preserve_topology=False)
            if len(line.coords) > 3:
                rings.append((np.array(line.coords)[:-1] - 0.5) / (width, height))
    return rings


def box_outline(target):
    x0, y0, x1, y1 = box_of(target)
    return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])]


@pytest.mark.filterwarnings("ignore::seg_env.data.readers.refer.CountWarning")
@pytest.mark.skipif(
    not (DATA / "mini_refcoco").is_dir(),
    reason="no real photos: set SIMPLESEG_TEST_DATA to the folder that holds mini_refcoco/",
)
def test_better_answers_about_real_photos_score_higher(tmp_path):
    where = {"data_root": str(DATA / "mini_refcoco"), "split": "testB"}
    dataset = open_questions("SimpleSeg-RefCOCO-v0", **where).dataset
    garbage = [
        "no idea",
        "[[[0.5,0.",
        "[[[0.1,0.1],[0.2,0.1],[0.1,0.2]]]",
        "[[[512,300],[530,9],[5,4]]]",
    ]
    systems = {
        "truth": lambda index, target: encode(target.outline(0.001)),
        "pixel centres": lambda index, target: encode(released_outline(target)),
        "boxes": lambda index, target: encode(box_outline(target)),
        "garbage": lambda index, target: garbage[index % len(garbage)],
    }
    found, better = {}, None
    for name, answer in systems.items():
        samples = [dataset[index] for index in range(len(dataset))]
        rows = [(sample.id, answer(i, sample.target)) for i, sample in enumerate(samples)]
        found[name] = evaluate(
            tmp_path / name,
            write_answers(tmp_path / f"{name}.jsonl", rows),
            env="SimpleSeg-RefCOCO-v0",
            questions=None,
            details=True,
            compare=better,
            **where,
        )
        if better is not None:
            assert found[name]["gains"]["giou"]["interval"][1] < 0
            assert found[name]["gains"]["ciou"]["interval"][1] < 0
        better = tmp_path / name
    assert found["truth"]["giou"] > 0.99
    assert 0.9 < found["pixel centres"]["giou"] < 0.96
    assert 0.4 < found["boxes"]["giou"] < 0.7
    assert found["garbage"]["giou"] < 0.05
    assert found["garbage"]["failures"]["malformed"] == 11
