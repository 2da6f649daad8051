"""Running a command: its arguments, its help pages, and how it ends when something was wrong.

A script has a dataclass of arguments, a ``main``, and this at its end:

    def command_line(words: Sequence[str] | None = None) -> dict[str, Any]:
        return run_command(Args, main, __doc__, FIRST, words)

    if __name__ == "__main__":
        command_line()

``FIRST`` names, by groups, the options that people want first, as ``{"Policy": ("policy", …)}``;
nested ones have dots, and those that ``Args`` has not are passed over. ``--help`` shows them on one
screen, ``--help-all`` shows all options; without ``FIRST`` both show all.

What a user got wrong ends a command with one sentence and exit status 2, with a traceback only
under ``--debug``: an `ExplainedError` anywhere, and whatever is raised about the command line's
words inside a block of `opening`. Every other exception is a bug and keeps its traceback.

No deep-learning library is imported here; a script whose help is to be quick imports those inside
``main``.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import gymnasium as gym
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seg_env.errors import ExplainedError

Args = TypeVar("Args")
Result = TypeVar("Result")
FirstOptions = Mapping[str, Sequence[str]]
"""Names of options by the titles of their groups."""


def run_command(
    args_type: type[Args],
    main: Callable[[Args], Result],
    description: str | None,
    first: FirstOptions | None = None,
    words: Sequence[str] | None = None,
) -> Result:
    """Run a command as its command line says.

    Args:
        args_type: Dataclass of its arguments, each with a docstring.
        main: What it does.
        description: Docstring of the script.
        first: Options that ``--help`` shows; by default all.
        words: What is read instead of the command line.

    Raises:
        SystemExit: After a help page, with status 0; where the user got something wrong, with 2.
    """
    words = command_words(words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if first is not None and not {"-h", "--help"}.isdisjoint(words):
        print_first_options(args_type, description, first)
        raise SystemExit(0)
    words = ["--help" if word == "--help-all" else word for word in words]
    args = tyro.cli(args_type, args=words, description=description)
    if sys.stderr.isatty():
        print("loading libraries …", file=sys.stderr)  # that takes seconds
    with brief_errors(debug=debug):
        return main(args)


def command_words(words: Sequence[str] | None = None) -> list[str]:
    """The command line without ``--local_rank``, which the ``deepspeed`` launcher adds to it."""
    given = sys.argv[1:] if words is None else words
    return [word for word in given if not word.startswith("--local_rank=")]


@contextmanager
def opening() -> Iterator[None]:
    """Inside the block things that the command line names are opened, and may be wrong.

    Errors that tell what is wrong with them (wrong values, missing files and packages) pass through
    unchanged, and `brief_errors` ends the script with what they say.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, gym.error.Error) as error:
        error.__dict__["explained"] = True
        raise


@contextmanager
def brief_errors(*, debug: bool = False) -> Iterator[None]:
    """End the script with status 2 and one line where something from outside is at fault.

    Args:
        debug: Let all exceptions pass, with their tracebacks.
    """
    try:
        yield
    except Exception as error:
        explained = isinstance(error, ExplainedError) or hasattr(error, "explained")
        if debug or not explained:
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def print_first_options(args_type: type[Any], description: str | None, first: FirstOptions) -> None:
    """Print the short help page."""
    console = Console(highlight=False, markup=False)
    name = Path(sys.argv[0]).name
    console.print(f"usage: {name} [options]\n")
    console.print(_opening_of(description or ""))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for title, names in first.items():
        known = [one for one in names if _find(args_type, one) is not None]
        if known:
            table.add_row()
            table.add_row(Text(title, style="bold"))
        for one in known:
            table.add_row(*_option_row(args_type, one))
    table.add_row()
    table.add_row("  --help-all", f"All options; {name} --help-all | less")
    table.add_row("  --debug", "Show where an error arose.")
    console.print(table)


def _opening_of(description: str) -> str:
    """Paragraphs of a docstring up to its first example, with that."""
    found = []
    for paragraph in description.strip().split("\n\n"):
        example = paragraph.startswith("    ")
        found.append(paragraph if example else " ".join(paragraph.split()))
        if example:
            break
    return "\n\n".join(found).replace("``", "")


def _find(args_type: type[Any], name: str) -> tuple[type[Any], Any, Any] | None:
    """Class in which an option is a field, its type, and its default; None if there is none."""
    owner, _, last = name.replace("-", "_").rpartition(".")
    kind: Any = args_type
    default: Any = MISSING
    for part in [*filter(None, owner.split(".")), last]:
        cls = kind
        known = {field.name: field for field in fields(cls)} if is_dataclass(cls) else {}
        if part not in known:
            return None
        field = known[part]
        if default is not MISSING:
            default = getattr(default, part)
        else:
            factory: Any = field.default_factory
            default = field.default if factory is MISSING else factory()
        kind = get_type_hints(cls, include_extras=True)[part]
    hidden = get_origin(kind) is Annotated and tyro.conf.Suppress in get_args(kind)
    return None if hidden else (cls, kind, default)


def _option_row(args_type: type[Any], name: str) -> tuple[str, str]:
    """An option as it is typed, and its first sentence with its default."""
    found = _find(args_type, name)
    assert found is not None
    cls, kind, default = found
    text = _docstrings(cls).get(name.rpartition(".")[2].replace("-", "_"), "")
    sentence = re.split(r"(?<=[.;])\s", text, maxsplit=1)[0].rstrip(".;")
    if default is MISSING:
        sentence += " (required)"
    elif default is not None and default is not False and default not in ((), ""):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        sentence += f" (default: {shown})"
    typed = f"  --{name.replace('_', '-')} {_placeholder(kind)}".rstrip()
    return typed, sentence.replace("``", "")


def _placeholder(kind: Any) -> str:
    """What stands for the value of an option of some type."""
    if get_origin(kind) is Annotated:
        return _placeholder(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        inner = [_placeholder(one) for one in get_args(kind) if one is not type(None)]
        return "|".join(inner)
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{_placeholder(get_args(kind)[0])} …"
    return "" if kind is bool else kind.__name__.upper()


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """The strings below the fields of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                    found[name] = " ".join(words.split())
    return found
