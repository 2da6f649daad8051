"""The environment under TRL's GRPOTrainer: questions as rows, its scores as rewards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from agents.advantages import degenerate_fraction, group_advantages, group_std
from agents.policy.processing import harmless, special_tokens
from agents.screening import Prepare, require_usable
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import TRIES, LeftOut, first_usable, loading


class QuestionRows:
    """An endless, ordered supply of questions, drawn with equal probability.

    Row ``i`` follows from the seed and ``i`` alone: an interrupted run goes on with the questions
    it would have had. Pictures are loaded when a batch is asked for and kept until the next one: a
    group, and every pass over it, reads its picture once.
    """

    def __init__(
        self,
        core: ReferringCore,
        tokenizer: Any,
        prepare: Prepare,
        seed: int,
        left_out: LeftOut | None = None,
    ) -> None:
        """Ask the questions of ``core`` in a form that a processor reads.

        Args:
            core: Whose questions.
            tokenizer: The policy's.
            prepare: Makes model inputs of an image and a prompt, see `VLMPolicy.prepare_on_cpu`.
            seed: What the choice of questions depends on.
            left_out: Told of samples that cannot be used, which give way to others; by default they
                are an error.
        """
        self.core, self.seed = core, seed
        self.left_out = LeftOut("error") if left_out is None else left_out
        self._prepare = prepare
        self._usable: set[int] = set()
        self.special = tuple(special_tokens(tokenizer).values())
        self._questions: dict[int, Question] = {}

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Rows whose numbers are in column ``row``, as columns: a transform of ``datasets``."""
        known = self._questions
        self._questions = {
            row: known[row] if row in known else self._ask(row)
            for row in dict.fromkeys(batch["row"])
        }
        questions = [self._questions[row] for row in batch["row"]]
        return {
            "prompt": [
                [{"role": "user", "content": harmless(q.prompt, self.special)}] for q in questions
            ],
            "images": [[question.image] for question in questions],
            "question": questions,
        }

    def _ask(self, row: int) -> Question:
        """The question of a row: the first of those drawn that can be asked.

        Raises:
            UnusableSampleError: One cannot be and is not to be left out, or none can.
        """
        rng = np.random.default_rng([self.seed, row])

        def load(index: int) -> Question:
            query_seed = self.core.draw_seed(rng)
            with loading():
                question = self.core.ask(index, query_seed=query_seed)
            if index not in self._usable:
                require_usable(self._prepare, question.image, question.prompt)
                self._usable.add(index)
            return question

        choices = (self.core.draw(rng) for _ in range(TRIES))
        return first_usable(choices, load, self.core.dataset, self.left_out)


class EnvironmentReward:
    """What the environment makes of answers, as a reward function of TRL.

    It returns finished advantages, `group_advantages` with our floor, which GRPOTrainer has no
    setting for. Told not to scale rewards, it subtracts the mean of each group, which is 0 already.
    The rewards themselves are logged under the names that our own agents use.
    """

    __name__ = "advantage"

    def __init__(
        self,
        core: ReferringCore,
        group_size: int,
        spread_floor: float | None,
        end_ids: Collection[int],
    ) -> None:
        """Score by ``core``, the one scoring path of all.

        Args:
            core: Scores the answers.
            group_size: See `group_advantages`.
            spread_floor: See `group_advantages`.
            end_ids: Tokens that end an answer; those without one have been cut off.
        """
        self.core, self.group_size, self.spread_floor = core, group_size, spread_floor
        self.end_ids = frozenset(end_ids)

    def __call__(
        self,
        *,
        completions: Sequence[Sequence[Mapping[str, str]]],
        completion_ids: Sequence[Sequence[int]],
        question: Sequence[Question],
        log_metric: Callable[[str, float], None],
        **others: object,
    ) -> list[float]:
        """Score whole groups of answers, the answers to one question next to each other.

        Args:
            completions: ``N`` conversations of one answer each.
            completion_ids: Tokens of the answers.
            question: ``N`` questions, a column of `QuestionRows`.
            log_metric: Takes the name and the value of a figure.
            others: What else TRL passes to every reward function.

        Raises:
            ValueError: The answers do not come in whole groups.
        """
        groups = [
            question[i : i + self.group_size] for i in range(0, len(question), self.group_size)
        ]
        if len(question) % self.group_size or any(one is not g[0] for g in groups for one in g):
            raise ValueError(
                f"{len(question)} answers do not come in whole groups of {self.group_size}: "
                "advantages are relative to the other answers to the same question"
            )
        scores = self.core.score([answer[0]["content"] for answer in completions], question)
        rewards = torch.tensor(scores.total, dtype=torch.float32)
        figures = {
            "reward": rewards.mean().item(),
            "iou": scores.iou.mean(),
            "valid": np.mean([prediction.valid for prediction in scores.predictions]),
            "vertices": np.mean([sum(map(len, p.rings)) for p in scores.predictions]),
            "tokens": np.mean([len(tokens) for tokens in completion_ids]),
            "truncated": np.mean([self.end_ids.isdisjoint(each[-1:]) for each in completion_ids]),
            "group_spread": group_std(rewards, self.group_size).mean().item(),
            "degenerate_groups": degenerate_fraction(rewards, self.group_size),
            **{f"reward/{name}": values.mean() for name, values in scores.terms.items()},
        }
        for name, value in figures.items():
            log_metric(f"rollout/{name}", float(value))
        advantages = group_advantages(rewards, self.group_size, self.spread_floor)
        found: list[float] = advantages.tolist()
        return found
