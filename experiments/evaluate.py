"""Score answers: those of a policy, or those that any system wrote into a file.

With no arguments the embedded policy answers 512 held-out scenes. The folder ``runs/evaluate`` then
holds ``scores.json``, ``per_sample.parquet``, ``report.md``, ``worst.png`` and ``best.png``,
and ``answers.jsonl`` with what was answered.
A file of answers has one JSON object a line: {"id": sample id, "text": answer}.

    python experiments/evaluate.py
    python experiments/evaluate.py --env SimpleSeg-RefCOCO-v0 --data-root DATA --policy FOLDER
    python experiments/evaluate.py --predictions answers.jsonl --frame permille
    python experiments/evaluate.py --predictions answers.jsonl --frame guess
    python experiments/evaluate.py --task all
    python experiments/evaluate.py --policy FOLDER --check-vision
    python experiments/evaluate.py --ceiling --epsilon 0 .001 .005 .01 .02
    torchrun --nproc_per_node 8 experiments/evaluate.py --policy FOLDER
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown

from experiments.common.arguments import TaskArguments
from experiments.common.command import opening, run_command
from experiments.common.logs import warn, write_atomically, write_json
from experiments.common.policies import (
    EMBEDDED,
    compare_on_questions,
    longest_answer,
    say_what_is_asked,
)
from experiments.evaluation.answers import (
    Answered,
    Answers,
    Boxes,
    Missing,
    match_answers,
    read_answers,
)
from experiments.evaluation.reader import GUESS, compare_frames, conclusion, reading_table
from seg_env.data.base import not_asked
from seg_env.data.sources import Part
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading, name_of
from seg_env.envs.referring import open_questions
from seg_env.errors import WrongOptionError
from seg_env.frames import AUTO, ResizeSettings, find_answer_frame
from seg_env.tasks import DEFAULT_TASK, TASKS, Task

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy

# What draws, scores or opens a policy is imported where it is needed: it takes seconds.

EVERY_TASK = "all"
"""The value of ``--task`` that scores each of them."""
FIRST = {
    "What is asked": ("env", "dataset", "data-root", "split", "task", "questions"),
    "Who answers": ("policy", "predictions", "frame"),
    "The evaluation": ("seed", "output-dir", "resume"),
}


@dataclass
class Args(TaskArguments):
    """Score the answers of a policy, or of any system."""

    frame: str = AUTO
    """Frame of the numbers in answers: auto (the one the policy's folder records, else its
    family's), unit, permille, pixels, qwen2.5-vl, florence, paligemma, pixel:WxH, or a model type
    such as qwen3_vl; guess reads the answers in every frame, shows the results and stops."""
    task: str = DEFAULT_TASK
    """What is given and asked for: one of seg_env.tasks.TASKS, or ``all`` for a table of every
    task."""
    split: str = "val"
    """Split to ask about; a --dataset that is one file is asked about whole."""
    part: Part | None = None
    """For a --dataset without splits: only the tenth of its images that training holds out, or only
    the rest."""
    questions: int | None = None
    """Number of samples, the first ones; by default 512 scenes, and all of any other data set."""
    temperature: float = 0.0
    """0 for greedy answers."""
    answers: int = 1
    """Answers per question."""
    batch_size: int = 64
    """Questions at a time."""
    resume: bool = False
    """Keep the answers that the folder holds already and ask only for the others."""
    check_vision: bool = False
    """Only show whether the policy sees: how likely true answers are with their image, with another
    one and with a blank one."""

    predictions: Path | None = None
    """File of answers to score instead of a policy's."""
    min_pixels: int = ResizeSettings.min_pixels
    """For --predictions with --frame qwen2.5-vl: as the processor was set."""
    max_pixels: int = ResizeSettings.max_pixels
    """For --predictions with --frame qwen2.5-vl: as the processor was set."""
    missing: Missing = "error"
    """Questions without an answer in --predictions: an error, empty answers, or skipped."""
    ignore_unknown: bool = False
    """Ignore answers in --predictions to questions that are not asked."""

    empty_union: float = 1.0
    """IoU where answer and target are both empty: 1 as in Text4Seg and LISA, 0 as in
    VisionReasoner."""
    boxes: Boxes = "annotated"
    """What boxes are compared with: the annotated one, where the data set has it, or the mask's."""
    details: bool = True
    """Also boundary scores, PoLiS and the ceiling of each sample; some milliseconds an answer."""
    pictures: bool = True
    """Also draw the worst and best answers."""
    compare: Path | None = None
    """Folder or per_sample file of another evaluation: paired gains over it."""
    ceiling: bool = False
    """Only measure the best scores that the representation allows."""
    epsilon: tuple[float, ...] = (0.0, 0.001, 0.005, 0.01, 0.02)
    """For --ceiling: tolerances of the outline's simplification, as shares of its perimeter."""
    decimals: tuple[int, ...] = (3,)
    """For --ceiling: digits after the point."""
    output_dir: Path = Path("runs/evaluate")
    """Folder for what is written."""

    @property
    def asks_policy(self) -> bool:
        """Whether answers are those of a policy."""
        return self.predictions is None and not self.ceiling

    @property
    def policy_frame(self) -> str:
        """The frame to open a policy with: nothing is assumed while frames are compared."""
        return AUTO if self.frame == GUESS else self.frame

    def environment(self) -> dict[str, Any]:
        """Arguments of the environment that are not left at their defaults."""
        found = super().environment() | self._given("part")
        if found.get("on_error") == "skip" and self.part is None:
            # Answers can be scored without images, and each question is looked at anyway.
            found["on_error"] = "defer"
        return found

    def asked(self) -> dict[str, Any]:
        """The settings that decide what a policy answers; JSON-able."""
        names = ("env", "policy", "temperature", "answers", "max_new_tokens", "batch_size")
        named = {name: getattr(self, name) for name in (*names, "precision", "seed")}
        return {**self.environment(), **named, "frame": self.policy_frame}


def main(args: Args) -> dict[str, Any]:
    """Run the evaluation.

    Returns:
        What ``scores.json`` (or ``ceiling.json``, ``frames.json``, ``vision.json``) holds; nothing
        on other ranks than the main one.
    """
    if args.policy is not None and args.predictions is not None:
        raise WrongOptionError(
            "--policy and --predictions are both given; answers come from one of them"
        )
    if args.task == EVERY_TASK and not (args.asks_policy and args.compare is None):
        raise WrongOptionError(
            f"--task {EVERY_TASK} asks a policy; --predictions, --compare and --ceiling are about "
            f"one task: name it"
        )
    if not args.asks_policy:
        # Answers in a file are scored by one process.
        main_process = os.environ.get("RANK", "0") == "0"
        return TaskEvaluation(args, Console()).run() if main_process else {}

    from experiments.common.launch import launched
    from experiments.evaluation.report import write_task_table

    with launched(None) as (_, console):
        with opening():
            policy = replace(args, frame=args.policy_frame).open_policy(console)
        if args.task != EVERY_TASK:
            return TaskEvaluation(args, console, policy).run()
        found: dict[Task, dict[str, Any]] = {}
        for task in TASKS:
            console.print(f"[bold]{task}[/bold]", highlight=False)
            folder = args.output_dir / task.replace("->", "-to-")
            settings = replace(args, task=task, output_dir=folder)
            found[task] = TaskEvaluation(settings, console, policy).run()
        return write_task_table(args.output_dir, found, console) if all(found.values()) else {}


class TaskEvaluation:
    """The questions of one task, and the evaluation of the answers to them."""

    def __init__(self, args: Args, console: Console, policy: VLMPolicy | None = None) -> None:
        """Open the questions; ``policy`` is the one that the arguments name, if one answers."""
        self.args, self.console, self.policy = args, console, policy
        self.folder, self.left_out = args.output_dir, LeftOut(args.on_error)
        with opening():
            if policy is not None:
                frame = policy.answer_frame
            else:
                name = "unit" if args.ceiling and args.policy_frame == AUTO else args.policy_frame
                settings = ResizeSettings(min_pixels=args.min_pixels, max_pixels=args.max_pixels)
                frame = find_answer_frame(name, resize=settings)
            self.core = open_questions(args.env, **args.environment(), frame=frame)
            if len(self.core.tasks.tasks) > 1:
                raise WrongOptionError(
                    f"--task {args.task}: name one task, or {EVERY_TASK}, to score each alone"
                )
            asked = args.policy or EMBEDDED if policy is not None else ""
            say_what_is_asked(asked, self.core.dataset, console)
            dataset, available = self.core.dataset, len(self.core.dataset)
            usual = min(512, available) if dataset.name.startswith("scenes") else available
            self.questions = usual if args.questions is None else args.questions
            if not 1 <= self.questions <= available:
                raise WrongOptionError(
                    f"--questions {self.questions}: {dataset.name} ({dataset.split}) has "
                    f"{available}; use 1 to {available}"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            if args.ceiling:
                self.core.require_outlines("--ceiling")

    def run(self) -> dict[str, Any]:
        """Ask, score and report; nothing on other ranks than the main one."""
        if self.args.ceiling:
            return self.show_ceiling()
        if self.policy is not None and self.args.check_vision:
            return self.show_vision(self.policy)
        answers = self.answers()
        if answers is None:
            return {}
        unread = len(self.left_out) if self.policy is None else 0
        asked = self.names()
        for name in self.left_out.reasons:
            answers.pop(name, None)
        if self.args.on_error == "skip":
            self.leave_out_odd(asked, answers, unread)
        with opening():
            answered = match_answers(
                answers,
                asked,
                count=self.args.answers,
                missing=self.args.missing,
                # A folder may hold more answers of a policy than are asked for this time.
                ignore_unknown=self.args.ignore_unknown or self.policy is not None,
            )
        if self.args.frame == GUESS:
            return self.guess_frame(answered)
        return self.score(answered, missing=sum(name not in answers for name in asked.values()))

    def answers(self) -> Answers | None:
        """The answers of the policy or the file; None on other ranks than the main one."""
        args = self.args
        if args.predictions is not None:
            with opening():
                return read_answers(args.predictions, left_out=self.left_out)
        assert self.policy is not None

        from experiments.evaluation.loop import collect_answers

        length = args.answer_length()
        return collect_answers(
            self.policy,
            self.core,
            self.folder,
            args.asked(),
            questions=self.questions,
            max_new_tokens=longest_answer(length, self.policy, self.core, self.console),
            resume=args.resume,
            console=self.console,
            left_out=self.left_out,
        )

    def leave_out_odd(self, asked: dict[int, str], answers: Answers, unread: int) -> None:
        """Leave out questions with too many or too few answers, if others have the right number.

        If ``unread`` lines of a file cannot be read, as many questions may have no answer.
        """
        count = self.args.answers
        odd = {name for name, given in answers.items() if len(given) != count}
        absent = [index for index, name in asked.items() if name not in answers]
        if self.args.missing == "error" and len(absent) <= unread:
            for index in absent:
                del asked[index]  # already counted by their lines
        if len(odd) == len(answers):
            return  # which says that --answers is wrong
        for index, name in list(asked.items()):
            if name in odd:
                del asked[index]
                given = f"{len(answers.pop(name))} answers and --answers is {count}"
                self.left_out.add(name, UnusableSampleError(given))

    def names(self) -> dict[int, str]:
        """The questions that count, by place; those with images that the family refuses do not."""
        dataset, found = self.core.dataset, {}
        names = [name_of(dataset, index) for index in range(self.questions)]
        for name, count in Counter(names).items():
            if count > 1:
                self.left_out.add(name, UnusableSampleError(f"{count} samples have this id"))
        for index, name in enumerate(names):
            if name in self.left_out.reasons:
                continue
            try:
                with loading():
                    self.core.answer_frame.for_image(dataset[index].target.size)
                found[index] = name
            except UnusableSampleError as error:
                self.left_out.add(name, error)
        if not found:
            raise UnusableSampleError(f"no question can be asked: {self.left_out.summary()}")
        return found

    def show_vision(self, policy: VLMPolicy) -> dict[str, Any]:
        """Show whether the policy sees, and write ``vision.json``.

        Raises:
            SystemExit: It does not.
            TooFewImagesError: There are not two questions about different images.
        """
        from agents.training.distributed import World

        report = compare_on_questions(policy, self.core)
        if World.current().is_main:
            write_json(self.folder / "vision.json", report.to_json())
        self.console.print(report.sentence, highlight=False, soft_wrap=True)
        if not report.sees:
            raise SystemExit(1)
        return report.to_json()

    def guess_frame(self, answered: Answered) -> dict[str, Any]:
        """Read the first answers in every frame, show the results, write ``frames.json``."""
        some = list(answered)[:256]
        samples = [self.core.dataset[index] for index in some]
        texts = [answered[index][0].text for index in some]
        readings = compare_frames(self.core.answer_frame, texts, samples, self.core.tasks.forms[0])
        found = {
            "answers": len(some),
            "frames": [reading.to_json() for reading in readings],
            "conclusion": conclusion(readings),
        }
        write_json(self.folder / "frames.json", found)
        self.console.print(reading_table(readings))
        self.console.print(found["conclusion"], highlight=False, markup=False, soft_wrap=True)
        if self.policy is not None:
            path = self.folder / "answers.jsonl"
            kept = f"the answers stay as they are: --predictions {path} --frame NAME scores them"
            self.console.print(kept, highlight=False, markup=False, soft_wrap=True)
        return found

    def score(self, answered: Answered, missing: int) -> dict[str, Any]:
        """Measure the answers, write everything, print what matters most."""
        from experiments.evaluation import report
        from experiments.evaluation import scores as scoring

        args, core, folder = self.args, self.core, self.folder
        columns = scoring.measure_answers(
            core,
            answered,
            details=args.details and core.tasks.forms == ("mask",),
            empty_union=args.empty_union,
            console=self.console,
            boxes=args.boxes,
        )
        decoding = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
        scores: dict[str, Any] = {
            "source": str(args.predictions or f"policy {args.policy or EMBEDDED}"),
            "env": args.env,
            "task": str(core.tasks),
            "dataset": core.dataset.name,
            "split": core.dataset.split,
            "split_by": getattr(core.dataset, "split_by", ""),
            "questions": len(answered),
            "missing": missing,
            "missing_rule": args.missing,
            "answers_per_question": args.answers,
            "decoding": decoding if args.asks_policy else "",
            "frame": core.answer_frame.description,
            "seed": args.seed,
            "left_out": self.left_out.reasons,
            "not_asked": not_asked(core.dataset),
        }
        how = args.answers, args.empty_union, args.seed
        scores |= scoring.score(columns, *how)
        if args.compare is not None:
            with opening():
                other = scoring.load_samples(args.compare)
            scores["compared_with"] = str(args.compare)
            scores["gains"] = scoring.gains(other, columns, *how)
        scoring.save_samples(folder, columns)
        write_json(folder / "scores.json", scores)
        text = report.report_text(scores)
        self.console.print(Markdown(text))
        if args.pictures:
            text += report.draw_images(folder, core, answered, columns, scores)
        write_atomically(folder / "report.md", text)
        self.console.print(f"report: {folder / 'report.md'}", highlight=False)
        return scores

    def show_ceiling(self) -> dict[str, Any]:
        """Measure what the representation allows, print it, and write ``ceiling.json``."""
        from experiments.evaluation.ceiling import ceiling_table, measure_ceilings

        args, core = self.args, self.core
        whole_numbers = core.answer_frame.widest().integer
        questions = list(self.names())
        if self.left_out:
            warn(self.console, self.left_out.summary())
        rows = measure_ceilings(
            core,
            questions,
            args.epsilon,
            args.decimals[:1] if whole_numbers else args.decimals,
            empty_union=args.empty_union,
            console=self.console,
        )
        found = {
            "env": args.env,
            "dataset": core.dataset.name,
            "split": core.dataset.split,
            "questions": len(questions),
            "left_out": self.left_out.reasons,
            "frame": core.answer_frame.description,
            "empty_union": args.empty_union,
            "ceilings": rows,
        }
        write_json(self.folder / "ceiling.json", found)
        self.console.print(ceiling_table(found))
        return found


def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what the command line, or ``words``, ask for."""
    return run_command(Args, main, __doc__, FIRST, words)


if __name__ == "__main__":
    command_line()
