"""All commands of the project under one name.

simpleseg gspo --updates 2
simpleseg evaluate --policy embedded
simpleseg COMMAND --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "gspo": ("experiments.run_gspo", "train with GSPO and its relatives (the main job)"),
    "ppo": ("experiments.run_ppo", "train with PPO and a critic"),
    "bc": ("experiments.run_bc", "behaviour cloning (SFT), the warm start"),
    "refine": ("experiments.run_refine", "teach a policy a second turn from its own mistakes"),
    "pipeline": ("experiments.run_pipeline", "annotate, clone, train: the stages of the paper"),
    "evaluate": ("experiments.evaluate", "score a policy, or answers in a file"),
    "check": ("experiments.check", "say what is in a data set, and draw some of it"),
    "check-memory": (
        "experiments.check_memory",
        "what an update needs in memory, before it is run",
    ),
    "annotate": ("experiments.annotate", "make training data from images"),
    "sweep": ("experiments.sweep", "arms and seeds from a file, their table and plot"),
    "benchmark": ("experiments.benchmark", "measure speed against what else computes the same"),
    "serve-rewards": ("experiments.serve_rewards", "score answers for any trainer, over HTTP"),
    "demo": ("experiments.demo.__main__", "a page to ask a policy on"),
    "inspect": ("experiments.inspection.__main__", "a page on what a run answered and learned"),
    "data": ("seg_env.data.__main__", "show or export a data set"),
}


def usage() -> str:
    """The list of commands."""
    lines = "\n".join(f"  {name:<14} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: simpleseg COMMAND [OPTIONS]\n\n{lines}\n\nsimpleseg COMMAND --help: its options"


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, with the words after it."""
    name, *options = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        print(f"unknown command {name!r}\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"simpleseg {name}", *options]
    result = import_module(COMMANDS[name][0]).command_line(options)
    if isinstance(result, int):
        sys.exit(result)


if __name__ == "__main__":
    main()
