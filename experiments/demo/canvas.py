"""The one component that Gradio lacks: an image on which outlines are drawn, dragged and asked for.

Its value is what is drawn, in the unit frame: ``rings`` and ``point`` of the answer, ``written``
(whether it is whole, so that its vertices can be dragged), the ``target``, the ``others`` of its
group and the place ``asked`` about. Its property ``shown`` is the image, as a data URL, and its
size.

Events: ``ask`` with a ``point`` or a ``bbox``, ``move`` after ``rings`` have changed, and
``choose`` with the ``address`` of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from experiments.demo.questions import LONGEST_SIDE, Answer, Asked, image_address
from seg_env.types import Ring


def make_canvas(**settings: Any) -> gr.HTML:
    """Make the component; ``settings`` are those of `gradio.HTML`."""
    return make_component(Path(__file__), shown={}, **settings)


def make_component(path: Path, **settings: Any) -> gr.HTML:
    """A component from the html, css and js files beside ``path`` that have its name."""
    template, style, script = (
        path.with_suffix(f".{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    # Not a class of its own: Gradio would write a stub beside this file.
    return gr.HTML(
        html_template=template,
        css_template=style,
        js_on_load=script,
        apply_default_css=False,
        **settings,
    )


def image_of(image: NDArray[np.uint8], longest_side: int = LONGEST_SIDE) -> dict[str, Any]:
    """An image as the canvas takes it."""
    return {"address": image_address(image, longest_side), "size": list(image.shape[:2])}


def drawing(
    asked: Asked | None = None,
    answer: Answer | None = None,
    others: Sequence[Answer] = (),
    *,
    written: bool = True,
) -> dict[str, Any]:
    """What the canvas draws."""
    target = asked.question.sample.target.rings if asked is not None and asked.is_known else ()
    point = None if answer is None else answer.prediction.point
    return {
        "target": _plain(target),
        "rings": _plain(() if answer is None else answer.prediction.rings),
        "point": None if point is None else point.tolist(),
        "others": [_plain(each.prediction.rings) for each in others],
        "written": written,
    }


def _plain(rings: Sequence[Ring]) -> list[list[list[float]]]:
    return [ring.round(4).tolist() for ring in rings]
