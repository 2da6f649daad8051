"""The page that shows a run, in a browser: headless Chromium chooses, filters, and looks."""

import json
import shutil
import signal

import pytest
from browser import WAIT, browser, needs_chromium, served, visitors  # noqa: F401
from playwright.sync_api import expect
from short_runs import start

from experiments.common.rollouts import read_rollout
from experiments.demo.server import PageServer
from experiments.inspection.page import STYLE, build
from experiments.inspection.run_folder import RunFolder

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """A folder that tests of the page may change and put back."""
    ignored = shutil.ignore_patterns("policy", "checkpoints", "tensorboard", "*.png")
    place = tmp_path_factory.mktemp("shown") / "<b>gspo *1*"
    return shutil.copytree(finished_run, place, ignore=ignored)


@pytest.fixture(scope="module")
def server(folder):
    with served(PageServer(build(RunFolder(folder)), STYLE, "127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def open_page(browser, server):
    def expect_ready(page):
        expect(page.locator("#grid button").first).to_be_visible(timeout=WAIT)

    with visitors(browser, server, expect_ready) as open_page:
        yield open_page


def choose(page, dropdown, option):
    page.click(f"#{dropdown} input")
    page.get_by_role("option", name=option, exact=True).click()


def table(page):
    """The rows of the answers, by their headings."""
    cells = page.locator("#group [data-row]").all()
    rows = {}
    for cell in cells:
        row, column = (int(cell.get_attribute(f"data-{name}")) for name in ("row", "col"))
        rows.setdefault(row, {})[column] = cell.inner_text().strip()
    return [[cells[column] for column in sorted(cells)] for _, cells in sorted(rows.items())]


def test_a_group_is_drawn_with_its_rewards_and_advantages(open_page, folder):
    page = open_page()
    group = read_rollout(folder / "rollouts" / "update_000003.jsonl").groups[0]
    expect(page.locator("#prompt textarea")).to_have_value(group.prompt, timeout=WAIT)
    best = max(group.answers, key=lambda answer: answer.reward)
    expect(page.locator("#text textarea")).to_have_value(best.text)
    assert page.locator("#canvas .other").count() == 3
    assert page.locator("#grid button").count() == 4
    rows = table(page)
    assert [float(row[1]) for row in rows] == pytest.approx(
        [answer.reward for answer in group.answers], abs=6e-4
    )
    assert [float(row[2]) for row in rows] == pytest.approx(
        [answer.advantage for answer in group.answers], abs=6e-3
    )


def test_another_card_and_another_answer_are_drawn(open_page, folder):
    page = open_page()
    group = read_rollout(folder / "rollouts" / "update_000003.jsonl").groups[2]
    page.locator("#grid button").nth(2).click()
    expect(page.locator("#prompt textarea")).to_have_value(group.prompt, timeout=WAIT)
    expect(page.locator("#grid button.chosen")).to_have_count(1)
    for row, answer in enumerate(group.answers):
        page.click(f"#group [data-row='{row}'][data-col='1']")
        expect(page.locator("#text textarea")).to_have_value(answer.text, timeout=WAIT)


def test_an_earlier_update_is_shown(open_page, folder):
    page = open_page()
    choose(page, "view", "update 1")
    group = read_rollout(folder / "rollouts" / "update_000001.jsonl").groups[0]
    expect(page.locator("#prompt textarea")).to_have_value(group.prompt, timeout=WAIT)


def test_held_out_questions_are_filtered_by_gain_and_loss(open_page, folder):
    page = open_page()
    choose(page, "view", "held-out, greedy")
    expect(page.locator("#count")).to_have_text("30 of 30 questions", timeout=WAIT)
    assert page.locator("#grid button").count() == 24
    expect(page.locator("#sheet")).to_be_visible()
    assert [row[0] for row in table(page)] == ["before", "after"]
    sides = [json.loads((folder / f"{name}.json").read_text()) for name in ("before", "after")]
    old, new = ([row[0] for row in side["greedy"]["iou"]] for side in sides)
    counts = {
        "with a gain": sum(b > a for a, b in zip(old, new, strict=True)),
        "with a loss": sum(b < a for a, b in zip(old, new, strict=True)),
    }
    assert all(counts.values())
    for name, count in counts.items():
        choose(page, "filter", name)
        expect(page.locator("#count")).to_have_text(f"{count} of 30 questions", timeout=WAIT)
    choose(page, "order", "largest loss")
    expect(page.locator("#grid button").first).to_contain_text(
        f"({min(b - a for a, b in zip(old, new, strict=True)):+.2f})", timeout=WAIT
    )


def test_the_last_page_has_the_rest(open_page):
    page = open_page()
    choose(page, "view", "held-out, sampled")
    expect(page.locator("#sheet")).to_be_visible(timeout=WAIT)
    page.fill("#sheet input[type=number]", "2")
    page.locator("#sheet input[type=number]").blur()
    expect(page.locator("#grid button")).to_have_count(6, timeout=WAIT)


def test_learning_curves_are_drawn_and_chosen(open_page):
    page = open_page()
    expect(page.locator("#curves img")).to_have_count(2, timeout=WAIT)
    choose(page, "panels", "Gradient norm")
    expect(page.locator("#curves img")).to_have_count(3, timeout=WAIT)


def test_what_a_folder_says_is_text(open_page, folder):
    path = folder / "rollouts" / "update_000003.jsonl"
    whole = path.read_text()
    head, line, *_ = whole.splitlines()
    row = json.loads(line)
    bad = "<img src=x onerror=alert(1)>![x](http://elsewhere.test/x)"
    row["prompt"] = row["answers"][0]["text"] = bad
    row["answers"][0] |= {"faults": [bad], "reward": 9.0, "rewards": {bad: 1.0}}
    path.write_text(f"{head}\n{json.dumps(row)}\nnonsense\n")
    try:
        page = open_page()
        expect(page.locator("#prompt textarea")).to_have_value(bad, timeout=WAIT)
        expect(page.locator("#text textarea")).to_have_value(bad)
        expect(page.locator("#note")).to_contain_text("1 line of update_000003.jsonl could not")
        expect(page.locator("h1")).to_have_text("<b>gspo *1*")
        assert bad in table(page)[0]
        expect(page.locator("#group th", has_text=bad).first).to_be_attached()
        assert page.locator("img[src='x'], img[src^='http://elsewhere']").count() == 0
        row["sample"] = "[log in](http://elsewhere.test/y) ${1} {{2}}" + bad
        path.write_text(f"{head}\n{json.dumps(row)}\n")
        page = open_page()
        expect(page.locator("#issues")).to_contain_text(row["sample"][:80], timeout=WAIT)
        assert (
            page.locator("a[href^='http://elsewhere'], img[src^='http://elsewhere']").count() == 0
        )
    finally:
        path.write_text(whole)


def test_a_question_that_is_gone_is_said_and_the_page_goes_on(open_page, folder):
    path = folder / "rollouts" / "update_000003.jsonl"
    whole = path.read_text()
    head, first, *rest = whole.splitlines()
    other = json.dumps(json.loads(first) | {"sample": "another"})
    path.write_text("".join(f"{line}\n" for line in (head, other, *rest)))
    try:
        page = open_page()
        expect(page.locator("#issues")).to_contain_text("the data are others", timeout=WAIT)
        page.locator("#grid button").nth(1).click()
        expect(page.locator("#issues")).not_to_contain_text("the data are others", timeout=WAIT)
        assert page.locator("#grid button img").count() == 3
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(open_page, width):
    page = open_page(viewport={"width": width, "height": 844}, has_touch=width < 500)
    expect(page.locator("#curves img")).to_have_count(2, timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    canvas, curves = (page.locator(name).bounding_box() for name in ("#canvas svg", "#curves"))
    assert canvas["width"] > 300
    assert canvas["y"] < curves["y"]
    assert (canvas["x"] > curves["x"] + 300) == (width > 500)


def test_ctrl_c_ends_without_a_crash(folder):
    process = start("inspection", str(folder), "--port", "0")
    while "open http" not in (line := process.stdout.readline()):
        assert line, "it did not start"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "interrupted" in output
    assert "Traceback" not in output
