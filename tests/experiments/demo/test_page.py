"""The page in a browser: headless Chromium asks, clicks, drags, and is told what was wrong."""

import json
import re
import signal
import time

import numpy as np
import pytest
from browser import WAIT, browser, needs_chromium, served, visitors  # noqa: F401
from PIL import Image
from playwright.sync_api import expect
from rich.console import Console
from short_runs import start

from experiments.demo import questions
from experiments.demo.__main__ import Args, open_demo
from experiments.demo.server import Server
from seg_env.data.scenes import Scenes

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def server():
    with served(Server(open_demo(Args(), Console(quiet=True)), "127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def open_page(browser, server):
    def expect_ready(page):
        expect(page.locator("#expression textarea")).not_to_have_value("", timeout=WAIT)

    with visitors(browser, server, expect_ready) as open_page:
        yield open_page


def scores(page):
    """The table of scores by its rows, once an answer is whole."""
    expect(page.locator("#scores table")).to_be_visible(timeout=WAIT)
    rows = page.locator("#scores tbody tr").all()
    cells = [row.locator("td").all_inner_texts() for row in rows]
    return {name: float(value) for name, value, _ in cells}


def place(page, x, y):
    """Where a place of the image is on the screen."""
    page.locator("#canvas svg").scroll_into_view_if_needed()
    box = page.locator("#canvas svg").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    for share in (0.3, 0.6, 1):
        page.mouse.move(*(a + (b - a) * share for a, b in zip(start, end, strict=True)))
    page.mouse.up()


def ask(page, expression=None):
    if expression is not None:
        page.fill("#expression textarea", expression)
    page.click("#expression button")


def own_image(folder):
    """A file with an image of a visitor's own."""
    Image.fromarray(Scenes("test")[0].image).resize((200, 100)).save(folder / "mine.png")
    return folder / "mine.png"


def outlines(page):
    """The answers that are drawn faintly."""
    return [path.get_attribute("d") for path in page.locator("#canvas .other").all()]


def waiting(page, server):
    """How many questions wait for the policy."""
    return page.request.get(f"{server.address}/gradio_api/queue/status").json()["queue_size"]


def test_an_object_is_asked_for_by_text_and_its_outline_appears_as_it_is_written(open_page):
    page = open_page()
    circle = 2  # its outline is long enough to be seen to grow
    sample = Scenes("val").samples_of(circle)[0]
    page.fill("#index input", str(circle))
    page.press("#index input", "Enter")
    expect(page.locator("#chips")).to_contain_text(sample.expression)
    # Every state of the text as the page shows it.
    page.evaluate(
        """() => {
          window.seen = [];
          const area = document.querySelector("#text textarea");
          const look = () => {
            if (window.seen.at(-1) !== area.value) window.seen.push(area.value);
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    ask(page, sample.expression)
    found = scores(page)
    assert found.keys() == {"IoU", "mask_iou", "centroid_distance", "format", "reward"}
    assert found["IoU"] > 0.3
    expect(page.locator("#prompt")).to_contain_text(f"polygon coordinates of {sample.expression}")
    seen = page.evaluate("window.seen")
    # How many states are seen is a matter of the machine's speed.
    unfinished = [text for text in seen if text not in ("", seen[-1])]
    assert unfinished
    assert all(seen[-1].startswith(text) for text in unfinished)
    assert seen[-1].startswith("[[[")
    rings = json.loads(seen[-1])
    assert page.locator("#canvas .vertex").count() == sum(map(len, rings))


def test_a_click_asks_for_the_object_there(open_page):
    page = open_page()
    row, column = np.argwhere(Scenes("val").samples_of(0)[0].target.mask()).mean(axis=0)
    page.mouse.click(*place(page, column / 128, row / 128))
    scores(page)
    prompt = page.locator("#prompt").inner_text()
    x, y = json.loads(re.search(r"the object at (\[.*\]) in", prompt)[1])
    assert abs(x - column / 128) < 0.02
    assert abs(y - row / 128) < 0.02
    assert page.locator("#canvas circle.asked").count() == 1


@pytest.mark.parametrize("form", ["outline", "box", "point"])
@pytest.mark.parametrize("gesture", ["click", "drag"])
def test_a_place_that_cannot_ask_for_a_form_says_what_it_asked_for(open_page, gesture, form):
    page = open_page()
    page.get_by_label(form, exact=True).check()
    start = place(page, 0.3, 0.3)
    drag(page, start, place(page, 0.6, 0.6) if gesture == "drag" else start)
    prompt = page.locator("#prompt")
    expect(prompt).to_contain_text("the object", timeout=WAIT)
    box = (gesture, form) == ("click", "box")
    expect(prompt).to_contain_text("bounding box" if box else "polygon")
    said = f"A {gesture} cannot ask for a {form}: it asked for an outline."
    assert (said in prompt.inner_text()) == (form != "outline" and not box)


def test_a_drag_asks_for_the_object_in_the_box(open_page):
    page = open_page()
    rows, columns = np.nonzero(Scenes("val").samples_of(0)[0].target.mask())
    start = place(page, columns.min() / 128, rows.min() / 128)
    drag(page, start, place(page, (columns.max() + 1) / 128, (rows.max() + 1) / 128))
    scores(page)
    prompt = page.locator("#prompt").inner_text()
    box = np.array(json.loads(re.search(r"the object in (\[.*\]) in", prompt)[1]))
    expected = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
    assert abs(box - expected).max() < 0.02
    assert page.locator("#canvas rect.asked").count() == 1


def test_a_dragged_vertex_is_scored_at_once(open_page):
    page = open_page()
    ask(page)
    before, text = scores(page), page.input_value("#text textarea")
    grip = page.locator("#canvas .grip").first.bounding_box()
    start = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    drag(page, start, place(page, 0.98, 0.02))
    first = re.compile(r"^\[\[\[0\.98,0\.02\],")
    expect(page.locator("#text textarea")).to_have_value(first, timeout=WAIT)
    assert page.input_value("#text textarea") != text
    page.wait_for_function(
        "before => !document.querySelector('#scores').innerText.includes(before)",
        arg=f"{before['IoU']:.3f}",
        timeout=WAIT,
    )
    assert scores(page)["IoU"] < before["IoU"]


def test_a_text_that_is_edited_is_drawn_scored_and_its_faults_are_named(open_page):
    page = open_page()
    ask(page)
    scores(page)
    page.fill("#text textarea", "[[[0.1,0.1],[0.9,0.1],[0.9,0.9]")
    page.locator("#text textarea").blur()
    expect(page.locator("#scores")).to_contain_text("truncated: brackets still", timeout=WAIT)
    assert page.locator("#canvas .vertex").count() == 3


def test_a_group_is_drawn_with_rewards_and_advantages(open_page):
    page = open_page()
    page.fill("#count input[type=number]", "4")
    page.fill("#temperature input[type=number]", "1")
    page.locator("#temperature input[type=number]").blur()
    ask(page)
    expect(page.locator("#group")).to_be_visible(timeout=WAIT)
    assert page.locator("#canvas .other").count() == 3
    cells = page.locator("#group [data-row][data-col='2']").all_inner_texts()
    advantages = np.array(list(map(float, cells)))
    assert len(advantages) == 4
    assert abs(advantages.sum()) < 0.05
    text = page.input_value("#text textarea")
    page.click("#group [data-row='2'][data-col='1']")
    expect(page.locator("#text textarea")).not_to_have_value(text, timeout=WAIT)
    assert page.locator("#canvas .other").count() == 3
    reward = page.locator("#group [data-row='2'][data-col='1']").inner_text()
    assert scores(page)["reward"] == float(reward)
    others = outlines(page)
    page.fill("#text textarea", "[[[0.1,0.1],[0.9,0.1],[0.9,0.9]]]")
    page.locator("#text textarea").blur()
    expect(page.locator("#canvas .vertex")).to_have_count(3, timeout=WAIT)
    assert outlines(page) == others


def test_nothing_but_outlines_is_written_where_that_is_asked_for(open_page):
    page = open_page()
    page.get_by_label("Only outlines allowed").check()
    page.fill("#temperature input[type=number]", "2")  # at which anything else would be written
    page.locator("#temperature input[type=number]").blur()
    ask(page)
    scores(page)
    expect(page.locator("#scores")).to_contain_text("well-formed")


def test_a_file_that_is_no_image_is_refused_in_words(open_page, tmp_path):
    page = open_page()
    (tmp_path / "notes.png").write_text("no image")
    page.set_input_files("#canvas input[type=file]", tmp_path / "notes.png")
    said = "the image that was sent cannot be read as an image: it is of no known kind"
    expect(page.locator("#fault")).to_have_text(said, timeout=WAIT)
    ask(page)  # and the page goes on
    scores(page)
    expect(page.locator("#fault")).to_have_text("")


def test_an_image_of_ones_own_is_asked_about(open_page, tmp_path):
    page = open_page()
    page.set_input_files("#canvas input[type=file]", own_image(tmp_path))
    expect(page.locator("#prompt")).to_contain_text("was made for procedural scenes", timeout=WAIT)
    expect(page.locator("#canvas svg")).to_have_attribute("viewBox", "0 0 200 100")
    ask(page, "the red star")
    expect(page.locator("#scores")).to_contain_text("The target is not known here", timeout=WAIT)


def test_an_expression_is_shown_as_text(open_page):
    page = open_page()
    expression = "the 2 * 3 * 4 grid [of](http://elsewhere.test) <b>${1} {{2}}"
    ask(page, expression)
    said = f"Output the polygon coordinates of {expression} in the image."
    expect(page.locator("#prompt")).to_have_text(said, timeout=WAIT)
    expect(page.locator("#scores")).to_contain_text("not known", timeout=WAIT)
    assert page.locator("#prompt a, #prompt b").count() == 0


@pytest.mark.parametrize("how", ["another", "index", "own"])
def test_another_image_ends_the_answer_that_is_being_written(
    open_page, server, tmp_path, monkeypatch, how
):
    sample_answers = questions.sample_answers

    def sample_slowly(*given, on_token, **settings):
        def wait(texts):
            time.sleep(0.2)
            on_token(texts)

        sample_answers(*given, on_token=wait, **settings)

    page = open_page()
    with monkeypatch.context() as slowed:
        slowed.setattr(questions, "sample_answers", sample_slowly)
        ask(page)
        expect(page.locator("#text textarea")).not_to_have_value("", timeout=WAIT)
    assert server.demo.lock.locked()
    with page.expect_response("**/gradio_api/reset"):  # the last that the browser asks to end it
        if how == "another":
            page.click("#another")
        elif how == "index":
            page.fill("#index input", "1")
            page.press("#index input", "Enter")
        else:
            page.set_input_files("#canvas input[type=file]", own_image(tmp_path))
    if how == "own":
        expect(page.locator("#canvas svg")).to_have_attribute("viewBox", "0 0 200 100")
        expression = "the red star"
    else:
        expression = Scenes("val").samples_of(1)[0].expression
        expect(page.locator("#expression textarea")).to_have_value(expression, timeout=WAIT)
    assert server.demo.lock.acquire(timeout=3)  # in which the answer would not be whole
    server.demo.lock.release()
    page.wait_for_timeout(500)  # in which what was written could still be drawn
    assert page.input_value("#text textarea") == ""
    assert page.locator("#canvas .vertex").count() == 0
    assert waiting(page, server) == 0
    ask(page, expression)
    wanted = "not known" if how == "own" else "IoU"
    expect(page.locator("#scores")).to_contain_text(wanted, timeout=WAIT)
    expect(page.locator("#prompt")).to_contain_text(expression)


def test_a_question_that_waits_is_not_asked_about_another_image(open_page, server):
    pages = [open_page(), open_page()]
    with server.demo.lock:  # so that the policy does not answer yet
        for page in pages:
            with page.expect_response("**/gradio_api/queue/join?*"):
                ask(page)
            page.wait_for_timeout(500)
        assert waiting(pages[1], server) == 1
        with pages[1].expect_response("**/gradio_api/reset"):
            pages[1].click("#another")
        expression = Scenes("val").samples_of(1)[0].expression
        expect(pages[1].locator("#expression textarea")).to_have_value(expression, timeout=WAIT)
        assert waiting(pages[1], server) == 0
    scores(pages[0])
    pages[1].wait_for_timeout(500)
    assert pages[1].input_value("#text textarea") == ""
    ask(pages[1])
    scores(pages[1])
    expect(pages[1].locator("#prompt")).to_contain_text(expression)


@pytest.mark.parametrize(
    ("button", "name"),
    [("Mask (PNG)", "mask.png"), ("COCO JSON", "coco.json"), ("GeoJSON", "outline.geojson")],
)
def test_an_answer_is_downloaded(open_page, button, name, tmp_path):
    page = open_page()
    ask(page)
    scores(page)
    with page.expect_download(timeout=WAIT) as download:
        page.get_by_role("button", name=button, exact=True).click()
    assert download.value.suggested_filename == name
    path = tmp_path / name
    download.value.save_as(path)
    if name == "mask.png":
        assert Image.open(path).size == (128, 128)
    else:
        assert json.loads(path.read_text())


def test_two_visitors_at_once_see_their_own(open_page):
    pages = [open_page(), open_page()]
    pages[1].click("#another")
    samples = [Scenes("val").samples_of(index)[0] for index in (0, 1)]
    assert samples[0].expression != samples[1].expression
    expect(pages[1].locator("#expression textarea")).to_have_value(samples[1].expression)
    for page in pages:
        ask(page)
    for page, sample in zip(pages, samples, strict=True):
        scores(page)
        expect(page.locator("#prompt")).to_contain_text(sample.expression)
    assert pages[0].input_value("#text textarea") != pages[1].input_value("#text textarea")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(open_page, width):
    page = open_page(viewport={"width": width, "height": 844}, has_touch=width < 500)
    ask(page)
    scores(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#canvas svg").bounding_box()["width"] > 300


def test_the_target_can_be_hidden(open_page):
    page = open_page()
    ask(page)
    scores(page)
    target = page.locator("#canvas path.target")
    expect(target).to_be_visible()
    page.get_by_label("Show the target").uncheck()
    expect(target).to_be_hidden(timeout=WAIT)


def test_ctrl_c_while_an_answer_is_written_ends_without_a_crash(browser):
    process = start("demo", "--port", "0")
    while "open http" not in (line := process.stdout.readline()):
        assert line, "it did not start"
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    page.goto(line.split()[1])
    expect(page.locator("#expression textarea")).not_to_have_value("", timeout=WAIT)
    ask(page)
    expect(page.locator("#text textarea")).not_to_have_value("", timeout=WAIT)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    page.close()
    assert process.returncode == 0, output
    assert "interrupted" in output
    assert "Traceback" not in output
