"""All commands of the project under one name.

simpleseg gspo --updates 2
simpleseg evaluate --policy embedded
simpleseg COMMAND --help
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "gspo": ("experiments.run_gspo", "train with GSPO and its relatives (the main job)"),
    "ppo": ("experiments.run_ppo", "train with PPO and a critic"),
    "bc": ("experiments.run_bc", "behaviour cloning (SFT), the warm start"),
    "refine": ("experiments.run_refine", "teach a policy a second turn from its own mistakes"),
    "pipeline": ("experiments.run_pipeline", "annotate, clone, train: the stages of the paper"),
    "evaluate": ("experiments.evaluate", "score a policy, or answers in a file"),
    "annotate": ("experiments.annotate", "make training data from images"),
    "sweep": ("experiments.sweep", "arms and seeds from a file, their table and plot"),
    "benchmark": ("experiments.benchmark", "measure speed against what else computes the same"),
    "demo": ("experiments.demo", "a page to ask a policy on"),
    "data": ("seg_env.data.__main__", "show or export a data set"),
}


def usage() -> str:
    """The list of commands."""
    lines = "\n".join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: simpleseg COMMAND [OPTIONS]\n\n{lines}\n\nsimpleseg COMMAND --help: its options"


def main() -> None:
    """Run the command that the first word names, with the words after it."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] not in COMMANDS:
        print(f"unknown command {words[0]!r}\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"simpleseg {words[0]}", *words[1:]]
    runpy.run_module(COMMANDS[words[0]][0], run_name="__main__")


if __name__ == "__main__":
    main()
