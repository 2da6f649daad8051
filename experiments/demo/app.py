"""The page as a Space of Hugging Face: this file and ``requirements.txt`` are all it takes.

A Space brings its own address and limits, so nothing here listens, and nothing else is served.
"""

from __future__ import annotations

from rich.console import Console

from experiments.demo.__main__ import Args, open_demo
from experiments.demo.page import STYLE, build
from experiments.demo.server import MOST_VISITORS, MOST_WAITING, make_theme

if __name__ == "__main__":
    page = build(open_demo(Args(), Console()))
    page.queue(max_size=MOST_WAITING, api_open=False).launch(
        css=STYLE,
        theme=make_theme(),
        footer_links=[],
        max_file_size=1,
        state_session_capacity=MOST_VISITORS,
    )
