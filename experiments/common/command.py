"""Running a command: its arguments, its help pages, and how it ends on errors.

A script has a dataclass of arguments, a ``main``, and this at its end:

    command_line = partial(run_command, Args, main, __doc__, FIRST)

    if __name__ == "__main__":
        command_line()

``FIRST`` names, by groups, the options that people want first, as ``{"Policy": ("policy", …)}``;
nested ones have dots, and those that ``Args`` lacks are skipped. ``--help`` shows them on one
screen, ``--help-all`` shows all options; without ``FIRST`` both show all.

A user's mistake ends a command with one sentence and exit status 2, with a traceback only under
``--debug``: an `ExplainedError` anywhere, and errors inside a block of `opening`. Every other
exception is a bug and keeps its traceback. A full disk ends a command with one
sentence and status 2, Ctrl-C with one and status 130; one whose output is read no further, as by
``head``, ends with status 1 and without a word. ``--limits`` changes `seg_env.geometry.limits`.

Help is quick because no deep-learning library is imported here: scripts import those in ``main``.
"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import re
import select
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import gymnasium as gym
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seg_env.errors import ExplainedError
from seg_env.geometry.limits import set_limits

Args = TypeVar("Args")
Result = TypeVar("Result")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk, a quota or the largest allowed file is full."""
FirstOptions = Mapping[str, Sequence[str]]
"""Names of options by the titles of their groups."""


def run_command(
    args_type: type[Args],
    main: Callable[[Args], Result],
    description: str | None,
    first: FirstOptions | None = None,
    words: Sequence[str] | None = None,
) -> Result:
    """Run a command with its command line, or with ``words`` instead.

    Raises:
        SystemExit: After a help page, with status 0; where the user got something wrong, with 2.
    """
    words = command_words(words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    limits = None
    if "--limits" in words[:-1]:
        place = words.index("--limits")
        limits, words = words[place + 1], words[:place] + words[place + 2 :]
    if first is not None and not {"-h", "--help"}.isdisjoint(words):
        _print_first_options(args_type, description or "", first)
        raise SystemExit(0)
    words = ["--help" if word == "--help-all" else word for word in words]
    program = Path(sys.argv[0]).name
    with brief_errors(debug=debug):
        args = tyro.cli(args_type, args=words, description=description, prog=program)
        if sys.stderr.isatty():
            print("loading libraries …", file=sys.stderr)  # that takes seconds
        if limits is not None:
            set_limits(limits)
        return main(args)


def command_words(words: Sequence[str] | None = None) -> list[str]:
    """The command line without ``--local_rank``, which the ``deepspeed`` launcher adds to it."""
    given = sys.argv[1:] if words is None else words
    return [word for word in given if not word.startswith("--local_rank=")]


def typed_command() -> str:
    """The command line as it can be typed again."""
    program, *options = sys.argv
    start = program if program.startswith("simpleseg ") else f"python {shlex.quote(program)}"
    return f"{start} {shlex.join(options)}".rstrip()


@contextmanager
def opening() -> Iterator[None]:
    """Mark errors inside the block as the user's: what the command line names is wrong.

    Only errors about values, files and packages count; `brief_errors` prints what they say.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, gym.error.Error) as error:
        error.__dict__["explained"] = True
        raise


@contextmanager
def brief_errors(*, debug: bool = False) -> Iterator[None]:
    """End the script with status 2 and one line for the user's errors, unless ``debug``.

    So does a full disk; Ctrl-C ends it with status 130, and output that is read no further with
    status 1 and nothing said.
    """
    try:
        yield
        print(end="", flush=True)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            raise SystemExit(1) from None
        explained = isinstance(error, ExplainedError) or hasattr(error, "explained")
        explained = explained or is_full_disk(error)
        if debug or not explained:
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        if _is_unread():  # or what is left in the buffer fails when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll, stdout = select.poll(), sys.stdout.fileno()
    except (AttributeError, ValueError):  # Windows has no poll; what stands in for it is no file
        return False
    poll.register(stdout, 0)  # for errors alone
    return bool(poll.poll(0))


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it arose from, says that nothing more can be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        # torch and safetensors raise errors of their own.
        if any(f"os error {number})" in str(error) for number in FULL):
            return True
        if "iostream error" in str(error) or "PytorchStreamWriter failed" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _print_first_options(args_type: type[Any], description: str, first: FirstOptions) -> None:
    """Print the short help page."""
    console, script = Console(highlight=False, markup=False), Path(sys.argv[0]).name
    # The description up to and including its first example; paragraphs are rewrapped.
    told, _, rest = description.strip().replace("``", "").partition("\n\n    ")
    told, example = re.sub(r"(?<=\S)\n(?=\S)", " ", told), rest.partition("\n\n")[0]
    console.print(f"usage: {script} [options]\n\n{told}\n\n    {example}".rstrip())
    defaults = args_type()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for title, names in first.items():
        if known := [row for name in names if (row := _option(defaults, name))]:
            table.add_row()
            table.add_row(Text(title, style="bold"))
            for typed, text in known:
                table.add_row(f"  {typed}", text)
    table.add_row()
    table.add_row("  --help-all", "All options.")
    table.add_row("  --debug", "Show where an error arose.")
    table.add_row("  --limits 'NAME=NUMBER …'", "What is read at most; see docs/reliability.md.")
    console.print(table)


def _option(defaults: Any, name: str) -> tuple[str, str] | None:
    """How an option is typed, and its first sentence with its default; None if there is none.

    ``defaults`` are the arguments when nothing is typed.
    """
    *groups, last = name.replace("-", "_").split(".")
    for group in groups:
        defaults = getattr(defaults, group, None)
    kind = get_type_hints(type(defaults), include_extras=True).get(last)
    if kind is None or tyro.conf.Suppress in get_args(kind):
        return None
    text, value = _docstrings(type(defaults)).get(last, ""), getattr(defaults, last)
    sentence = re.split(r"(?<=[.;])\s", text, maxsplit=1)[0].rstrip(".;").replace("``", "")
    if value is not None and value is not False and value not in ((), ""):
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        sentence += f" (default: {shown})"
    return f"--{name} {_placeholder(kind)}".rstrip(), sentence


def _placeholder(kind: Any) -> str:
    """What stands for the value of an option of some type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return "|".join(_placeholder(one) for one in inner if one is not type(None))
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is not None:  # a tuple, or an annotated type
        return _placeholder(inner[0]) + (" …" if origin is tuple else "")
    return "" if kind is bool else kind.__name__.upper()


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """The strings below the fields of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                    found[name] = " ".join(words.split())
    return found
