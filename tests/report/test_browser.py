"""The report in a real browser: Debian's chromium, without a screen and without a network."""

from __future__ import annotations

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from palidecode import compare_coco, evaluate_coco
from palidecode.cli import main
from palidecode.report import write_comparison, write_report
from palidecode.report.gallery import KINDS
from tests.browsing import chromium
from tests.report.example import drawn_truth, noisy_predictions

pytestmark = pytest.mark.slow

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "javascript:window.hacked=3",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with both tabs, 40 pictures, and what it holds."""
    folder = tmp_path_factory.mktemp("report")
    truth, pictures = drawn_truth(40)
    for image, picture in zip(truth["images"], pictures, strict=True):
        Image.fromarray(picture).save(folder / image["file_name"])
    found = noisy_predictions(truth, 3)
    results = {kind: evaluate_coco(truth, found, kind, bootstrap=20) for kind in ("bbox", "segm")}
    write_report(folder / "index.html", results, images=folder)
    return folder / "index.html", results


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A page of two predictions of 40 pictures, and what it compares."""
    folder = tmp_path_factory.mktemp("compared")
    truth, pictures = drawn_truth(40)
    for image, picture in zip(truth["images"], pictures, strict=True):
        Image.fromarray(picture).save(folder / image["file_name"])
    sides = noisy_predictions(truth, 3), noisy_predictions(truth, 5)
    results = {kind: compare_coco(truth, *sides, kind, bootstrap=20) for kind in ("bbox", "segm")}
    write_comparison(folder / "index.html", results, images=folder)
    return folder / "index.html", results


@pytest.fixture
def opened(browser):
    """Opens pages; at the end nothing may have been said on the console or asked of a network."""
    pages, said, asked = [], [], []

    def go(path):
        page = browser.new_page()
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield go
    own = [page.url.partition("#")[0] for page in pages]
    own += [f"{url.rpartition('/')[0]}/index_files/" for url in own]
    for page in pages:
        page.evaluate("localStorage.clear()")
        page.close()
    assert said == []
    assert [url for url in asked if not url.startswith((*own, "data:image/webp"))] == []


@pytest.fixture
def page(opened, report):
    return opened(report[0])


def names(page, panel="bbox"):
    return page.locator(f"#panel-{panel} .shot .name").all_text_contents()


def count(page, panel="bbox"):
    return page.locator(f"#panel-{panel} .count").text_content()


def look(page, selector, value):
    page.locator(f"#panel-bbox [data-filter={selector}]").select_option(value)


def embedded(page):
    return json.loads(page.locator("#data").text_content())["kinds"]["bbox"]


def test_it_opens_with_everything_in_place(page, report):
    result = report[1]["bbox"]
    assert page.title() == "predictions against ground truth"
    panel = page.locator("#panel-bbox")
    assert panel.locator(".hero .value").text_content() == f"{result.stats[0]:.3f}"
    for section in ("numbers", "errors", "curves", "classes", "confusion", "gallery"):
        box = panel.locator(f"[data-id={section}]").bounding_box()
        assert box["height"] > 150
        assert box["width"] > 900
    assert panel.locator(".plot svg").count() == 6
    picture = panel.locator(".shot img").first
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == page.evaluate("document.documentElement.clientWidth")


def test_pictures_come_in_chunks_worst_first(page):
    data = embedded(page)
    assert count(page) == "40 pictures"
    assert len(names(page)) == 24
    page.locator("#panel-bbox [data-more]").scroll_into_view_if_needed()
    expect(page.locator("#panel-bbox .shot")).to_have_count(40)
    assert names(page) == [picture["name"] for picture in data["pictures"]]
    assert page.locator("#panel-bbox [data-more]").is_hidden()


