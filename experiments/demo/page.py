"""The page itself: Gradio's components, and what happens when they are used."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import isgeneratorfunction
from typing import Any, get_args

import gradio as gr
import numpy as np
from gradio_client.utils import is_file_obj_with_meta, traverse

from experiments.demo.canvas import drawing, image_of, make_canvas
from experiments.demo.questions import (
    LONGEST_EXPRESSION,
    MOST_ANSWERS,
    Answer,
    Asked,
    Demo,
    Shown,
    coco_json,
    geojson,
    mask_png,
    read_rings,
    read_upload,
)
from seg_env.data.scenes.layout import Difficulty
from seg_env.errors import ExplainedError
from seg_env.tasks import check_task

TITLE = "SimpleSeg-RL"
INTRODUCTION = """# SimpleSeg-RL
Ask for an object; the policy answers with its outline as text. Green is the target, orange the
answer. Drag a vertex, or edit the text: the environment scores what is there."""
STYLE = """
#scores td, #scores th { padding: 0.15rem 0.8rem; font-variant-numeric: tabular-nums; }
#fault { color: #d33; }
:is(#fault, #scores, #prompt) .html-container { padding: 0; }
"""
FORMS = {"outline": "mask", "box": "bbox", "point": "point"}
"""What can be asked for, as the page and as `seg_env.tasks` call it."""
GESTURES = {"point": "click", "bbox": "drag"}
"""How a place is given, by its form."""
DOWNLOADS: dict[str, Callable[[Asked, Answer], tuple[str, str, bytes]]] = {
    "Mask (PNG)": lambda *both: ("mask.png", "image/png", mask_png(*both)),
    "COCO JSON": lambda *both: ("coco.json", "application/json", _json(coco_json(*both))),
    "GeoJSON": lambda *both: ("outline.geojson", "application/geo+json", _json(geojson(*both))),
}
"""Files by the name of their button: name, media type and content."""
SAVE = """file => {
  if (!file) return alert("There is no answer to save yet: ask first.");
  const link = document.createElement("a");
  [link.download, link.href] = [file.name, file.address];
  link.click();
}"""
STYLE_CANVAS = """(shown, opacity) => {
  const style = document.getElementById("canvas").style;
  style.setProperty("--target-shown", shown ? "inline" : "none");
  style.setProperty("--tint", opacity);
}"""


USERS_ERRORS = (ExplainedError, IndexError, TypeError, ValueError)
"""Errors raised if something that came from the page, or from a file, is wrong."""


@dataclass(frozen=True)
class Visit:
    """The state of one visitor's page."""

    shown: Shown | None = None
    asked: Asked | None = None
    group: tuple[Answer, ...] = ()
    """All answers to what was asked."""
    row: int = 0
    """The one that is drawn, in the group."""
    answer: Answer | None = None
    """The one that is drawn, as it stands."""

    @property
    def others(self) -> list[Answer]:
        """The rest of the group."""
        return [each for row, each in enumerate(self.group) if row != self.row]


class Page(gr.Blocks):
    """A page that takes no files: Gradio would download any address that an input names as one."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        """Refuse what Gradio takes for a file before it looks for it."""

        def refuse(_: Any) -> None:
            raise gr.Error("this page has no files", print_exception=False)

        traverse(inputs, refuse, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *more, **named)


def bold(sentence: str) -> str:
    """A sentence in bold, whatever it holds, for `gradio.HTML`."""
    return f"<p><strong>{html.escape(sentence)}</strong></p>"


def guarded(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """A listener that reports errors in what came from the page, as one more output.

    Not `gradio.Error`, which covers every component that the listener would have changed.
    """

    def fault(error: Exception) -> tuple[Any, ...]:
        return (*[gr.skip()] * outputs, bold(str(error)[:500]))

    @wraps(function)
    def once(*given: Any) -> tuple[Any, ...]:
        try:
            return (*function(*given), "")
        except USERS_ERRORS as error:
            return fault(error)

    @wraps(function)
    def streaming(*given: Any) -> Iterator[tuple[Any, ...]]:
        try:
            for found in function(*given):
                yield (*found, "")
        except USERS_ERRORS as error:
            yield fault(error)

    return streaming if isgeneratorfunction(function) else once


def listen_guarded(
    fault: gr.HTML,
    listener: Callable[..., Any],
    function: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    **options: Any,
) -> Any:
    """Have a function called on events; its errors are shown in ``fault``."""
    options = {"show_progress": "hidden", "api_visibility": "private", **options}
    return listener(guarded(function, len(outputs)), inputs, [*outputs, fault], **options)


def build(demo: Demo) -> gr.Blocks:
    """The page on which ``demo`` answers."""
    names = list(demo.policies)
    with Page(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        visit = gr.State(Visit(), time_to_live=3600)
        file = gr.JSON(visible=False)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                canvas = make_canvas(elem_id="canvas")
                fault = gr.HTML(elem_id="fault")
                expression = gr.Textbox(
                    label="What is asked for",
                    placeholder="the red star",
                    max_length=LONGEST_EXPRESSION,
                    elem_id="expression",
                    submit_btn="Ask",
                )
                chips = gr.Dataset(
                    components=[expression], samples=[], label="On this image", elem_id="chips"
                )
                scores = gr.HTML(elem_id="scores")
                group = gr.Dataframe(
                    headers=["answer", "reward", "advantage", "IoU"],
                    label="The group; choose a row to draw that answer",
                    interactive=False,
                    visible=False,
                    elem_id="group",
                )
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    difficulty = gr.Dropdown(
                        list(get_args(Difficulty)),
                        label="Scenes",
                        visible=demo.images is None,
                        min_width=120,
                    )
                    index = gr.Number(
                        0, label="Image", precision=0, minimum=0, min_width=90, elem_id="index"
                    )
                    another = gr.Button("Another", min_width=90, elem_id="another")
                with gr.Row():
                    form = gr.Radio(list(FORMS), value="outline", label="Answer", min_width=200)
                    constrained = gr.Checkbox(
                        label="Only outlines allowed",
                        info="decoding constrained by the grammar",
                        visible=bool(demo.constraints),
                        min_width=120,
                    )
                with gr.Row():
                    count = gr.Slider(
                        1, MOST_ANSWERS, 1, step=1, label="Answers", min_width=120, elem_id="count"
                    )
                    temperature = gr.Slider(
                        0, 2, 0, step=0.1, label="Temperature", min_width=120, elem_id="temperature"
                    )
                with gr.Row():
                    is_shown = gr.Checkbox(True, label="Show the target", min_width=120)
                    opacity = gr.Slider(0, 1, 0.15, step=0.05, label="Opacity", min_width=120)
                policy = gr.Dropdown(names, value=names[0], label="Policy")
                prompt = gr.HTML(elem_id="prompt")
                text = gr.Textbox(
                    label="The answer, as text",
                    lines=3,
                    max_lines=6,
                    buttons=["copy"],
                    elem_id="text",
                )
                with gr.Row():
                    saves = [gr.Button(name, size="sm", min_width=90) for name in DOWNLOADS]

        settings = [visit, policy, form, temperature, count, constrained]
        answered = [visit, canvas, prompt, text, scores, group]
        seen = [*answered, chips, expression]

        def show(visit: Visit, shown: Shown, note: str = "") -> tuple[Any, ...]:
            if visit.shown is not None:
                visit.shown.left.set()
            expressions = [each.expression for each in shown.samples]
            return (
                Visit(shown),
                gr.update(shown=image_of(shown.image), value=drawing()),
                html.escape(note),
                "",
                "",
                gr.update(visible=False),
                gr.update(samples=[[each] for each in expressions], visible=bool(expressions)),
                expressions[0] if expressions else "",
            )

        def show_scene(visit: Visit, difficulty: str, index: float) -> tuple[Any, ...]:
            return show(visit, demo.show(difficulty, int(index)))

        def show_upload(visit: Visit, event: gr.EventData) -> tuple[Any, ...]:
            return show(visit, read_upload(getattr(event, "address", "")), demo.note)

        def ask_by_text(
            visit: Visit,
            policy: str,
            form: str,
            temperature: float,
            count: float,
            constrained: bool,
            expression: str,
        ) -> Iterator[tuple[Any, ...]]:
            task = check_task(f"text->{FORMS[form]}")
            asked = demo.ask_by_text(_image(visit), policy, task, expression)
            yield from answer(visit, asked, "", {"asked": None}, temperature, count, constrained)

        def ask_by_place(
            visit: Visit,
            policy: str,
            form: str,
            temperature: float,
            count: float,
            constrained: bool,
            event: gr.EventData,
        ) -> Iterator[tuple[Any, ...]]:
            query = "bbox" if hasattr(event, "bbox") else "point"
            # A place is never asked for by a place of the same form.
            wanted = "bbox" if (query, form) == ("point", "box") else "mask"
            note = ""
            if wanted != FORMS[form]:
                note = f"A {GESTURES[query]} cannot ask for a {form}: it asked for an outline."
            task = check_task(f"{query}->{wanted}")
            corners = np.array(getattr(event, query, ()), dtype=np.float64).reshape(-1, 2)
            asked = demo.ask_by_place(_image(visit), policy, task, corners)
            yield from answer(visit, asked, note, {}, temperature, count, constrained)

        def answer(
            visit: Visit,
            asked: Asked,
            note: str,
            place: dict[str, Any],
            temperature: float,
            count: float,
            constrained: bool,
        ) -> Iterator[tuple[Any, ...]]:
            """Draw answers as they are written, and score them when they are whole."""
            texts = demo.answers(
                asked, temperature=temperature, count=int(count), constrained=bool(constrained)
            )
            told = f"<blockquote>{html.escape(asked.question.prompt)}</blockquote>"
            told, answers = told + (f"<p>{note}</p>" if note else ""), []
            for written in texts:
                if _image(visit).left.is_set():
                    return
                answers = demo.read(asked, written)
                first, *others = answers
                drawn = drawing(asked, first, others, written=False) | place
                yield gr.skip(), drawn, told, first.prediction.text, "", gr.skip()
            if not answers:
                return
            first, *others = answers
            visit = replace(visit, asked=asked, group=tuple(answers), row=0, answer=first)
            rows = _group_rows(demo, answers)
            yield (
                visit,
                drawing(asked, first, others) | place,
                told,
                first.prediction.text,
                _scores(demo, first),
                gr.update(value=rows, visible=len(rows) > 1),
            )

        def move(visit: Visit, value: Any) -> tuple[Any, ...]:
            """Score an outline that was dragged, as the text that it is."""
            asked = _question(visit)
            written = demo.write(asked, read_rings(value and value.get("rings")))
            (found,) = demo.read(asked, [written])
            return replace(visit, answer=found), written, _scores(demo, found)

        def edit(visit: Visit, written: str) -> tuple[Any, ...]:
            """Draw and score a text that was edited."""
            if written == (visit.answer.prediction.text if visit.answer else ""):
                return (gr.skip(),) * 3
            asked = _question(visit)
            (found,) = demo.read(asked, [written])
            drawn = drawing(asked, found, visit.others)
            return replace(visit, answer=found), drawn, _scores(demo, found)

        def choose(visit: Visit, event: gr.SelectData) -> tuple[Any, ...]:
            """Draw another answer of the group."""
            row = event.index[0]
            found = visit.group[row]
            visit = replace(visit, row=row, answer=found)
            drawn = drawing(visit.asked, found, visit.others)
            return visit, drawn, found.prediction.text, _scores(demo, found)

        def save(name: str, visit: Visit) -> tuple[Any, ...]:
            if visit.asked is None or visit.answer is None:
                return (None,)
            name, kind, data = DOWNLOADS[name](visit.asked, visit.answer)
            encoded = base64.b64encode(data).decode()
            return ({"name": name, "address": f"data:{kind};base64,{encoded}"},)

        listen = partial(listen_guarded, fault)
        quick: Any = {"queue": False}
        live: Any = {"queue": False, "trigger_mode": "always_last"}
        asking: Any = {"concurrency_id": "policy", "concurrency_limit": 1}
        # Through the queue, so that the browser gets an image after all that was drawn on the last.
        showing: Any = {"concurrency_limit": None}
        scene = [visit, difficulty, index]
        asks = [
            listen(expression.submit, ask_by_text, [*settings, expression], answered, **asking),
            listen(canvas.ask, ask_by_place, settings, answered, **asking),
        ]
        # Before what shows images: the browser waits for one listener of an event before the next.
        for listener in (another.click, difficulty.input, index.submit, canvas.choose):
            listener(None, cancels=asks)
        listen(page.load, show_scene, scene, seen, **quick)
        following = listen(
            another.click, lambda number: [int(number) + 1], [index], [index], **quick
        )
        for listener in (following.success, difficulty.input, index.submit):
            listen(listener, show_scene, scene, seen, trigger_mode="always_last", **showing)
        listen(canvas.choose, show_upload, [visit], seen, **showing)
        listen(chips.click, lambda row: row[:1], [chips], [expression], **quick)
        listen(canvas.move, move, [visit, canvas], [visit, text, scores], **live)
        # Gradio swallows the first input after an answer: pasted text counts on leaving the field.
        for listener in (text.input, text.blur):
            listen(listener, edit, [visit, text], [visit, canvas, scores], **live)
        listen(group.select, choose, [visit], [visit, canvas, text, scores], **quick)
        for button in saves:
            saved = listen(button.click, save, [button, visit], [file], **quick)
            saved.success(None, file, None, js=SAVE)
        gr.on([is_shown.change, opacity.change], None, [is_shown, opacity], None, js=STYLE_CANVAS)
    return page


def _image(visit: Visit) -> Shown:
    if visit.shown is None:
        raise ValueError("there is no image yet: choose one")
    return visit.shown


def _question(visit: Visit) -> Asked:
    if visit.asked is None:
        raise ValueError("nothing was asked yet: ask first, then edit or save the answer")
    return visit.asked


def _scores(demo: Demo, answer: Answer) -> str:
    """What an answer is worth, and what is wrong with it."""
    said = "".join(map(bold, answer.issues)) or "<p>well-formed</p>"
    if answer.scored is None:
        return said + "<p>The target is not known here, so nothing is scored.</p>"
    rows = [("IoU", f"{answer.scored.iou:.3f}", "")]
    for name, term in demo.rewards.terms.items():
        rows.append((html.escape(name), f"{answer.scored.terms[name]:.3f}", str(term.weight)))
    total = f"{answer.scored.total:.3f}"
    rows.append(("<strong>reward</strong>", f"<strong>{total}</strong>", ""))
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    head = "<thead><tr><th></th><th>value</th><th>weight</th></tr></thead>"
    return f"{said}<table>{head}<tbody>{body}</tbody></table>"


def _group_rows(demo: Demo, answers: list[Answer]) -> list[list[Any]]:
    """The answers of a group as the page lists them."""
    if answers[0].scored is None:
        return [[number, "", "", ""] for number in range(1, len(answers) + 1)]
    advantages = demo.advantages(answers)
    return [
        [number, f"{each.scored.total:.3f}", f"{advantage:+.2f}", f"{each.scored.iou:.3f}"]
        for number, (each, advantage) in enumerate(zip(answers, advantages, strict=True), 1)
        if each.scored
    ]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
