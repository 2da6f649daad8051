"""The page that shows a run: Gradio's components, and what happens when they are used."""

from __future__ import annotations

import base64
import html
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import gradio as gr
import numpy as np

from experiments.demo.canvas import drawing, image_of, make_canvas, make_component
from experiments.demo.page import STYLE_CANVAS, Page, bold, listen_guarded
from experiments.demo.questions import Answer, Asked
from experiments.inspection.run_folder import (
    FILTERS,
    HELD_OUT,
    ORDERS,
    Item,
    RunFolder,
    View,
    draw_curves,
    panels_of,
)
from seg_env.envs.core import Question
from seg_env.errors import ExplainedError
from seg_env.types import counted

CARDS = 24
"""Items that are drawn at a time."""
SIDE = 160
"""Pixels along the longer side of the image of a card."""
NO_IMAGE = np.full((64, 64, 3), 127, dtype=np.uint8)
"""What is shown of a question that cannot be asked any more."""
FIRST_PANELS = ("Sampled answers", "Held-out gIoU")
"""Curves that are drawn at first, where there are any."""
STYLE = """
#canvas { pointer-events: none; }
#canvas .files { display: none; }
#fault, #note, #problems { color: #d33; }
:is(#title, #fault, #note, #problems, #issues) .html-container { padding: 0; }
@media (max-width: 767px) { /* the image comes before the curves */
  #left { display: contents; }
  #left > * { width: 100%; }
  #learned { order: 1; }
}
#curves img { width: 100%; max-width: 34rem; border-radius: 0.4rem; }
"""
LEGEND = "Green is the target, orange the answer that is chosen; others are faint."


