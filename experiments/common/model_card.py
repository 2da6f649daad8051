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
from seg_env.tasks import PROMPTS

LOAD = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
content = [{{"type": "image"}}, {{"type": "text", "text": "{prompt}"}}]
text = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True
)
inputs = processor(text=[text], images=[[Image.open("image.png")]], return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(processor.batch_decode(answer[:, inputs["input_ids"].shape[1] :])[0])
```"""
LOAD_ADAPTER = """\
It is an adapter; `simpleseg demo --policy {name}` opens it, or PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{name}")
```"""


def write_card(
    folder: Path, name: str, start: str, origin: Mapping[str, str], scores: Mapping[str, Any]
) -> None:
    """Write ``README.md`` into a policy's folder, with the hub's fields above the text.

    Args:
        folder: The saved policy.
        name: What it is loaded by: its folder, or ``"owner/name"`` on the hub.
        start: The policy that training started from, ``"new"`` for random weights.
        origin: How the run was made, by what the report calls each fact.
        scores: What ``scores.json`` holds.
    """
    adapter = folder / "adapter_config.json"
    base, prompt = start, PROMPTS["text->mask"]
    if adapter.exists():
        base = str(json.loads(adapter.read_text("utf-8"))["base_model_name_or_path"])
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter.exists() else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["simpleseg-rl", "image-segmentation", "reinforcement-learning"],
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
    sections = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()) + "---",
        "# A policy that segments by writing outlines",
        "Asked for an object, it answers with its outline as text, `[[[x,y],…],…]` "
        "([SimpleSeg](https://arxiv.org/abs/2601.19228)). It was trained by SimpleSeg-RL.",
        "\n".join(f"- {label}: {fact}" for label, fact in origin.items()),
        f"- Prompt: `{prompt}`\n- Command: `{typed_command()}`\n- Licence: {licence}",
    ]
    if "after" in scores:
        sections += [
            f"## Scores\n\n{scores['before']['questions']} held-out questions of "
            f"`{scores['dataset']}` ({scores['split']}), before and after this training:",
            markdown_table(HEADINGS, table_rows(dict(scores))),
        ]
    asked = prompt.replace("{expression}", "the red star")
    sections += ["## Use", load.format(name=name, base=base, prompt=asked, tokens=tokens)]
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", "utf-8")
