"""What is found out about a policy before it is trained, and what is left out on the way."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents_fixtures import SMALL, cloned_policy, small_policy
from rich.console import Console
from scripted_policy import OUTLINES, SIZES, scripted_policy, write_tree

from agents.embedded.tiny import build_processor
from agents.gspo import GSPO, GSPOConfig
from agents.policy.checks import BlindPolicyError, compare_images
from agents.settings import SupervisedFineTuningConfig
from agents.trl_backend.rows import DemonstrationRows, QuestionRows
from experiments import evaluate, run_gspo, run_ppo
from experiments.common.arguments import EvaluationPlan
from experiments.common.cloning_data import RecordedImages, demonstrate_images
from experiments.common.policies import longest_answer
from experiments.evaluate import Args as EvaluateArgs
from experiments.evaluation.loop import evaluate as measure
from rewards import Reward
from seg_env.data import open_dataset
from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError
from seg_env.frames import PERMILLE, find_answer_frame
from seg_env.grammar import decode
from seg_env.tasks import answer
from seg_env.tasks.queries import QueryStyle

ENV = "SimpleSeg-RefCOCO-v0"
BROKEN = 5
"""Number of an image whose file is cut off; the next one is too thin for Qwen's processor."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def odd_tree(tmp_path_factory):
    sizes = (*SIZES, (80, 80), (2, 500))
    outlines = (*OUTLINES, [(8, 8), (40, 8), (40, 40)], [(0, 0), (240, 0), (240, 2), (0, 2)])
    root = write_tree(tmp_path_factory.mktemp("odd"), sizes, outlines)
    path = root / f"images/mscoco/images/train2014/COCO_train2014_{BROKEN:012d}.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy that is not one of the project's own."""
    path = tmp_path_factory.mktemp("policy")
    small_policy().save(path)
    return path


@pytest.fixture(scope="module")
def blind_folder(tmp_path_factory):
    """The same with a projector that makes the same of every image."""
    path = tmp_path_factory.mktemp("blind")
    policy = small_policy()
    with torch.no_grad():
        for parameter in policy.model.model.multi_modal_projector.parameters():
            parameter.zero_()
    policy.save(path)
    return path


def training(module, policy, tree, output, **given):
    """Arguments of a very short run."""
    name = module.__name__.removeprefix("experiments.run_")
    config = {"prompts_per_update": 2, "group_size": 2, "minibatches": 1}
    settings = {
        "env": ENV,
        "policy": str(policy),
        "data_root": str(tree),
        "updates": 1,
        "precision": "float32",
        "evaluation": EvaluationPlan(questions=4, answers=1, every=0),
        "output_dir": output,
        **given,
    }
    args = module.Args(**settings)
    for key, value in config.items():
        setattr(getattr(args, name), key, value)
    return args


def shown(policy, tree):
    """Images, questions and true answers."""
    core = ReferringCore("refcoco", data_root=tree, split="val")
    asked = [core.ask(index) for index in range(len(SIZES))]
    answers = [answer(question.sample, "text->mask") for question in asked]
    return [question.image for question in asked], [question.prompt for question in asked], answers


def test_a_policy_that_sees_is_told_from_one_that_does_not(tree, blind_folder):
    policy = small_policy()
    report = compare_images(policy, *shown(policy, tree))
    assert report.sees
    assert report.rounding < 1e-6
    assert min(report.change_other, report.change_blank) > 1e-4
    assert "The policy sees" in report.sentence
    blind = type(policy).from_pretrained(blind_folder)
    report = compare_images(blind, *shown(blind, tree))
    assert not report.sees
    assert report.own == report.other == report.blank
    assert "Images do not reach the model" in report.sentence


def test_what_depends_on_the_size_of_an_image_only_is_not_sight(tree):
    policy = scripted_policy("qwen2.5-vl")  # more pixels are more tokens
    policy.constraint = None
    assert compare_images(policy, *shown(policy, tree)).sees
    with torch.no_grad():
        for parameter in policy.model.model.visual.merger.parameters():
            parameter.zero_()
    assert not compare_images(policy, *shown(policy, tree)).sees


def test_one_image_shows_nothing(tree):
    policy = small_policy()
    images, prompts, answers = shown(policy, tree)
    with pytest.raises(ValueError, match="two different images"):
        compare_images(policy, images[:1] * 2, prompts[:2], answers[:2])


@pytest.mark.parametrize("module", [run_gspo, run_ppo])
def test_a_blind_policy_is_not_trained(module, blind_folder, tree, tmp_path):
    args = training(module, blind_folder, tree, tmp_path / "run")
    with pytest.raises(BlindPolicyError, match=r"do not reach the model.*--no-vision-check"):
        module.main(args)
    assert not (tmp_path / "run").exists(), "nothing is left in the way of the next try"