def build(run: RunFolder) -> gr.Blocks:
    """The page that shows a run."""
    title = f"{run.path.resolve().name} · SimpleSeg-RL"
    with Page(title=title, analytics_enabled=False, fill_width=True) as page:
        place = gr.State(0, time_to_live=3600)
        heading = html.escape(run.path.resolve().name)
        gr.HTML(f"<h1>{heading}</h1><p>{LEGEND}</p>", elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="left"):
                name = gr.Dropdown([], label="What is shown", elem_id="view")
                with gr.Row():
                    chosen = gr.Dropdown([], label="Which", elem_id="filter", min_width=120)
                    order = gr.Dropdown([], label="Sorted by", elem_id="order", min_width=120)
                note = gr.HTML(elem_id="note")
                count = gr.Markdown(elem_id="count")
                grid = make_component(Path(__file__).with_name("grid"), elem_id="grid", value={})
                sheet = gr.Slider(1, 2, 1, step=1, label="Page", visible=False, elem_id="sheet")
                with gr.Column(elem_id="learned"):
                    panels = gr.Dropdown(
                        [], multiselect=True, label="Learning curves", elem_id="panels"
                    )
                    curves = gr.HTML(elem_id="curves")
                    problems = gr.HTML(elem_id="problems")
            with gr.Column(scale=3, min_width=320):
                canvas = make_canvas(elem_id="canvas")
                fault = gr.HTML(elem_id="fault")
                prompt = gr.Textbox(
                    label="Prompt", interactive=False, max_lines=4, elem_id="prompt"
                )
                group = gr.Dataframe(
                    label="Answers; choose a row to draw that one",
                    interactive=False,
                    elem_id="group",
                )
                text = gr.Textbox(
                    label="The answer, as text",
                    interactive=False,
                    lines=3,
                    max_lines=6,
                    buttons=["copy"],
                    elem_id="text",
                )
                issues = gr.HTML(elem_id="issues")
                with gr.Row():
                    is_shown = gr.Checkbox(True, label="Show the target", min_width=120)
                    opacity = gr.Slider(0, 1, 0.15, step=0.05, label="Opacity", min_width=120)

        def open_page() -> tuple[Any, ...]:
            """Offer what there is by now, and draw the first curves."""
            rows, said = run.curves()
            titles = panels_of(rows)
            first = [title for title in FIRST_PANELS if title in titles] or titles[:1]
            views = run.views()
            told = [said] if said else []
            if not views:
                told.append(
                    "there are no rollouts and no answers: GSPO and PPO keep rollouts with "
                    "--rollouts-every, TRL's trainers do not"
                )
            return (
                gr.update(choices=views, value=views[0] if views else None),
                gr.update(choices=titles, value=first),
                html.escape("; ".join(told)),
            )

        def choose_view(name: str | None) -> tuple[Any, ...]:
            """Offer the filters and orders that suit what is shown."""
            kind = name in HELD_OUT
            return (
                gr.update(choices=list(FILTERS[kind]), value="all"),
                gr.update(choices=list(ORDERS[kind]), value="as asked"),
                1,
            )

        def show_cards(name: str | None, chosen: str, order: str, sheet: float) -> tuple[Any, ...]:
            """Draw the cards of a page of questions, and the first of them large."""
            if not name:
                return (gr.skip(),) * (len(listed) + len(drawn))
            view, kind = run.view(name), name in HELD_OUT
            keep, key = FILTERS[kind][chosen], ORDERS[kind][order]
            places = [place for place, item in enumerate(view.items) if keep(item)]
            places.sort(key=lambda place: key(view.items[place]))
            pages = max(1, -(-len(places) // CARDS))
            sheet = min(max(1, int(sheet)), pages)
            some = places[(sheet - 1) * CARDS : sheet * CARDS]
            cards = [{"place": place} | _card(run, view, view.items[place]) for place in some]
            return (
                {"items": cards, "chosen": some[0] if some else None},
                html.escape(view.note),
                f"{len(places)} of {counted(len(view.items), 'question')}",
                gr.update(maximum=max(2, pages), value=sheet, visible=pages > 1),
                *(show_item(view, some[0]) if some else (gr.skip(),) * len(drawn)),
            )

        def show_item(view: View, place: int) -> tuple[Any, ...]:
            """Draw a question with its answers."""
            item = view.items[place]
            rows = [list(line.cells) for line in item.lines]
            table = gr.update(value={"headers": list(view.headings), "data": rows})
            return place, table, *show_answer(view, item, item.first)

        def show_answer(view: View, item: Item, row: int) -> tuple[Any, ...]:
            """Draw one of the answers, and say what is wrong with it."""
            prompt, written = item.prompt, item.lines[row].text
            try:
                question, answers = _read(run, view, item)
                drawn = _draw(question, answers, row)
            except ExplainedError as error:
                said = bold(str(error)[:500])
                return gr.update(shown=image_of(NO_IMAGE), value=drawing()), prompt, written, said
            faults = "".join(map(bold, answers[row].issues))
            shown = gr.update(shown=image_of(question.sample.image), value=drawn)
            return shown, prompt or question.prompt, written, faults

        def choose_card(name: str, event: gr.EventData) -> tuple[Any, ...]:
            return show_item(run.view(name), int(getattr(event, "place", 0)))

        def choose_answer(name: str, place: int, event: gr.SelectData) -> tuple[Any, ...]:
            view = run.view(name)
            return show_answer(view, view.items[place], event.index[0])

        def show_curves(titles: list[str]) -> tuple[Any, ...]:
            rows, _ = run.curves()
            known = panels_of(rows)
            pictures = [
                f'<img alt="{html.escape(title)}" src="data:image/png;base64,'
                f'{base64.b64encode(draw_curves(rows, title)).decode()}">'
                for title in titles
                if title in known
            ]
            return ("".join(pictures),)

        listen = partial(listen_guarded, fault, queue=False)
        drawn = [place, group, canvas, prompt, text, issues]
        listed = [grid, note, count, sheet]
        which = [name, chosen, order, sheet]
        opened = listen(page.load, open_page, [], [name, panels, problems])
        listen(opened.success, show_curves, [panels], [curves])
        # Of choices made while one is answered the last counts; by default they would be dropped.
        last = partial(listen, trigger_mode="always_last")
        for listener in (opened.success, name.input):
            following = last(listener, choose_view, [name], [chosen, order, sheet])
            listen(following.success, show_cards, which, [*listed, *drawn])
        for listener in (chosen.input, order.input, sheet.release):
            last(listener, show_cards, which, [*listed, *drawn])
        last(grid.choose, choose_card, [name], drawn)
        last(group.select, choose_answer, [name, place], drawn[2:])
        last(panels.input, show_curves, [panels], [curves])
        gr.on([is_shown.change, opacity.change], None, [is_shown, opacity], None, js=STYLE_CANVAS)
    return page


def _read(run: RunFolder, view: View, item: Item) -> tuple[Question, list[Answer]]:
    """A question with its image, and the answers to it as the environment reads them."""
    question = run.question(view, item)
    texts = [line.drawn for line in item.lines]
    predictions = view.rules.read(texts, [question] * len(texts))
    return question, [Answer(each, None) for each in predictions]


def _draw(question: Question, answers: list[Answer], row: int) -> dict[str, Any]:
    """The target and the answers as the canvas takes them, one of them strong."""
    others = [*answers[:row], *answers[row + 1 :]]
    return drawing(Asked(question, "", True), answers[row], others)


def _card(run: RunFolder, view: View, item: Item) -> dict[str, Any]:
    """A question as the grid shows it, without an image where there is none."""
    try:
        question, answers = _read(run, view, item)
        shown = image_of(question.sample.image, SIDE) | _draw(question, answers, item.first)
    except ExplainedError:
        return {"caption": item.caption}
    expression = shorten(question.sample.expression, 48, placeholder="…")
    return shown | {"caption": f"{expression}: {item.caption}"}
