"""Commands: short and long help, what a user got wrong, bugs, and how progress is told."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro
from rich.console import Console

from experiments import run_bc, run_gspo, run_ppo, run_refine
from experiments.common.command import opening, run_command
from experiments.common.logs import progress_bar
from seg_env.errors import WrongOptionError
from seg_env.geometry.limits import limits, set_limits

ROOT = Path(__file__).parents[3]
SCRIPTS = {
    "run_gspo": [],
    "run_ppo": [],
    "run_refine": [],
    "run_bc": [],
    "run_bc under TRL": ["--backend", "trl"],
}


@dataclass
class Inner:
    rate: float = 0.5
    """How fast. No faster."""
    hidden: tyro.conf.Suppress[int] = 3


@dataclass
class Base:
    name: str | None = None
    """Whom to greet; nobody else."""


@dataclass
class Args(Base):
    inner: Inner = field(default_factory=Inner)
    """Details."""
    kind: Literal["a", "b"] = "a"
    """Which of ``two``."""
    wrong: bool = False
    """Do something wrong."""


FIRST = {"Whom": ("name", "nobody"), "How": ("inner.rate", "inner.hidden", "kind", "wrong")}


def run(words, main=vars, first=FIRST):
    return run_command(Args, main, "Greets.\n\nAt length.", first, words)


def test_words_become_arguments():
    found = run(["--inner.rate", "2", "--name", "x", "--local_rank=1"])
    assert (found["inner"].rate, found["name"], found["inner"].hidden) == (2.0, "x", 3)


def test_the_short_help_shows_the_first_options_with_their_first_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    assert ended.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        *("Greets.", "Whom", "--name STR Whom to greet", "How"),
        *("--inner.rate FLOAT How fast (default: 0.5)", "--kind a|b Which of two (default: a)"),
        "--wrong Do something wrong",
    ):
        assert line in lines
    assert not [line for line in lines if "hidden" in line or "nobody" in line]


def test_the_long_help_shows_all_options(capsys):
    with pytest.raises(SystemExit) as ended:
        run(["--help-all"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "How fast. No faster." in text
    assert "hidden" not in text


@pytest.mark.parametrize("error", [WrongOptionError("too far"), FileNotFoundError("too far")])
def test_what_a_user_got_wrong_is_one_sentence(error, capsys):
    def main(args):
        with opening():
            raise error

    with pytest.raises(SystemExit) as ended:
        run([], main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: too far\n"
    with pytest.raises(type(error), match="too far"):
        run(["--debug"], main)


def test_a_missing_file_is_named(tmp_path, capsys):
    def main(args):
        with opening():
            (tmp_path / "gone.json").read_text()

    with pytest.raises(SystemExit):
        run([], main)
    assert (
        capsys.readouterr().err == f"error: {tmp_path / 'gone.json'}: No such file or directory\n"
    )


def test_limits_hold_for_a_command_and_what_it_starts(monkeypatch, capsys):
    monkeypatch.setenv("SIMPLESEG_LIMITS", "")
    assert run(["--limits", "pixels=1e3", "--name", "x"], lambda args: limits().pixels) == 1000
    assert os.environ["SIMPLESEG_LIMITS"] == "pixels=1e3"
    with pytest.raises(SystemExit):
        run(["--limits", "pixel=1e3"])
    assert "'pixel=1e3' is no limit" in capsys.readouterr().err
    set_limits("")


def test_bugs_keep_their_traceback():
    def main(args):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run([], main)

    def opens(args):
        with opening():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run([], opens)


WRITING = """
import os, sys
from dataclasses import dataclass
from experiments.common.command import opening, run_command

@dataclass
class Args:
    lines: int = 1
    elsewhere: bool = False

def main(args):
    for line in range(args.lines):
        print("line", line)
    if args.elsewhere:
        read, write = os.pipe()
        os.close(read)
        with opening():
            os.write(write, b"x")

run_command(Args, main, "Writes.")
"""


def write_to(reader, *words, unbuffered=""):
    """Status and complaints of a command whose output is read by another one."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITING, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
    )
    reader(writer.stdout)
    with writer:
        return writer.wait(), writer.stderr.read()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--lines", "1"], ["--lines", "100000"]], ids=" ".join)
def test_output_that_nobody_reads_ends_a_command_without_a_word(words, unbuffered):
    assert write_to(lambda pipe: pipe.close(), *words, unbuffered=unbuffered) == (1, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_read_no_further_ends_a_command_without_a_word(unbuffered):
    def head(pipe):
        assert pipe.readline() == "line 0\n"
        pipe.close()

    assert write_to(head, "--lines", "1000000", unbuffered=unbuffered) == (1, "")


def test_help_that_nobody_reads_is_no_error():
    _, said = write_to(lambda pipe: pipe.close(), "--help")
    assert said == ""


def test_what_a_user_got_wrong_is_told_though_nobody_reads_the_output():
    status, said = write_to(lambda pipe: pipe.close(), "--limits", "pixel=1e3")
    assert status == 2
    assert "'pixel=1e3' is no limit" in said


def test_a_pipe_that_breaks_elsewhere_is_an_error():
    status, said = write_to(lambda pipe: pipe.read(), "--elsewhere")
    assert (status, said) == (2, "error: [Errno 32] Broken pipe\n")


@pytest.mark.parametrize("columns", ["80", "100"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_training_commands_fits_a_screen(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    script = sys.modules[f"experiments.{name.split()[0]}"]
    assert script in (run_bc, run_gspo, run_ppo, run_refine)
    with pytest.raises(SystemExit) as ended:
        script.command_line([*SCRIPTS[name], "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 60
    for option in ("policy", "updates", "seed", "output-dir", "resume", "help-all"):
        assert f"--{option}" in text


@pytest.mark.parametrize(
    "script",
    [
        *("run_gspo", "run_ppo", "run_refine", "run_bc", "evaluate"),
        *("demo.__main__", "inspection.__main__"),
    ],
)
def test_help_waits_for_no_deep_learning_library(script):
    code = f"""
import sys, resource
sys.argv = ["{script}.py", "--help"]
from experiments.{script} import command_line
try:
    command_line()
except SystemExit:
    pass
heavy = {{"torch", "transformers", "trl", "deepspeed", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "words",
    [
        ["--gspo.seed", "3"],
        ["--env", "CartPole-v1"],
        ["--split", "no-such-split"],
        ["--env", "SimpleSeg-RefCOCO-v0", "--data-root", "/nowhere"],
        ["--rewards", "no_such_reward=1.0"],
        ["--frame", "no-such-frame"],
        ["--deepspeed", "no-such-stage"],
        ["--max-new-tokens", "0"],
        ["--turns", "3"],
        ["--evaluation.split", "no-such-split"],
    ],
    ids=lambda words: words[-2],
)
def test_wrong_options_of_the_main_job_end_it_with_a_sentence(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_gspo.command_line([*words, "--output-dir", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_said_in_a_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        run_gspo.command_line(["--evaluation.questions", "1", "--output-dir", str(tmp_path)])
    assert ended.value.code == 2
    assert "holds a run already: pass --resume" in capsys.readouterr().err


def test_a_bar_fits_80_columns_with_its_status_and_says_which_time_is_which():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with progress_bar(console) as progress:
        status = "reward 0.51 IoU 0.43"
        progress.add_task("training", total=1600, completed=800, status=status)
        progress.refresh()
    shown = [line for line in console.file.getvalue().splitlines() if "training" in line]
    for part in ("800/1600", "reward 0.51 IoU 0.43", "0:00:00 elapsed, --:-- left"):
        assert part in shown[-1]
