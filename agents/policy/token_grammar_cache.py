"""Compiled grammars on disk: a vocabulary is walked once, not at every start."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from agents.policy.token_grammar_compile import CompiledGrammar, Effect
from seg_env.grammar.automaton import AnswerRules, GrammarAutomaton

_LAYOUT = 1
"""Part of every key; raised when the meaning of the tables changes."""
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
_FIELDS = {"tokens": np.int64, "table": np.int16, "effects": np.int32}


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/simpleseg-rl``, by default ``~/.cache/simpleseg-rl``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "simpleseg-rl"


def cache_key(tokenizer: Any, rules: AnswerRules) -> str:
    """Hash of everything the tables depend on: how tokens are decoded, and the rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        vocabulary = backend.to_str()
    frame = (rules.frame.limits, rules.frame.integer)
    written = {name: value for name, value in vars(rules).items() if name != "frame"}
    settings = [_LAYOUT, type(tokenizer).__name__, len(tokenizer), frame, written]
    settings.append(bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)))
    return hashlib.sha256((json.dumps(settings) + vocabulary).encode()).hexdigest()


def load_compiled(
    path: Path, automaton: GrammarAutomaton, vocabulary: int
) -> CompiledGrammar | None:
    """Read what `save_compiled` wrote; None if there is no such file, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            compiled = CompiledGrammar(**{name: file[name] for name in _FIELDS})
    except _UNREADABLE:
        return None
    return compiled if _is_consistent(compiled, automaton, vocabulary) else None


def save_compiled(compiled: CompiledGrammar, path: Path) -> None:
    """Write under a temporary name, then rename; where that is not possible, nothing happens."""
    arrays = {name: getattr(compiled, name) for name in _FIELDS}
    # A read-only home costs seconds at the next start; it must not cost the run.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            np.savez_compressed(written, **arrays)
            written.replace(path)


def _is_consistent(compiled: CompiledGrammar, automaton: GrammarAutomaton, vocabulary: int) -> bool:
    """True if no entry points outside of its table."""
    tokens, table, effects = (getattr(compiled, name) for name in _FIELDS)
    types = all(getattr(compiled, name).dtype == dtype for name, dtype in _FIELDS.items())
    if not types or tokens.ndim != 1 or effects.ndim != 3 or effects.size == 0:
        return False
    states = len(automaton.in_ring) + 1
    shapes = (table.shape, effects.shape[0], effects.shape[2])
    if shapes != ((states, len(tokens)), states, len(Effect._fields)):
        return False
    return bool(
        ((tokens >= 0) & (tokens < vocabulary)).all()
        and ((table >= 0) & (table < effects.shape[1])).all()
        and ((effects[..., 0] >= -1) & (effects[..., 0] < states)).all()
        and (effects[..., 1:] >= 0).all()
        and (effects[:, 0, 0] == -1).all()
    )