def test_filters_change_what_is_shown(page):
    data = embedded(page)
    pictures, classes = data["pictures"], data["classes"]

    def fitting(test):
        return [p["name"] for p in pictures if any(test(row, p) for row in p["predictions"])]

    look(page, "kind", "class")
    wanted = fitting(lambda row, _: KINDS[row[1]] == "class")
    assert 0 < len(wanted) < 24
    assert names(page) == wanted
    assert count(page).startswith(f"{len(wanted)} of 40 pictures match")
    bright = page.locator("#panel-bbox .predicted .o.class:not(.dim):not(.tag)").count()
    total = sum(KINDS[row[1]] == "class" for p in pictures for row in p["predictions"])
    assert bright == total
    assert page.locator("#panel-bbox .predicted .o.ok:not(.dim):not(.tag)").count() == 0
    look(page, "kind", "")

    look(page, "class", "disc")
    look(page, "kind", "missed")
    disc = classes.index("disc")
    wanted = [p["name"] for p in pictures if any(t[:2] == [disc, 1] for t in p["truths"])]
    assert 0 < len(wanted) < 24
    assert names(page) == wanted
    page.locator("#panel-bbox [data-reset]").click()
    assert count(page) == "40 pictures"

    page.locator("#panel-bbox [data-filter=iou-from]").fill("0.5")
    page.locator("#panel-bbox [data-filter=iou-to]").fill("0.7")
    wanted = fitting(lambda row, _: 0.5 <= row[3] <= 0.7)
    assert 0 < len(wanted) < 24
    assert names(page) == wanted
    page.locator("#panel-bbox [data-filter=score-from]").fill("0.8")
    wanted = fitting(lambda row, _: 0.5 <= row[3] <= 0.7 and row[2] >= 0.8)
    assert names(page) == wanted
    page.locator("#panel-bbox [data-filter=score-from]").fill("1.5")
    assert names(page) == []
    assert page.get_by_text("No picture matches these filters").is_visible()


def test_orders(page):
    pictures = embedded(page)["pictures"]
    worst = names(page)
    look(page, "order", "name")
    assert names(page) == sorted(p["name"] for p in pictures)[:24]
    look(page, "order", "best")
    assert names(page) != worst
    first = next(p for p in pictures if p["name"] == names(page)[0])
    assert first["f1"] == max(p["f1"] for p in pictures if p["f1"] is not None)
    look(page, "order", "mistake")
    wrong = [
        (row[2], p["name"])
        for p in pictures
        for row in p["predictions"]
        if KINDS[row[1]] not in ("ok", "ignored")
    ]
    assert names(page)[0] in [name for score, name in wrong if score == max(wrong)[0]]


def test_links_from_tables_lead_to_their_pictures(page):
    page.locator("#panel-bbox [data-look-kind=duplicate]").click()
    kinds = page.locator("#panel-bbox [data-filter=kind]")
    assert kinds.input_value() == "duplicate"
    assert page.evaluate("document.activeElement.className") == "shot"
    page.locator("#panel-bbox [data-look-class=bar]").click()
    assert kinds.input_value() == ""
    assert page.locator("#panel-bbox [data-filter=class]").input_value() == "bar"


def test_tables_sort_and_find(page, report):
    rows = {row["category"]: row for row in report[1]["bbox"].rows()}

    def order():
        return page.locator("#panel-bbox .sortable tbody tr:visible th").all_text_contents()

    assert order() == sorted(rows, key=lambda name: -rows[name]["objects"])
    heading = page.locator("#panel-bbox .sortable th").filter(has_text="AP75")
    heading.locator("button").click()
    assert order() == sorted(rows, key=lambda name: -rows[name]["AP75"])
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").press("Enter")
    assert order() == sorted(rows, key=lambda name: rows[name]["AP75"])
    assert heading.get_attribute("aria-sort") == "ascending"
    page.locator("#panel-bbox .sortable th button").first.click()
    assert order() == sorted(rows)
    page.locator("#panel-bbox [data-find]").fill("BA")
    assert order() == ["bar"]


@pytest.mark.parametrize(
    ("layer", "selector"),
    [
        ("truth-boxes", ".truth .box"),
        ("truth-masks", ".truth .mask"),
        ("predicted-boxes", ".predicted .box"),
        ("predicted-masks", ".predicted .mask"),
        ("labels", ".tag:not(.dim)"),
    ],
)
def test_layers_toggle(page, layer, selector):
    page.locator("#tab-segm").click()
    button = page.locator(f"#panel-segm [data-layer={layer}]")
    shapes = page.locator(f"#panel-segm .shot {selector}")
    others = page.locator(
        "#panel-segm .shot :is(.truth .box, .truth .mask, .predicted .box, .predicted .mask, .tag)"
    )

    def shown(found):
        return found.evaluate_all(
            "all => all.filter(e => getComputedStyle(e).display !== 'none').length"
        )

    before, every = shown(shapes), shown(others)
    assert before > 20
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert shown(shapes) == 0
    assert shown(others) == every - before
    button.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    assert shown(others) == every


