"""Episodes of several turns: answer, look at the outline drawn on the image, correct it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from gymnasium import spaces

from seg_env.envs.core import Observation, Question, ReferringCore
from seg_env.envs.edits import RingText, apply_edits, parse_edits, split_outline, write_outline
from seg_env.envs.episodes import Episode, EpisodeRules, Outcome
from seg_env.envs.render import draw_outline
from seg_env.envs.spaces import FreeText
from seg_env.grammar import decode
from seg_env.types import Prediction

REFINE_PROMPT = (
    "{question} Your outline so far is drawn in the image: {outline}. Answer with a better "
    "outline, with edits (move i x y; insert i x y; delete i), or with done. "
    "Turn {turn} of {turns}."
)

_PLACEHOLDER = re.compile(r"\{(question|outline|turns?)\}")
_EMPTY = Prediction((), (), "[]")


class TurnFault(StrEnum):
    """Why a turn left the outline as it was. Values are stable: ``info["fault"]`` has them."""

    NONE = ""
    TOO_LONG = "too_long"
    """The action, or the outline it leads to, has too many characters."""
    UNREADABLE = "unreadable"
    """Neither an outline (a text with a bracket), nor edits, nor ``done``."""
    MALFORMED = "malformed"
    """The outline, or what the edits made of it, has the faults that ``info["issues"]`` lists."""
    NO_SUCH_VERTEX = "no_such_vertex"
    """An edit names a vertex that is not there."""


@dataclass(frozen=True, eq=False)
class RefineEpisode(Episode):
    """An outline that is being improved."""

    turn: int = 0
    """Turns taken."""
    outline: Prediction | None = None
    """The last outline that was read, None before the first."""
    rings: tuple[RingText, ...] = ()
    """Its vertices as they are written."""
    value: float = 0.0
    """Its reward; 0 before the first."""

    @property
    def text(self) -> str:
        """The outline without spaces or words; empty before the first."""
        return "" if self.outline is None else write_outline(self.rings)


@dataclass(frozen=True, eq=False)
class _Turn:
    """What an action says, before it is scored."""

    outline: Prediction | None = None
    fault: TurnFault = TurnFault.NONE
    issues: str = ""
    done: bool = False


class RefineRules(EpisodeRules[RefineEpisode]):
    """Up to ``turns`` turns; each earns what it improved the reward of the outline by."""

    last_action = "last turn"

    def __init__(
        self,
        core: ReferringCore,
        *,
        turns: int = 3,
        max_characters: int = 1 << 14,
        refine_template: str = REFINE_PROMPT,
    ) -> None:
        """Set the limits; see `RefineEnv` for the arguments."""
        super().__init__(core)
        core.require_outlines("improving an answer turn by turn", bracketed=True)
        limits = ("turns", turns, 64), ("max_characters", max_characters, 1 << 18)
        for name, value, most in limits:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}={value!r}; use a whole number from 1 to {most}")
        missing = [word for word in ("{question}", "{outline}") if word not in refine_template]
        if missing:
            raise ValueError(f"refine_template={refine_template!r} lacks {', '.join(missing)}")
        self.turns, self.max_characters = turns, max_characters
        self.refine_template = refine_template
        asked = core.observation_space["prompt"]
        longest = getattr(asked, "max_length", 0) + max_characters + len(refine_template)
        self.observation_space = spaces.Dict(
            {**core.observation_space.spaces, "prompt": FreeText(longest)}
        )

    def begin(self, question: Question) -> RefineEpisode:
        """Open an episode."""
        return RefineEpisode(question)

    def observe(self, episode: RefineEpisode) -> Observation:
        """Image and prompt, from the first outline on with the outline in both."""
        observation = super().observe(episode)
        if episode.outline is None:
            return observation
        seen = self.core.answer_frame.for_view(episode.question.sample.target.size)
        rings = [seen.to_unit(np.array(ring, dtype=np.float64)) for ring in episode.rings]
        words = {
            "question": episode.question.prompt,
            "outline": episode.text,
            "turn": str(min(episode.turn + 1, self.turns)),
            "turns": str(self.turns),
        }
        # All at once: an expression may contain what looks like a placeholder.
        prompt = _PLACEHOLDER.sub(lambda match: words[match[1]], self.refine_template)
        return {"image": draw_outline(episode.question.image, rings), "prompt": prompt}

    def reset_info(self, episode: RefineEpisode) -> dict[str, Any]:
        """What is asked, and how many turns there are."""
        return super().reset_info(episode) | self._progress(episode)

    def step(
        self, episodes: Sequence[RefineEpisode], actions: Sequence[str]
    ) -> list[Outcome[RefineEpisode]]:
        """Take ``N`` turns; all outlines are scored in one call."""
        turns = [self._read(*pair) for pair in zip(episodes, actions, strict=True)]
        outlines = [
            turn.outline or episode.outline or _EMPTY
            for turn, episode in zip(turns, episodes, strict=True)
        ]
        scores = self.core.judge(outlines, [episode.question for episode in episodes])
        outcomes = []
        for row, (before, turn) in enumerate(zip(episodes, turns, strict=True)):
            answer = scores.answer(row)
            after = replace(before, turn=before.turn + 1)
            if turn.outline is not None:
                rings = split_outline(turn.outline)
                after = replace(after, outline=turn.outline, rings=rings, value=answer.total)
            info = self.core.answer_info(after.question, answer)
            info |= {"valid": not turn.fault, "issues": turn.issues, "fault": turn.fault.value}
            outcomes.append(
                Outcome(
                    after,
                    after.value - before.value,
                    terminated=turn.done or after.turn == self.turns,
                    truncated=False,
                    info=info | self._progress(after),
                    answer=answer,
                )
            )
        return outcomes

    def _read(self, episode: RefineEpisode, action: str) -> _Turn:
        if len(action) > self.max_characters:
            return _Turn(fault=TurnFault.TOO_LONG)
        if "[" in action:
            return self._check(action, episode)
        if action.strip().removesuffix(".").lower() == "done":
            return _Turn(done=True)
        edits = parse_edits(action)
        if edits is None:
            return _Turn(fault=TurnFault.UNREADABLE)
        rings = apply_edits(episode.rings, edits)
        if rings is None:
            return _Turn(fault=TurnFault.NO_SUCH_VERTEX)
        return self._check(write_outline(rings), episode)

    def _check(self, text: str, episode: RefineEpisode) -> _Turn:
        """The outline of a text, if it is one without faults."""
        if len(text) > self.max_characters:
            return _Turn(fault=TurnFault.TOO_LONG)
        outline = decode(text, episode.question.frame)
        if not outline.valid:
            return _Turn(fault=TurnFault.MALFORMED, issues=",".join(outline.issue_kinds))
        return _Turn(outline)

    def _progress(self, episode: RefineEpisode) -> dict[str, Any]:
        return {
            "outline": episode.text,
            "turn": episode.turn,
            "turns_left": self.turns - episode.turn,
        }
