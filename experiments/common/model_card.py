"""The card of a saved policy: what it is, how it was made and measured, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.command import typed_command
from experiments.common.policies import SHIPPED
from experiments.common.report import HEADINGS, table_rows
from experiments.common.tables import markdown_table
from seg_env.envs.core import PADDING_GRAY
from seg_env.tasks import Task, TaskMixture, form_of, prompt_for, query_of
from seg_env.tasks.tasks import REFERENCES
from seg_env.types import Form

ANSWERS: dict[Form, tuple[str, str, str]] = {
    "mask": ("outlines", "its outline", "[[[x,y],…],…]"),
    "bbox": ("boxes", "its box", "[x0,y0,x1,y1]"),
    "point": ("points", "a point on it", "[x,y]"),
}
"""Forms of answer in the plural, what each is of an object, and how it is written."""
LOAD = """\
```python
from PIL import {modules}
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
content = [{{"type": "image"}}, {{"type": "text", "text": "{prompt}"}}]
text = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True
)
image = Image.open("image.png")
{placing}inputs = processor(text=[text], images=[[image]], return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :])[0])
```"""
PLACE = """\
image = image.convert("RGB")
image = ImageOps.pad(image, {size}, Image.Resampling.BILINEAR, color={gray})
"""
LOAD_ADAPTER = """\
It is an adapter; `simpleseg demo --policy {name}` opens it, or PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{name}")
```"""


def write_card(
    folder: Path,
    name: str,
    start: str,
    origin: Mapping[str, str],
    scores: Mapping[str, Any],
    *,
    tasks: TaskMixture,
    canvas_size: tuple[int, int] | None = None,
) -> None:
    """Write ``README.md`` into a policy's folder, with the hub's fields above the text.

    Args:
        folder: The saved policy.
        name: What it is loaded by: its folder, or ``"owner/name"`` on the hub.
        start: The policy that training started from, ``"new"`` for random weights.
        origin: How the run was made, by what the report calls each fact.
        scores: What ``scores.json`` holds.
        tasks: What it was trained to do.
        canvas_size: ``(H, W)`` that images were letterboxed to; None if they kept their sizes.
    """
    adapter = folder / "adapter_config.json"
    base = start
    if adapter.exists():
        base = str(json.loads(adapter.read_text("utf-8"))["base_model_name_or_path"])
    segments = "mask" in tasks.forms
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter.exists() else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["simpleseg-rl", *["image-segmentation"] * segments, "reinforcement-learning"],
    }
    if base in ("new", *SHIPPED):
        fields["license"] = "apache-2.0"
        licence = "Apache-2.0, as the policy that it started from; data have terms of their own."
    else:
        licence = f"That of {base}, which it started from; data have terms of their own."
        if base.count("/") == 1 and not Path(base).exists():
            fields["base_model"] = base
    load = LOAD_ADAPTER if adapter.exists() else LOAD
    tokens = scores["max_new_tokens"]["measuring"]
    facts = [
        f"Prompt: `{prompt_of(task)}`, answered by `{ANSWERS[form_of(task)][2]}`"
        for task in tasks.tasks
    ]
    placing = ""
    if canvas_size is not None:
        height, width = canvas_size
        placing = PLACE.format(size=(width, height), gray=(PADDING_GRAY,) * 3)
        facts.append(
            f"Image: as large as fits into the middle of a gray canvas of {width}x{height} pixels; "
            "numbers are about the canvas"
        )
    facts += [f"Command: `{typed_command()}`", f"Licence: {licence}"]
    kinds, answers, _ = zip(*(ANSWERS[form] for form in tasks.forms), strict=True)
    aim = "segments" if segments else "finds objects"
    sections = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()) + "---",
        f"# A policy that {aim} by writing {' and '.join(kinds)}",
        f"Asked for an object, it answers with {' or '.join(answers)} as text "
        "([SimpleSeg](https://arxiv.org/abs/2601.19228)). It was trained by SimpleSeg-RL.",
        "\n".join(f"- {label}: {fact}" for label, fact in origin.items()),
        "\n".join(f"- {fact}" for fact in facts),
    ]
    if "after" in scores:
        sections += [
            f"## Scores\n\n{scores['before']['questions']} held-out questions of "
            f"`{scores['dataset']}` ({scores['split']}), before and after this training:",
            markdown_table(HEADINGS, table_rows(dict(scores))),
        ]
    by_text = [task for task in tasks.tasks if query_of(task) == "text"]
    asked = prompt_of((by_text or tasks.tasks)[0], "the red star")
    load = load.format(
        name=name,
        base=base,
        prompt=asked,
        tokens=tokens,
        modules="Image, ImageOps" if placing else "Image",
        placing=placing,
    )
    sections += ["## Use", load]
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", "utf-8")


def prompt_of(task: Task, expression: str = "{expression}") -> str:
    """The prompt of a task about an expression, or about a place in letters for its numbers."""
    kind = query_of(task)
    given = expression if kind == "text" else ANSWERS[kind][2]
    return prompt_for(form_of(task)).format(expression=REFERENCES[kind].format(query=given))
