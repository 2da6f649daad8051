"""A page in the browser that shows a run: its groups with rewards and advantages, its curves.

Training with GSPO or PPO keeps the rollouts of every tenth update (``--rollouts-every``). The page
shows each group's outlines over its image, the held-out answers before and after, and the learning
curves beside them, of finished and of running runs. It needs Gradio, and loads nothing from
elsewhere.

    simpleseg inspect runs/gspo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.common.command import opening, run_command
from seg_env.errors import WrongOptionError


@dataclass
class Args:
    """Serve a page that shows a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    dataset: str | None = None
    """The data that the run learned from, if they have moved."""
    data_root: str | None = None
    """Folder of the data, if they have moved."""
    trust_code: bool = False
    """Call the function that config.json names as data, my_pkg.data:make; only for runs of your
    own."""
    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. There is no password."""
    port: int = 8000
    """Port to listen on, 0 for any free one."""


def main(args: Args) -> None:
    """Serve until interrupted."""
    console = Console()
    if find_spec("gradio") is None:
        raise WrongOptionError("the page needs gradio: pip install 'simpleseg-rl[demo]'")
    from experiments.demo.server import PageServer
    from experiments.inspection.page import STYLE, build
    from experiments.inspection.run_folder import RunFolder

    moved = {"dataset": args.dataset, "data_root": args.data_root}
    with opening():
        run = RunFolder(args.run, moved, trust_code=args.trust_code)
        server = PageServer(build(run), STYLE, args.host, args.port)
    try:  # whoever reads the next line may interrupt at once
        console.print(f"open {server.address} in a browser; Ctrl-C ends it", soft_wrap=True)
        server.serve()
    except KeyboardInterrupt:
        console.print("interrupted")


def command_line(words: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``words``, ask for."""
    run_command(Args, main, __doc__, None, words)


if __name__ == "__main__":
    command_line()
