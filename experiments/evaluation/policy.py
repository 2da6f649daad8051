"""Letting a policy answer the questions of a data set, batch by batch, with what is done kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.policy.model import VLMPolicy
from agents.screening import prepare_usable
from experiments.common.logs import progress_bar, write_json
from experiments.common.policies import (
    EMBEDDED,
    answer_length,
    compare_on_questions,
    longest_answer,
    open_policy,
)
from experiments.evaluation.answers import (
    Answer,
    append_answers,
    keep_whole_answers,
    read_answers,
)
from experiments.evaluation.loop import answer as answer_batch
from experiments.evaluation.loop import question_noise
from experiments.evaluation.options import Args
from rewards.mask_iou import MaskIoU
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, ask_each, name_of


def open_answerer(args: Args, console: Console) -> VLMPolicy:
    """The policy that the command line names; says which frame it writes in."""
    return open_policy(
        args.policy or EMBEDDED,
        args.precision,
        frame=args.policy_frame,
        console=console,
        trust_remote_code=args.trust_remote_code,
    )


def answer(
    args: Args, core: ReferringCore, questions: int, console: Console, policy: VLMPolicy
) -> tuple[Path, LeftOut]:
    """Let the policy answer the first questions into ``answers.jsonl``.

    Args:
        args: The command line.
        core: Who asks.
        questions: How many questions.
        console: Where progress is shown.
        policy: The policy that the command line names.

    Returns:
        The file, and which questions could not be asked.

    Raises:
        FileExistsError: There are answers already and ``--resume`` was not given.
        ValueError: They are there by other settings.
        UnusableSampleError: No question can be asked, or one cannot and is not to be left out.
    """
    path = args.output_dir / "answers.jsonl"
    _check_resume(args, path)
    length = answer_length(args.max_new_tokens, args.policy or EMBEDDED)
    longest = longest_answer(length, policy, core, console)
    left_out = LeftOut(args.on_error)
    noted = path.with_name("left_out.json")
    if noted.exists() and args.on_error == "skip":
        left_out.update(json.loads(noted.read_text()))
    collect_answers(
        policy,
        core,
        path,
        questions=questions,
        temperature=args.temperature,
        answers=args.answers,
        max_new_tokens=longest,
        batch_size=args.batch_size,
        seed=args.seed,
        console=console,
        left_out=left_out,
    )
    write_json(noted, left_out.reasons)
    given = [each.tokens or 0 for some in read_answers(path).values() for each in some]
    if not given:
        raise UnusableSampleError(f"no question can be asked: {left_out.summary()}")
    if left_out:
        console.print(f"[yellow]{left_out.summary()}[/yellow]", highlight=False, soft_wrap=True)
    cut_off = sum(tokens >= longest for tokens in given) / len(given)
    if cut_off > 0.01:
        console.print(
            f"[yellow]{cut_off:.0%} of the answers were cut off at {longest} tokens; see "
            f"--max-new-tokens[/yellow]",
            highlight=False,
        )
    return path, left_out


def show_vision(
    args: Args, core: ReferringCore, policy: VLMPolicy, console: Console
) -> dict[str, Any]:
    """Show whether the policy sees, and write ``vision.json``.

    Raises:
        SystemExit: It does not.
        ValueError: There are not two questions about different images.
    """
    report = compare_on_questions(policy, core)
    write_json(args.output_dir / "vision.json", report.to_json())
    table = Table(title="True answers, scored with other images")
    for heading in ("image", "nats a token", "largest change of a token"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    table.add_row("their own", f"{report.own:.4f}", f"{report.rounding:.2g} (rounding)")
    table.add_row("another one", f"{report.other:.4f}", f"{report.change_other:.2g}")
    table.add_row("a blank one", f"{report.blank:.4f}", f"{report.change_blank:.2g}")
    console.print(table)
    console.print(report.sentence, highlight=False, soft_wrap=True)
    if not report.sees:
        raise SystemExit(1)
    return report.to_json()


def _check_resume(args: Args, path: Path) -> None:
    """Answers that are there already stay only when asked for, and only with equal settings."""
    record = path.with_name("asked.json")
    wanted = args.asked()
    if path.exists():
        if not args.resume:
            raise FileExistsError(
                f"{path} holds answers already: pass --resume to keep them, or another --output-dir"
            )
        found = json.loads(record.read_text()) if record.exists() else wanted
        changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if changed:
            raise ValueError(
                f"the answers in {path} were asked for with other values of {', '.join(changed)}: "
                f"resume with the same ones, or use another --output-dir"
            )
    write_json(record, wanted)


def collect_answers(
    policy: VLMPolicy,
    core: ReferringCore,
    path: Path,
    *,
    questions: int,
    temperature: float,
    answers: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    console: Console,
    left_out: LeftOut,
) -> None:
    """Ask the first questions of a data set and append the answers to a file as they come.

    Batches that the file holds whole are not asked again. Each question has random numbers of its
    own, so the answers are the same whether or not the run was interrupted.

    Args:
        policy: Who answers.
        core: Who asks.
        path: The file, see `read_answers`.
        questions: How many questions.
        temperature: 0 for greedy answers.
        answers: Answers per question.
        max_new_tokens: Longest answer.
        batch_size: Questions at a time.
        seed: Seed of sampling.
        console: Where the progress bar is drawn.
        left_out: Told of questions that cannot be asked.

    Raises:
        UnusableSampleError: A question cannot be asked and is not to be left out.
    """
    known = keep_whole_answers(path, answers)
    policy.model.eval()
    total, count = 0.0, 0
    with progress_bar(console) as progress:
        task = progress.add_task("answering", total=questions, status="")
        for start in range(0, questions, batch_size):
            stop = min(start + batch_size, questions)
            names = {index: name_of(core.dataset, index) for index in range(start, stop)}
            usable = [index for index, name in names.items() if name not in left_out.reasons]
            if any(names[index] not in known for index in usable):
                batch = ask_each(core, usable, left_out)
                batch, inputs = prepare_usable(policy, batch, left_out)
                if batch:
                    asked = [question.index for question in batch]
                    texts, lengths = answer_batch(
                        policy,
                        inputs,
                        temperature=temperature,
                        answers=answers,
                        max_new_tokens=max_new_tokens,
                        noise=question_noise(seed, asked, answers, max_new_tokens),
                    )
                    given = [Answer(*pair) for pair in zip(texts, lengths, strict=True)]
                    rows = [
                        (question.sample.id, given[row * answers : (row + 1) * answers])
                        for row, question in enumerate(batch)
                    ]
                    append_answers(path, [row for row in rows if row[0] not in known])
                    total += _sum_of_scores(core, texts, batch, answers)
                    count += len(texts)
            status = f"score {total / count:.3f}" if count else "answered before"
            progress.update(task, completed=stop, status=status)


def _sum_of_scores(
    core: ReferringCore, texts: list[str], batch: list[Question], answers: int
) -> float:
    """IoU of outlines or boxes, or points on the object, summed."""
    asked = [question for question in batch for _ in range(answers)]
    targets = [question.sample.target for question in asked]
    return float(MaskIoU()(core.read(texts, asked), targets).sum())
