"""Letting a policy answer the questions of a data set, batch by batch, with what is done kept."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from agents.loading import recorded_frame
from agents.policy import VLMPolicy
from experiments.evaluate_answers import (
    Answer,
    append_answers,
    keep_whole_answers,
    read_answers,
)
from experiments.evaluate_frames import Reader, choose_reader
from experiments.evaluate_options import Args
from experiments.evaluation import ask, question_noise
from experiments.files import write_json
from experiments.policies import EMBEDDED, LONGEST_OUTLINE, SHIPPED, open_policy
from experiments.progress import progress_bar
from rewards.mask_iou import MaskIoU
from seg_env.envs.core import Question, ReferringCore
from seg_env.frames import ResizeSettings
from seg_env.tasks import query_of

LONGEST_OTHERS = 1024
"""Tokens of the longest answer of a policy that is not the embedded one."""


def open_answerer(args: Args) -> VLMPolicy:
    """The policy that the command line names."""
    name = args.policy or EMBEDDED
    return open_policy(name, args.precision, trust_remote_code=args.trust_remote_code)


def answer(
    args: Args,
    core: ReferringCore,
    questions: int,
    console: Console,
    policy: VLMPolicy | None = None,
) -> tuple[Reader, Path]:
    """Let the policy answer the first questions into ``answers.jsonl``.

    Args:
        args: The command line.
        core: Who asks.
        questions: How many questions.
        console: Where progress is shown.
        policy: The policy that the command line names, if it is open already.

    Returns:
        How its answers are read, and the file.

    Raises:
        FileExistsError: There are answers already and ``--resume`` was not given.
        ValueError: They are there by other settings.
    """
    path = args.output_dir / "answers.jsonl"
    name = args.policy or EMBEDDED
    _check_resume(args, path)
    policy = policy or open_answerer(args)
    reader = choose_reader(
        args.frame,
        model_type=policy.model.config.model_type,
        model_name=name,
        recorded=recorded_frame(policy.model),
        settings=ResizeSettings.from_processor(getattr(policy.processor, "image_processor", None)),
        canvas_size=core.canvas_size,
    )
    console.print(f"{name}: frame {reader.description}", highlight=False, markup=False)
    longest = args.max_new_tokens or (LONGEST_OUTLINE if name in SHIPPED else LONGEST_OTHERS)
    collect_answers(
        policy,
        core,
        reader,
        path,
        questions=questions,
        temperature=args.temperature,
        answers=args.answers,
        max_new_tokens=longest,
        batch_size=args.batch_size,
        seed=args.seed,
        console=console,
    )
    given = [each.tokens or 0 for some in read_answers(path).values() for each in some]
    cut_off = sum(tokens >= longest for tokens in given) / len(given)
    if cut_off > 0.01:
        console.print(
            f"[yellow]{cut_off:.0%} of the answers were cut off at {longest} tokens; see "
            f"--max-new-tokens[/yellow]",
            highlight=False,
        )
    return reader, path


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
    reader: Reader,
    path: Path,
    *,
    questions: int,
    temperature: float,
    answers: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    console: Console,
) -> None:
    """Ask the first questions of a data set and append the answers to a file as they come.

    Batches that the file holds whole are not asked again. Each question has random numbers of its
    own, so the answers are the same whether or not the run was interrupted.

    Args:
        policy: Who answers.
        core: Who asks.
        reader: Reads the answers for the running score; the file keeps them as written.
        path: The file, see `read_answers`.
        questions: How many questions.
        temperature: 0 for greedy answers.
        answers: Answers per question.
        max_new_tokens: Longest answer.
        batch_size: Questions at a time.
        seed: Seed of sampling.
        console: Where the progress bar is drawn.
    """
    known = keep_whole_answers(path, answers)
    policy.model.eval()
    total, count = 0.0, 0
    with progress_bar(console) as progress:
        task = progress.add_task("answering", total=questions, status="")
        for start in range(0, questions, batch_size):
            stop = min(start + batch_size, questions)
            ids = [core.dataset[index].id for index in range(start, stop)] if known else []
            if not ids or any(identifier not in known for identifier in ids):
                batch = [_ask(core, reader, index) for index in range(start, stop)]
                texts, lengths = ask(
                    policy,
                    batch,
                    temperature=temperature,
                    answers=answers,
                    max_new_tokens=max_new_tokens,
                    noise=question_noise(seed, range(start, stop), answers, max_new_tokens).to(
                        policy.device
                    ),
                )
                given = [Answer(*pair) for pair in zip(texts, lengths, strict=True)]
                rows = [
                    (question.sample.id, given[row * answers : (row + 1) * answers])
                    for row, question in enumerate(batch)
                ]
                append_answers(path, [row for row in rows if row[0] not in known])
                total += _sum_of_scores(reader, texts, batch, answers)
                count += len(texts)
            status = f"score {total / count:.3f}" if count else "answered before"
            progress.update(task, completed=stop, status=status)


def _ask(core: ReferringCore, reader: Reader, index: int) -> Question:
    """A question whose numbers, if it gives any, are those that the policy writes."""
    gives_place = any(query_of(task) != "text" for task in core.tasks.tasks)
    frame = reader.frame(core.dataset[index]) if gives_place else None
    return core.ask(index, frame=frame)


def _sum_of_scores(reader: Reader, texts: list[str], batch: list[Question], answers: int) -> float:
    """IoU of outlines or boxes, or points on the object, summed."""
    asked = [question for question in batch for _ in range(answers)]
    read = [
        reader.read(text, question.sample, question.form)
        for text, question in zip(texts, asked, strict=True)
    ]
    return float(MaskIoU()(read, [question.sample.target for question in asked]).sum())