def test_a_blind_policy_is_trained_if_that_is_wanted(blind_folder, tree, tmp_path):
    args = training(run_gspo, blind_folder, tree, tmp_path / "run", vision_check=False)
    assert run_gspo.main(args)["updates"] == 1


def test_the_evaluator_shows_what_a_policy_sees(folder, blind_folder, tree, tmp_path, capsys):
    given = {"env": ENV, "data_root": str(tree), "check_vision": True}
    found = evaluate.main(EvaluateArgs(policy=str(folder), output_dir=tmp_path / "a", **given))
    assert found["sees"]
    assert json.loads((tmp_path / "a" / "vision.json").read_text()) == found
    with pytest.raises(SystemExit):
        evaluate.main(EvaluateArgs(policy=str(blind_folder), output_dir=tmp_path / "b", **given))
    assert "Images do not reach the model" in " ".join(capsys.readouterr().out.split())


def test_scores_before_training_are_those_of_the_evaluator(folder, tree, tmp_path, capsys):
    args = training(run_gspo, folder, tree, tmp_path / "run", frame="permille", updates=0)
    before = run_gspo.main(args)["before"]
    told = " ".join(capsys.readouterr().out.split())
    assert "answers in frame permille" in told
    assert "The policy sees" in told
    given = {"env": ENV, "data_root": str(tree), "policy": str(folder), "precision": "float32"}
    found = evaluate.main(EvaluateArgs(frame="permille", output_dir=tmp_path / "eval", **given))
    assert found["giou"] == before["giou"]
    assert found["ciou"] == before["ciou"]
    answers = [json.loads(line) for line in (tmp_path / "eval/answers.jsonl").open()]
    assert np.mean([each["tokens"] for each in answers]) == before["tokens"]


def test_scores_that_are_not_zero_are_the_same_to_the_last_digit(tmp_path):
    cloned_policy().save(tmp_path / "policy")
    plan = EvaluationPlan(questions=16, answers=1, every=0)
    args = run_gspo.Args(
        policy=str(tmp_path / "policy"),
        difficulty="easy",
        negatives=0.0,
        updates=0,
        precision="float32",
        evaluation=plan,
        output_dir=tmp_path / "run",
    )
    before = run_gspo.main(args)["before"]
    given = {"policy": str(tmp_path / "policy"), "precision": "float32", "questions": 16}
    found = evaluate.main(EvaluateArgs(output_dir=tmp_path / "eval", **given))
    assert found["giou"] == before["giou"] > 0
    assert found["ciou"] == before["ciou"]


def test_answers_are_as_long_as_the_truth_needs(tree):
    console = Console(record=True, width=200)
    policy = small_policy()
    lengths = {}
    for frame in ("unit", "permille", "florence"):
        core = ReferringCore("refcoco", data_root=tree, split="val", frame=frame)
        lengths[frame] = longest_answer("auto", policy, core, console)
        truths = [
            answer(core.dataset[index], "text->mask", frame=core.answer_frame)
            for index in range(len(core.dataset))
        ]
        needed = max(len(policy.tokenizer(text).input_ids) + 1 for text in truths)
        assert needed < lengths[frame] <= 1.2 * needed + 1
    assert lengths["florence"] > lengths["unit"]
    assert f"longest answer: {lengths['unit']} tokens" in console.export_text()
    assert longest_answer(7, policy, core, console) == 7
    with pytest.raises(ValueError, match="--max-new-tokens 0"):
        longest_answer(0, policy, core, console)


def test_answers_that_are_cut_off_are_counted_and_said(folder, tree, tmp_path, capsys):
    args = training(run_gspo, folder, tree, tmp_path / "run", max_new_tokens=3)
    run_gspo.main(args)
    told = " ".join(capsys.readouterr().out.split())
    assert "100% of the answers of a rollout were cut off at 3 tokens" in told
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert row["rollout/truncated"] == 1.0


def vector_environment(tree, policy, config):
    return gym.make_vec(
        ENV,
        num_envs=config.prompts_per_update * config.group_size,
        autoreset_mode="Disabled",
        data_root=str(tree),
        split="train",
        frame=policy.answer_frame,
    )


