"""The page of `palidecode serve` in a real browser, against real servers."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from palidecode import PaliDecoder, parse
from palidecode.coco.writing import to_coco
from palidecode.files import data_folder
from palidecode.prompts import write_prompt
from palidecode.serve.page import FIRST
from tests.browsing import chromium

pytestmark = pytest.mark.slow

DEMO = data_folder("palidecode.demo")
SCENE = DEMO / "scenes" / FIRST
KEY = "a key of many letters"
HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=2</script>",
    "{{ 7*7 }} ${window.hacked=3}",
)
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"
SERVE = "from palidecode.cli import main; sys.exit(main(sys.argv[1:]))"


class Server:
    """A server in a process of its own."""

    def __init__(self, *options, before="import sys\n"):
        command = [sys.executable, "-c", before + SERVE, "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(60)
        self.process.stdout.close()


def serving(*options, **more):
    @pytest.fixture(scope="module")
    def started():
        server = Server(*options, **more)
        yield server
        server.stop()

    return started


asking = serving()
reading = serving("--model", "none", before=WITHOUT_TORCH)
strict = serving("--api-key", KEY, "--max-pixels", "300000")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def opened(browser):
    """Opens pages; at the end no script failed, and nobody but the server was asked."""
    pages, said, asked = [], [], []

    def go(server):
        page = browser.new_page()
        pages.append((page, server.address))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append((server.address, request.url)))
        page.goto(server.address)
        return page

    yield go
    for page, _ in pages:
        assert page.evaluate("window.hacked") is None
        page.evaluate("localStorage.clear()")
        page.close()
    refusals = "Failed to load resource"
    assert [text for text in said if not text.startswith(refusals)] == []
    own = [url for home, url in asked if url.startswith((home, f"blob:{home}", "data:"))]
    assert len(own) == len(asked)


@pytest.fixture
def page(opened, asking):
    page = opened(asking)
    answered(page)
    return page


@pytest.fixture(scope="module")
def decoder():
    return PaliDecoder.from_pretrained("demo")


def answered(page):
    """Wait for the end of an answer."""
    expect(page.locator("#state")).to_have_text(re.compile(r"tokens? · .*\d s$"))
    expect(page.locator("#go")).to_have_text("Ask")


def ask(page, prompt):
    page.locator("#prompt").fill(prompt)
    page.locator("#go").click()
    expect(page.locator("#raw")).to_contain_text(f"{prompt} →")
    answered(page)


def read(page, answer):
    page.get_by_role("tab", name="Read an answer").click()
    expect(page.locator("#objects li")).to_have_count(5)
    page.locator("#answer").fill(answer)
    expect(page.locator("#raw q")).to_contain_text(answer[-12:])


def labels(page):
    return page.locator("#objects .name").all_text_contents()


def boxes_on_screen(page):
    """The boxes as they are on the screen, in pixels of the picture."""
    frame = page.locator("#drawing").bounding_box()
    side = float(page.locator("#drawing").get_attribute("viewBox").split()[2])
    scale = side / frame["width"]
    shown = []
    for rect in page.locator("#drawing > .o > .box").all():
        box = rect.bounding_box()
        x, y = (box["x"] - frame["x"]) * scale, (box["y"] - frame["y"]) * scale
        shown.append([x, y, x + box["width"] * scale, y + box["height"] * scale])
    return shown


def focused(page, attribute="id"):
    return page.evaluate(f"document.activeElement.{attribute}")


def test_it_opens_with_a_picture_and_its_answer(page, decoder):
    found = decoder.segment(str(SCENE))
    assert len(found) == 5
    assert page.title() == "palidecode serve"
    assert labels(page) == list(found.labels)
    np.testing.assert_allclose(boxes_on_screen(page), found.xyxy, atol=1.5)
    assert page.locator("#drawing .mask").count() == 5
    scores = page.locator("#objects b").all_text_contents()
    assert scores == [f"{score:.2f}" for score in found.scores]
    tags = page.locator("#view .tag").all_text_contents()
    assert tags == [f"{a} {b}" for a, b in zip(found.labels, scores, strict=True)]
    assert page.locator("#picture").evaluate("image => image.naturalWidth") == 448
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == page.evaluate("document.documentElement.clientWidth")


def test_an_own_picture_is_chosen_dropped_and_pasted(page, decoder, tmp_path):
    names = "scene_000003.jpg", "scene_000009.jpg", "scene_000010.jpg"
    chosen, dropped, pasted = [DEMO / "scenes" / name for name in names]
    page.locator("#file").set_input_files(chosen)
    expect(page.locator("#named")).to_contain_text(chosen.name)
    answered(page)
    assert labels(page) == list(decoder.segment(str(chosen)).labels)

    def handed(path):
        return page.evaluate_handle(
            """([bytes, name]) => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
                return held;
            }""",
            [list(path.read_bytes()), path.name],
        )

    page.dispatch_event("#easel", "dragenter", {"dataTransfer": handed(dropped)})
    expect(page.locator(".drop-here")).to_be_visible()
    page.dispatch_event("#easel", "drop", {"dataTransfer": handed(dropped)})
    expect(page.locator(".drop-here")).to_be_hidden()
    expect(page.locator("#named")).to_contain_text(dropped.name)
    answered(page)
    assert labels(page) == list(decoder.segment(str(dropped)).labels)

    page.evaluate(
        "held => dispatchEvent(new ClipboardEvent('paste', { clipboardData: held }))",
        handed(pasted),
    )
    expect(page.locator("#named")).to_contain_text(pasted.name)
    answered(page)
    assert labels(page) == list(decoder.segment(str(pasted)).labels)

    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    page.locator("#file").set_input_files(text)
    expect(page.locator("#failed")).to_have_text(
        "notes.txt: not a picture that this browser can show"
    )


def test_buttons_write_the_prompt(page, decoder):
    prompt = page.locator("#prompt")
    assert prompt.input_value() == write_prompt("segment", decoder.classes)
    page.locator("#names").get_by_text("all").click()
    assert prompt.input_value() == "segment"
    page.locator("#names [data-name=circle]").click()
    page.locator("#names [data-name=heart]").click()
    page.locator("[data-verb=detect]").click()
    assert prompt.input_value() == "detect circle ; heart"
    pressed = page.locator("#names [aria-pressed=true]").all_text_contents()
    assert pressed == ["circle", "heart"]
    page.locator("#go").click()
    answered(page)
    assert labels(page) == list(decoder.detect(str(SCENE), "circle ; heart").labels)
    assert page.locator("#drawing .mask").count() == 0
    page.locator("[data-verb=caption]").click()
    assert prompt.input_value() == "caption en"
    page.locator("[data-verb=segment]").click()
    assert prompt.input_value() == "segment circle ; heart"
    prompt.fill("  ")
    page.locator("#go").click()
    expect(page.locator("#failed")).to_contain_text("Type a prompt")


def test_tokens_light_their_part_of_the_picture(page, decoder):
    answer = decoder.generate(
        str(SCENE), write_prompt("segment", decoder.classes), grammar=True, over="allowed"
    )[0]
    chips = page.locator(".chip")
    assert chips.count() == len(answer.token_ids)
    first = page.locator(".group").first
    assert first.locator(".loc").count() == 4
    assert first.locator(".seg").count() == 16
    x1, y1, x2, y2 = decoder.read([answer]).xyxy[0].tolist()
    for order, (edge, axis, value) in enumerate(
        [("top", "y", y1), ("left", "x", x1), ("bottom", "y", y2), ("right", "x", x2)]
    ):
        first.locator(".loc").nth(order).hover()
        line = page.locator("#drawing .light .edge")
        assert float(line.get_attribute(f"{axis}1")) == pytest.approx(value, abs=0.01)
        assert line.get_attribute(f"{axis}1") == line.get_attribute(f"{axis}2")
        about = page.locator("#about").text_content()
        assert f"{edge} edge of {labels(page)[0]}, {axis} = " in about
        assert float(re.search(r"= (\S+) pixels", about)[1]) == pytest.approx(value, abs=0.051)
        assert about.endswith(f"probability {np.exp(answer.logprobs[order]):.3f}")
    first.locator(".seg").nth(6).hover()
    cell = page.locator("#drawing .light .cell.on")
    assert float(cell.get_attribute("x")) == pytest.approx(x1 + (x2 - x1) / 2, abs=0.01)
    assert float(cell.get_attribute("y")) == pytest.approx(y1 + (y2 - y1) / 4, abs=0.01)
    assert "code 7 of 16 (row 2, column 3" in page.locator("#about").text_content()
    assert page.locator("#drawing > .o.hot .mask").count() == 1
    page.locator("#state").hover()
    assert page.locator("#drawing .light").count() == 0


def test_thresholds_layers_and_sub_bin_boxes(page, decoder):
    found = decoder.segment(str(SCENE), sub_bin=True)
    before = boxes_on_screen(page)
    page.locator("#sub-bin").check()
    answered(page)
    np.testing.assert_allclose(boxes_on_screen(page), found.xyxy, atol=1.5)
    assert boxes_on_screen(page) != before
    lowest = float(np.sort(found.scores)[2])
    page.locator("#threshold").fill(f"{lowest + 0.005:.2f}")
    hidden = int((found.scores < round(lowest + 0.005, 2)).sum())
    assert 0 < hidden < 5
    assert page.locator("#drawing .box").count() == 5 - hidden
    assert page.locator("#objects .below").count() == hidden
    page.locator("#threshold").fill("0")
    for layer, shapes in (("boxes", ".box"), ("masks", ".mask"), ("labels", ".tag")):
        button = page.locator(f"[data-layer={layer}]")
        button.click()
        expect(page.locator(f"#view {shapes}").first).to_be_hidden()
        button.press("Space")
        expect(page.locator(f"#view {shapes}").first).to_be_visible()


def test_downloads(page, decoder):
    found = decoder.segment(str(SCENE))
    with page.expect_download() as download:
        page.locator("#save-coco").click()
    assert download.value.suggested_filename == SCENE.with_suffix(".json").name
    coco = json.loads(Path(download.value.path()).read_text())
    wanted = to_coco(found, file_names=[SCENE.name])
    for key in ("images", "categories", "annotations"):
        assert coco[key] == json.loads(json.dumps(wanted[key]))
    least = np.ceil(found.scores.min() * 100) / 100
    page.locator("#threshold").fill(f"{least:.2f}")
    with page.expect_download() as download:
        page.locator("#save-coco").click()
    scores = [
        row["score"] for row in json.loads(Path(download.value.path()).read_text())["annotations"]
    ]
    assert 0 < len(scores) < len(found)
    assert min(scores) >= least
    with page.expect_download() as download:
        page.locator("#save-png").click()
    drawn = Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGB")
    assert drawn.width == drawn.height == 900
    plain = Image.open(SCENE).convert("RGB").resize(drawn.size, Image.Resampling.BILINEAR)
    changed = np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max(axis=2) > 60
    assert 0.01 < changed.mean() < 0.5


def test_earlier_answers_come_back(page):
    every = labels(page)
    ask(page, "detect heart")
    assert labels(page) == ["heart"]
    page.locator("#scenes button").nth(3).click()
    expect(page.locator("#named")).to_contain_text("scene_000003")
    answered(page)
    earlier = page.locator("#history button")
    assert earlier.count() == 3
    earlier.last.click()
    assert labels(page) == every
    assert FIRST in page.locator("#named").text_content()
    assert page.locator("#prompt").input_value().count(";") == 15
    earlier.nth(1).click()
    assert labels(page) == ["heart"]
    assert page.locator("#prompt").input_value() == "detect heart"


def test_an_answer_from_elsewhere_is_read(page):
    page.get_by_role("tab", name="Read an answer").click()
    expect(page.locator("#named")).to_contain_text("harbour.png · 960 × 600")
    expect(page.locator("#drawing .mask")).to_have_count(5)
    page.get_by_role("button", name="an odd answer").click()
    row = json.loads((DEMO / "answers.jsonl").read_text().splitlines()[1])
    result = parse(row["output"])
    expect(page.locator("#state")).to_contain_text(f"{len(result.issues)} parse issues")
    kinds = page.locator("#raw small").all_text_contents()
    assert kinds == [str(issue.kind.value).replace("_", " ") for issue in result.issues]
    assert page.locator("#raw q").evaluate("q => q.textContent") != row["output"]
    marked = "".join(page.locator("#raw mark").all_text_contents())
    assert result.issues[0].text.strip() in marked
    assert labels(page) == [item.label for item in result.objects if item.loc]
    with page.expect_download() as download:
        page.locator("#save-coco").click()
    coco = json.loads(Path(download.value.path()).read_text())
    assert coco["images"][0] | {"id": 1} == {
        "id": 1,
        "file_name": "harbour.png",
        "width": 960,
        "height": 600,
    }
    assert len(coco["annotations"]) == 2
    page.get_by_role("button", name="No picture").click()
    page.locator("#width").fill("2000")
    page.locator("#height").fill("1000")
    page.locator("#answer").fill("<loc0000><loc0512><loc0512><loc1023> 🐈 cat ; <loc0001> x")
    expect(page.locator("#named")).to_have_text("no picture · 2000 × 1000")
    expect(page.locator("#objects .name")).to_have_text(["🐈 cat"])
    np.testing.assert_allclose(boxes_on_screen(page), [[1000, 0, 1998, 500]], atol=4)
    assert page.locator(".chip.odd code").first.text_content() == "<loc0001>"


def test_labels_are_text(page):
    loc = "<loc0100><loc0100><loc0900><loc0900>"
    read(page, f" {HOSTILE[0]} ; ".join([loc, loc, loc]) + f" {HOSTILE[1]} ; {loc} {HOSTILE[2]}")
    wanted = [HOSTILE[0], HOSTILE[0], HOSTILE[1], HOSTILE[2]]
    expect(page.locator("#objects .name")).to_have_text(wanted)
    assert page.locator("#view .tag").all_text_contents() == wanted
    assert page.locator("main img:not(#picture, #scenes img), main script").count() == 0
    page.get_by_role("tab", name="Ask the model").click()
    page.locator("#prompt").fill(f"detect {HOSTILE[0]}")
    page.locator("#go").click()
    expect(page.locator("#failed")).to_contain_text(HOSTILE[0])
    assert page.evaluate("window.hacked") is None


def test_without_a_model_and_without_torch(opened, reading):
    page = opened(reading)
    expect(page.locator("#objects li")).to_have_count(5)
    assert page.locator("[role=tab], #prompt, #sub-bin:visible").count() == 0
    assert page.locator("#drawing .mask").count() == 5
    page.locator("#file").set_input_files(SCENE)
    expect(page.locator("#named")).to_have_text(f"{SCENE.name} · 448 × 448")
    expect(page.locator("#width")).to_be_disabled()
    page.locator("#answer").fill("<loc0256><loc0256><loc0768><loc0768> thing")
    expect(page.locator("#objects .name")).to_have_text(["thing"])
    np.testing.assert_allclose(boxes_on_screen(page), [[112, 112, 336, 336]], atol=1.5)


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Tab")
    assert focused(page, "className") == "skip"
    page.keyboard.press("Enter")
    while focused(page) != "prompt":
        page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("detect heart ; circle")
    page.keyboard.press("Enter")
    expect(page.locator("#raw")).to_contain_text("detect heart ; circle →")
    answered(page)
    while "found" not in focused(page, "className"):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.locator("#drawing .o.hot").count() == 1
    page.keyboard.press("Enter")
    assert "chip loc" in focused(page, "className")
    expect(page.locator("#about")).to_contain_text("top edge of")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#about")).to_contain_text("left edge of")
    page.keyboard.press("End")
    expect(page.locator("#about")).to_contain_text("<eos>")
    # Tab leaves the tokens: one of them is a stop, not all.
    page.keyboard.press("Tab")
    assert "chip" not in focused(page, "className")
    page.locator("#tab-ask").focus()
    page.keyboard.press("ArrowRight")
    assert focused(page) == "tab-read"
    expect(page.locator("#answer")).to_be_visible()


def test_stop_ends_an_answer(page, asking):
    asking.process.send_signal(signal.SIGSTOP)
    try:
        page.locator("#go").click()
        expect(page.locator("#state")).to_have_text("Asking …")
        expect(page.locator("#go")).to_have_text("Stop")
        page.locator("#go").click()
        expect(page.locator("#state")).to_have_text("Stopped.")
        page.locator("#go").click()
        expect(page.locator("#state")).to_have_text("Asking …")
        page.keyboard.press("Escape")
        expect(page.locator("#state")).to_have_text("Stopped.")
        assert page.locator("#failed").is_hidden()
    finally:
        asking.process.send_signal(signal.SIGCONT)
    ask(page, "detect heart")
    assert labels(page) == ["heart"]


def test_refusals_are_one_line(opened, strict, tmp_path):
    page = opened(strict)
    failed = page.locator("#failed")
    expect(failed).to_contain_text("key")
    page.locator("#key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    answered(page)
    assert failed.is_hidden()
    page.locator("#file").set_input_files(DEMO / "harbour.png")
    expect(failed).to_contain_text("300,000")
    assert "\n" not in failed.text_content()
    expect(page.locator("#state")).to_have_text("Stopped.")
    strict.process.kill()
    strict.process.wait()
    page.locator("#go").click()
    expect(failed).to_have_text("The server can't be reached: is it still running?")


SIDES = "items => items.map(i => i.getBoundingClientRect()).map(box => [box.left, box.right])"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("mode", ["ask", "read"])
def test_axe_finds_nothing_serious_and_nothing_is_cut(page, mode, width, scheme):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.locator(f"#tab-{mode}").click()
    if mode == "read":
        page.get_by_role("button", name="an odd answer").click()
        expect(page.locator("#raw small").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for part in (".chip", "#objects .found", "#go", "#save-png", "#easel"):
        sides = page.locator(f"{part}:visible").evaluate_all(SIDES)  # all of one moment
        assert all(left >= 0 and right <= width for left, right in sides)
    violations = Axe().run(page).response["violations"]
    assert [(found["id"], found["nodes"][0]["html"]) for found in violations] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(17, 20, 23)") == (scheme == "dark")


def test_on_a_phone_the_picture_stays_while_tokens_are_touched(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator(".chip.loc").nth(9).click()
    easel, chip = (page.locator(name).bounding_box() for name in ("#easel", ".chip.hot"))
    assert 0 <= easel["y"] < easel["y"] + easel["height"] <= chip["y"] + 1
    assert page.locator("#drawing .light .edge").count() == 1
