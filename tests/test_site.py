"""Every block of Python on the documentation's pages runs, and every page is in the navigation."""

import json
import re
from pathlib import Path

import pytest
import yaml

from seg_env.data.annotate import Job, annotate, write_scene_shards

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks_of(page):
    return BLOCK.findall((DOCS / page).read_text("utf-8"))


ELSEWHERE = {"trainers.md"}
"""Their blocks need servers or other frameworks: those that can run do so in the tests of these."""


@pytest.mark.parametrize(
    "page", [each for each in PAGES if blocks_of(each) and each not in ELSEWHERE]
)
def test_the_blocks_of_a_page_run_one_after_the_other(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if page == "annotate.md":
        annotate_scenes()
    namespace = {"__name__": "__page__"}
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), namespace)


def annotate_scenes():
    """What the commands above the block make: scenes annotated from their truth."""
    write_scene_shards(Path("web"), 4, per_shard=4, difficulty="medium", size=64)
    source = "tar" + json.dumps({"path": "web"})
    truth = ("true_boxes", "true_masks", "true_expressions")
    for container, folder in (("jsonl", "annotate"), ("parquet", "parquet")):
        job = Job(source, *truth, filters=(), container=container, form="rle")
        annotate(job, Path("runs") / folder)


def leaves(entry):
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [leaf for value in values for leaf in leaves(value)]


def test_every_page_is_in_the_navigation_once():
    navigation = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(leaves(navigation)) == PAGES