def test_boxes_have_no_mask_layers_and_tabs_switch(page):
    assert page.locator("#panel-bbox [data-layer=truth-masks]").count() == 0
    assert page.locator("#panel-segm").is_hidden()
    page.locator("#tab-bbox").press("ArrowRight")
    assert page.locator("#panel-segm").is_visible()
    assert page.locator("#panel-bbox").is_hidden()
    assert page.evaluate("document.activeElement.id") == "tab-segm"
    page.locator("nav").get_by_text("Classes").click()
    top = page.locator("#panel-segm [data-id=classes]").bounding_box()["y"]
    assert 0 < top < 120


def test_boxes_lie_where_the_picture_has_them(page, report):
    data = embedded(page)
    picture = data["pictures"][0]
    shot = page.locator("#panel-bbox .shot").first
    frame = shot.locator(".truth svg").bounding_box()
    scale = frame["width"] / picture["width"]
    image = shot.locator(".truth img").bounding_box()
    assert image == frame
    for place, (_, _, x, y, width, height, _) in enumerate(picture["truths"]):
        box = shot.locator(".truth rect.box").nth(place).bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        assert middle[0] == pytest.approx(frame["x"] + (x + width / 2) * scale, abs=1.5)
        assert middle[1] == pytest.approx(frame["y"] + (y + height / 2) * scale, abs=1.5)