def test_odd_images_give_way_to_others_in_training(odd_tree):
    policy = scripted_policy("qwen2.5-vl", {f"shape {n}": c for n, c in enumerate(OUTLINES, 1)})
    config = GSPOConfig(prompts_per_update=6, group_size=2, max_new_tokens=200, muon=False)
    found = []
    for _ in range(2):
        agent = GSPO(policy, vector_environment(odd_tree, policy, config), config)
        for _ in range(4):
            rollout, metrics = agent.collect()
            assert metrics["rollout/iou"] == 1.0
            assert rollout.prompts == 6
        found.append(agent.left_out)
    assert found[0].reasons == found[1].reasons, "a run can be repeated"
    assert len(found[0]) == 2
    summary = found[0].summary()
    assert "2 samples left out" in summary
    assert "one side is over 200 times the other" in summary
    assert "refcoco-unc-train" in summary
    envs = vector_environment(odd_tree, policy, config)
    strict = GSPO(policy, envs, config, on_error="error")
    with pytest.raises(UnusableSampleError, match=r"refcoco-unc-train.*--on-error skip"):
        [strict.collect() for _ in range(4)]


def test_odd_images_are_left_out_of_an_evaluation(odd_tree, tmp_path, capsys):
    policy = scripted_policy("qwen2.5-vl", {f"shape {n}": c for n, c in enumerate(OUTLINES, 1)})
    core = ReferringCore("refcoco", data_root=odd_tree, split="val", frame=policy.answer_frame)
    left_out = LeftOut()
    found = measure(policy, core, np.arange(6), max_new_tokens=200, left_out=left_out)
    assert found.indices.tolist() == [0, 1, 2, 3]
    assert found.iou.tolist() == [[1.0]] * 4
    assert len(left_out) == 2
    given = {"env": ENV, "data_root": str(odd_tree), "max_new_tokens": 200}
    scores = evaluate.TaskEvaluation(
        EvaluateArgs(output_dir=tmp_path / "a", **given), Console(), policy
    ).run()
    assert scores["giou"] == 1.0
    assert scores["questions"] == 4
    assert scores["left_out"] == left_out.reasons
    assert "2 samples left out" in (tmp_path / "a" / "report.md").read_text()
    assert "2 samples left out" in " ".join(capsys.readouterr().out.split())
    asked = len(policy.texts_written)
    policy.texts_written = []
    resumed = EvaluateArgs(output_dir=tmp_path / "a", resume=True, **given)
    assert evaluate.TaskEvaluation(resumed, Console(), policy).run() == scores
    assert asked
    assert not policy.texts_written, "what was left out is not asked about again"
    strict = EvaluateArgs(output_dir=tmp_path / "b", on_error="error", **given)
    with pytest.raises(UnusableSampleError, match="--on-error skip"):
        evaluate.TaskEvaluation(strict, Console(), policy).run()


def rows_of(policy, tree, left_out, count=12):
    """Questions and demonstrations as TRL's trainers get them."""
    core = ReferringCore("refcoco", data_root=tree, split="train", frame=policy.answer_frame)
    asked = QuestionRows(policy, core, 0, left_out)({"row": range(count)})
    config = SupervisedFineTuningConfig(tasks=("mask=1",), wording="plain")
    taught = DemonstrationRows(policy, core.dataset, config, left_out)
    return asked, [taught[index] for index in range(count)]


def test_odd_images_give_way_to_others_in_the_rows_of_trl(odd_tree, tree):
    policy = scripted_policy("qwen2.5-vl")
    left_out = LeftOut()
    asked, taught = rows_of(policy, odd_tree, left_out)
    assert len(left_out) == 2
    shown = [*(images[0] for images in asked["images"]), *(row["images"][0] for row in taught)]
    assert {image.shape[:2] for image in shown} <= set(SIZES)
    again = rows_of(policy, odd_tree, LeftOut())
    assert [row["prompt"] for row in again[1]] == [row["prompt"] for row in taught]
    assert again[0]["prompt"] == asked["prompt"]
    for index, row in enumerate(taught):
        image = row["images"][0]
        inputs = policy.prepare([image], [row["prompt"][0]["content"]])
        assert len(inputs["input_ids"]) == 1
        assert row["completion"][0]["content"] == policy.texts_written[0], index
    with pytest.raises(UnusableSampleError, match="--on-error skip"):
        rows_of(policy, odd_tree, LeftOut("error"))