def test_the_keyboard_is_enough(page):
    shots = page.locator("#panel-bbox .shot")
    shots.first.focus()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(outline) == "solid"
    assert page.evaluate("document.activeElement === document.querySelectorAll('.shot')[1]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert shots.nth(1).evaluate("e => e === document.activeElement")
    page.keyboard.press("End")
    assert shots.nth(39).evaluate("e => e === document.activeElement")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    all_names = [picture["name"] for picture in embedded(page)["pictures"]]
    assert dialog.locator(".side").all_inner_texts() == ["truth", "prediction"]
    assert dialog.locator("[data-name]").text_content() == all_names[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert dialog.locator("[data-name]").text_content() == all_names[1]
    picture = embedded(page)["pictures"][1]
    assert dialog.locator("tbody tr").count() == len(picture["predictions"]) + picture["missed"]
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert shots.nth(1).evaluate("e => e === document.activeElement")
    # Tab leaves the pictures: one of them is a stop, not all.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") != "shot"


def test_dark_and_light(page):
    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def lightness():
        return sum(map(int, ground()[4:-1].split(","))) / 3

    def ink():
        return page.evaluate("getComputedStyle(document.querySelector('.plot svg text')).fill")

    assert lightness() > 230
    light_ink = ink()
    page.emulate_media(color_scheme="dark")
    assert lightness() < 40
    assert ink() != light_ink  # plots follow
    button = page.locator("#theme")
    button.click()
    assert "light" in button.text_content()
    assert lightness() > 230
    assert ink() == light_ink
    button.click()
    assert lightness() < 40
    page.emulate_media(color_scheme="light")
    assert lightness() < 40
    page.reload()
    assert lightness() < 40  # and it is remembered
    button.click()
    assert lightness() > 230


def test_a_class_lights_up_in_the_curves(page):
    select = page.locator("#panel-bbox [data-curves]")
    select.select_option("bar")
    lit = page.locator("#panel-bbox g.lit")
    assert lit.count() == 2  # IoU 0.5 and 0.75
    assert lit.first.locator("title").text_content() == "bar"
    plain = page.locator("#panel-bbox g[id*='-curve-']:not(.lit) path").first
    color = "e => getComputedStyle(e).stroke"
    assert lit.first.locator("path").evaluate(color) != plain.evaluate(color)
    select.select_option("")
    assert lit.count() == 0


TEXT_WIDTH = """select => {
    const brush = document.createElement("canvas").getContext("2d");
    brush.font = getComputedStyle(select).font;
    return brush.measureText(select.selectedOptions[0].text).width;
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_chosen_order_can_be_read(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    select = page.locator("#panel-bbox select[data-filter=order]")
    select.select_option("mistake")
    around = 40  # padding and the arrow
    assert select.bounding_box()["width"] >= select.evaluate(TEXT_WIDTH) + around


def test_a_phone_scrolls_one_way(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    left, right = (
        page.locator("#panel-bbox .shot").first.locator(".frame").nth(n).bounding_box()
        for n in (0, 1)
    )
    assert left["y"] == right["y"]
    assert left["width"] > 150
    page.locator("#panel-bbox .shot").first.click()
    close = page.locator("dialog [data-close]").bounding_box()
    assert close["x"] + close["width"] < 390
    page.locator("dialog [data-close]").click()
    assert page.locator("dialog").is_hidden()


def test_hostile_names_stay_names(opened, tmp_path):
    truth, _ = drawn_truth(6, names=HOSTILE)
    for image in truth["images"]:
        image["file_name"] = f"<img src=x onerror='window.hacked=4'>{image['id']}.png"
    result = evaluate_coco(truth, noisy_predictions(truth, 2), bootstrap=20)
    path = tmp_path / "index.html"
    write_report(path, {"bbox": result}, truth_name=HOSTILE[0], predictions_name=HOSTILE[1])
    page = opened(path)
    page.locator(".shot").first.click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    page.locator(".sortable th button").first.click()
    page.locator("[data-filter=class]").select_option(HOSTILE[0])
    page.locator("[data-curves]").select_option(HOSTILE[1])
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("h1").text_content() == HOSTILE[1]
    found = page.locator(".sortable tbody th").all_text_contents()
    assert set(found) == set(HOSTILE)


@pytest.fixture(scope="module")
def viewed(tmp_path_factory):
    """A page of 601 answers about two pictures, whose copies are beside it."""
    folder = tmp_path_factory.mktemp("view")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), "teal").save(folder / name)
    answer = "Sure! <loc0100><loc0100><loc0900><loc0900> cat"
    rows = [{"image": "a.png", "output": answer}, {"image": "b.png", "output": HOSTILE[1]}]
    rows += [{"image": f"gone {n}.png", "width": 9, "height": 9, "output": ""} for n in range(599)]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["view", str(folder / "answers.jsonl"), "-o", str(folder), "--quiet"]) == 1
    return folder / "index.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_view_shows_pictures_and_answers(opened, viewed, width):
    page = opened(viewed)
    page.set_viewport_size({"width": width, "height": 900})
    assert count(page, "view") == "601 pictures"
    loaded = "image => image.complete && image.naturalWidth === 64"
    page.locator(".shot img").first.scroll_into_view_if_needed()
    page.wait_for_function(f"({loaded})(document.querySelector('.shot img'))")
    assert page.locator(".shot").first.locator("mark").all_inner_texts() == ["Sure!"]
    assert page.locator(".shot").first.locator("small").all_inner_texts() == ["stray text"]
    page.locator("[data-filter=odd]").select_option("odd")
    assert names(page, "view") == ["a.png", "b.png"]
    page.locator("[data-filter=name]").fill("B.P")
    assert names(page, "view") == ["b.png"]
    assert HOSTILE[1] in page.locator(".shot .answer").text_content()
    width_of = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert len(set(page.evaluate(width_of))) == 1


def test_the_address_leads_to_filters_and_the_open_picture(opened, viewed, report):
    page = opened(viewed)
    page.locator("[data-filter=class]").select_option("cat")
    page.locator(".shot").first.click()
    expect(page).to_have_url(re.compile("#class=cat&picture=a.png$"))
    again = opened(viewed)
    again.evaluate("location.hash = 'class=cat&picture=a.png'")
    expect(again.locator("#viewer [data-name]")).to_have_text("a.png")
    assert count(again, "view").startswith("1 of 601 pictures match")
    again.keyboard.press("Escape")
    expect(again.locator("#viewer")).to_be_hidden()
    again.wait_for_function("location.hash === '#class=cat'")
    numbers = opened(report[0])
    numbers.evaluate("location.hash = 'tab=segm&kind=missed'")
    expect(numbers.locator("#panel-segm [data-filter=kind]")).to_have_value("missed")
    assert numbers.locator("#panel-bbox").is_hidden()


def test_a_phone_names_each_of_the_two_stacked_pictures(page):
    page.set_viewport_size({"width": 390, "height": 900})
    page.locator("#panel-bbox .shot").first.click()
    for word, half in zip(
        ("truth", "prediction"), page.locator("#viewer .half").all(), strict=True
    ):
        side, frame = half.locator(".side"), half.locator(".frame")
        assert side.inner_text() == word
        assert 0 <= frame.bounding_box()["y"] - side.bounding_box()["y"] < 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("made", ["report", "compared", "viewed"])
def test_axe_finds_nothing_serious(opened, request, made, width, scheme):
    path = request.getfixturevalue(made)
    page = opened(path if made == "viewed" else path[0])
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    for opened_picture in (False, True):
        if opened_picture:
            page.locator(".panel:not([hidden]) .shot").first.click()
            page.keyboard.press("+")
        violations = Axe().run(page).response["violations"]
        assert [(found["id"], found["nodes"][0]["html"]) for found in violations] == []


def test_zoom_enlarges_both_pictures_alike_and_the_keyboard_scrolls_them(page):
    page.locator("#panel-bbox .shot").first.click()
    dialog = page.locator("#viewer")
    views, frames = dialog.locator(".view"), dialog.locator(".frame")
    before = [view.bounding_box()["width"] for view in views.all()]
    label = dialog.locator(".tag").first.bounding_box()["height"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert dialog.locator("[data-zoomed]").inner_text() == "200%"
    after = [view.bounding_box()["width"] for view in views.all()]
    assert after == pytest.approx([2 * width for width in before], abs=1)
    assert dialog.locator(".tag").first.bounding_box()["height"] == label  # it covers less
    frames.first.focus()
    start = frames.first.evaluate("frame => frame.scrollLeft")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    scrolled = "frames => frames.map((frame) => Math.round(frame.scrollLeft))"
    before = []
    for _ in range(100):  # scrolling is smooth, and has to end before the next step
        first, second = now = frames.evaluate_all(scrolled)
        if first == second > start and now == before:
            break
        before = now
        page.wait_for_timeout(150)
    assert first == second > start
    assert dialog.locator("[data-place]").inner_text().startswith("1 of 40")
    page.keyboard.press("0")
    assert dialog.locator("[data-zoomed]").inner_text() == "100%"
    box = frames.first.bounding_box()
    page.mouse.dblclick(box["x"] + 10, box["y"] + box["height"] / 2)
    assert dialog.locator("[data-zoomed]").inner_text() == "200%"
    assert frames.first.evaluate("frame => frame.scrollLeft") == 0


def test_the_page_of_a_comparison_shows_who_is_right(opened, compared):
    path, results = compared
    page = opened(path)
    panel = page.locator("#panel-bbox")
    result = results["bbox"]
    change = f"{result.differences[0]:+.3f}".replace("-", "−")
    assert panel.locator(".hero .value").inner_text() == change
    low = f"{result.intervals['AP'].low:+.3f}".replace("-", "−")
    assert low in panel.locator(".hero .hint").inner_text()
    only = [
        int((a.matches.missed < b.matches.missed).sum())
        for a, b in ((result.first, result.second), (result.second, result.first))
    ]
    options = panel.locator("[data-filter=kind] option").all_inner_texts()
    assert options[1:3] == [f"A right, B wrong ({only[0]})", f"B right, A wrong ({only[1]})"]
    assert count(page) == "40 pictures"
    look(page, "kind", "a")
    expect(page).to_have_url(re.compile("kind=a$"))
    lit = panel.locator(".shot .half:nth-child(2) g.missed:not(.dim)").count()
    right = panel.locator(".shot .half:nth-child(1) g.ok:not(.dim)").count()
    assert (lit, right) == (only[0], only[0])
    panel.locator(".shot").first.click()
    assert page.locator("#viewer .side").all_inner_texts() == ["A", "B"]
    rows = page.locator("#viewer tbody th").all_inner_texts()
    assert "B missed" in rows
    page.locator("#viewer tbody tr").first.hover()
    assert page.locator("#viewer g.hot").count() == 1
    page.keyboard.press("Escape")
    panel.locator("[data-look-class=bar]").click()
    assert panel.locator("[data-filter=class]").input_value() == "bar"