def test_broken_images_are_left_out_of_cloning(odd_tree):
    dataset = open_dataset("refcoco", data_root=odd_tree, split="train")
    records = odd_tree / "train.jsonl"
    folder = "images/mscoco/images/train2014"
    records.write_text(
        "".join(
            json.dumps(
                {
                    "image": f"{folder}/COCO_train2014_{number:012d}.jpg",
                    "expression": dataset[number - 1].expression,
                    "rings": [ring.tolist() for ring in dataset[number - 1].target.rings],
                    "size": list(dataset[number - 1].target.size),
                }
            )
            + "\n"
            for number in range(1, 7)
        )
    )
    settings = {
        "processor": build_processor(SMALL),
        "tasks": ("text->mask",),
        "queries": QueryStyle(),
        "epsilon": 0.0,
        "decimals": 3,
        "workers": 1,
        "frame": find_answer_frame("permille"),
    }
    console = Console(record=True, width=300)
    images = RecordedImages(str(records))
    left_out = LeftOut()
    found = demonstrate_images(images, **settings, console=console, left_out=left_out)
    assert len(found) == 5
    assert [*left_out.reasons] == [str(odd_tree / folder / f"COCO_train2014_{BROKEN:012d}.jpg")]
    tokenizer = settings["processor"].tokenizer
    (dialogue,) = found[0].dialogues
    text = tokenizer.decode(dialogue.tokens[dialogue.answer_start : -1])
    assert decode(text, PERMILLE).valid
    with pytest.raises(UnusableSampleError, match="--on-error skip"):
        demonstrate_images(images, **settings, console=console, left_out=LeftOut("error"))


def test_files_of_answers_are_scored_without_images_that_have_no_frame(odd_tree, tmp_path):
    core = ReferringCore("refcoco", data_root=odd_tree, split="val")
    answers = tmp_path / "answers.jsonl"
    names = [core.dataset[index].id for index in range(len(core.dataset))]
    answers.write_text("".join(json.dumps({"id": name, "text": "[]"}) + "\n" for name in names))
    given = {"env": ENV, "data_root": str(odd_tree), "predictions": answers, "pictures": False}
    for frame, left_out in (("qwen2.5-vl", 1), ("unit", 0), ("guess", None)):
        args = EvaluateArgs(frame=frame, output_dir=tmp_path / frame, **given)
        scores = evaluate.main(args)
        if left_out is not None:
            assert len(scores["left_out"]) == left_out
            assert scores["questions"] == len(names) - left_out
        else:
            assert "qwen2.5-vl" not in {reading["family"] for reading in scores["frames"]}


def test_exceptions_in_rewards_are_no_odd_images(tree):
    class Faulty(Reward):
        name = "faulty"

        def __call__(self, predictions, targets):
            raise ZeroDivisionError("a bug")

    policy = scripted_policy("unit")
    config = GSPOConfig(prompts_per_update=2, group_size=2, max_new_tokens=200, muon=False)
    envs = gym.make_vec(
        ENV,
        num_envs=4,
        autoreset_mode="Disabled",
        data_root=str(tree),
        rewards=[(Faulty(), 1.0)],
    )
    with pytest.raises(ZeroDivisionError, match="a bug"):
        GSPO(policy, envs, config).collect()


def test_where_nothing_can_be_used_training_says_so(tmp_path):
    root = write_tree(tmp_path, [(2, 500)] * 2, [[(0, 0), (240, 0), (240, 2), (0, 2)]] * 2)
    policy = scripted_policy("qwen2.5-vl")
    config = GSPOConfig(prompts_per_update=2, group_size=2, max_new_tokens=9, muon=False)
    with pytest.raises(UnusableSampleError, match="2 samples left out: 2 as"):
        GSPO(policy, vector_environment(root, policy, config), config).collect()


def test_the_frame_of_answers_is_guessed_from_evidence(tree, tmp_path, capsys):
    core = ReferringCore("refcoco", data_root=tree, split="val", frame="permille")
    lines = [
        json.dumps({"id": sample.id, "text": answer(sample, "text->mask", frame=core.answer_frame)})
        for sample in (core.dataset[index] for index in range(len(core.dataset)))
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines) + "\n")
    args = EvaluateArgs(
        env=ENV,
        data_root=str(tree),
        predictions=path,
        frame="guess",
        output_dir=tmp_path / "out",
    )
    found = evaluate.main(args)
    best, *others = found["frames"]
    assert best["family"] == "permille"
    assert best["in_range"] == best["read"] == 1.0
    assert best["iou"] > 0.99
    assert all(other["iou"] < 0.5 for other in others)
    assert {other["family"] for other in others} == {"unit", "pixels", "qwen2.5-vl"}
    assert "seem to be in frame permille" in found["conclusion"]
    assert "--frame permille" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out" / "scores.json").exists(), "nothing is chosen silently"
    path.write_text("\n".join(json.dumps({**json.loads(line), "text": "?"}) for line in lines))
    assert "No reading is clearly better" in evaluate.main(args)["conclusion"]
