"""The page as people get it: opened from a file, by a browser that can reach nothing else."""

from __future__ import annotations

import contextlib
import math
import re

import pytest
from PIL import Image

from tightframe.report.charts import (
    collapse_chart,
    confusion_chart,
    curve_chart,
    layer_chart,
    method_chart,
    ranking_chart,
)
from tightframe.report.fields import TABLES, fields, upper
from tightframe.report.page import Grid, Samples, Section, write_report

MARKS = (
    "[...plot.querySelectorAll('svg.marks .role-mark path, svg .role-mark line')].filter(mark => mark.getTotalLength)"
)
CHARTS = "[...document.querySelectorAll('.plot svg.marks')].map(svg => svg.viewBox.baseVal)"
COUNTS = f"[...document.querySelectorAll('.plot')].map(plot => {MARKS}.length)"
DRAWN = "[...document.querySelectorAll('.plot')].every(plot => plot.dataset.drawn || plot.querySelector('.failed'))"

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def opened(browser, path, width=1200):
    """A page with what it asked for, said and popped up, as ``page.seen``."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    page.seen = {"requests": [], "said": [], "dialogs": []}
    page.on("request", lambda request: page.seen["requests"].append(request.url))
    page.on("console", lambda message: page.seen["said"].append(message.text))
    page.on("pageerror", lambda error: page.seen["said"].append(str(error)))
    page.on("dialog", lambda dialog: (page.seen["dialogs"].append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    until(page, DRAWN)
    yield page
    context.close()


def write(path, *content):
    section = Section("Section", "", list(content))
    write_report(path, title="Title", summary=["a"], sections=[section], settings={"a": 1}, versions={"b": 2})
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory, nasty, models, layers, epochs, methods, confusions):
    rows = [*models, *({"model": name, "error": name} for name in nasty)]
    image = Image.new("RGB", (300, 200), "teal")
    images = [{"image": image, "path": n, "true": n, "predicted": n, "probability": 0.5} for n in nasty]
    return write(
        tmp_path_factory.mktemp("page") / "report.html",
        *(ranking_chart(models), collapse_chart(models), layer_chart(layers), curve_chart(epochs)),
        *(method_chart(methods), confusion_chart(confusions), Grid(("model", "nc1"), rows), Samples(images)),
    )


def until(page, expression):
    """Wait for something to be true. Playwright's own waiting is stopped by the page's policy: it needs eval."""
    for _ in range(300):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never true: {expression}")


def pointed_at(page, mark):
    """What the tooltip says once the mouse has moved onto ``mark``."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y - 30)
    page.mouse.move(x, y, steps=3)
    until(page, "document.querySelector('#vg-tooltip-element.visible') !== null")
    return page.inner_text("#vg-tooltip-element")


def assert_quiet(page, path):
    assert page.seen == {"requests": [path.as_uri()], "said": [], "dialogs": []}


@pytest.mark.parametrize("width", [1200, 420])
def test_every_chart_is_drawn_in_silence_and_fits(browser, full, width):
    with opened(browser, full, width) as page:
        assert_quiet(page, full)
        counts = page.evaluate(COUNTS)
        assert len(counts) == 6
        assert all(count >= 7 for count in counts)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        places = page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.clientWidth)")
        charts = page.evaluate(f"{CHARTS}.map(box => box.width)")
        assert all(0.9 * place <= chart <= place + 1 for place, chart in zip(places, charts, strict=True))
        stacked = page.evaluate(f"{CHARTS}.map(box => box.height > 1.5 * box.width)[3]")
        assert stacked is (width == 420)


def test_charts_follow_the_width_of_the_window(browser, full):
    measure = f"{CHARTS}.map(box => box.width)"
    with opened(browser, full, 1200) as page:
        wide = page.evaluate(measure)
        page.set_viewport_size({"width": 500, "height": 900})
        until(page, f"{measure}.length === 6 && {measure}.every(width => width < 500)")
        assert min(wide) > 500
        assert_quiet(page, full)


def test_nothing_that_users_wrote_is_run_or_loaded(browser, full, nasty):
    with opened(browser, full) as page:
        assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:image/\"])').length") == 0
        words = page.inner_text("main")
        assert all(" ".join(name.split()) in words for name in nasty)
        assert_quiet(page, full)


def test_tooltips_show_names_as_they_are(browser, full, models):
    with opened(browser, full) as page:
        dots = page.locator(".plot").first.locator("svg .mark-symbol.role-mark path")
        for index, row in ((0, models[0]), (2, models[1])):
            tip = pointed_at(page, dots.nth(index))
            assert row["model"] in tip
            assert re.search(r"Accuracy:?\s+\d\d\.\d %", tip)
        assert_quiet(page, full)


def test_the_policy_stops_a_script_that_got_in(browser, full, tmp_path):
    attack = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    with opened(browser, full) as page:
        page.evaluate(attack)
        assert page.evaluate("window.ran") is None
    open_to_all = tmp_path / "open.html"
    source = full.read_text(encoding="utf-8")
    open_to_all.write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", source), encoding="utf-8")
    with opened(browser, open_to_all) as page:
        page.evaluate(attack)
        assert page.evaluate("window.ran") is True


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_chart_can_be_saved(browser, full, kind):
    with opened(browser, full) as page:
        page.locator(".plot details").first.evaluate("part => { part.open = true; }")
        links = page.locator(".plot .vega-actions").first.locator("a")
        assert links.all_inner_texts() == ["Save as SVG", "Save as PNG"]
        with page.expect_download() as download:
            links.nth(["svg", "png"].index(kind)).click()
        start = download.value.path().read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if kind == "png" else start.startswith(b"<svg")
        assert download.value.suggested_filename == f"chart-1.{kind}"


def test_degenerate_rows_are_drawn_too(browser, tmp_path, models, layers, epochs, methods):
    hundred = [f"class [{index}] with a rather long name" for index in range(100)]
    matrix = [{"true": a, "predicted": b, "count": int(a == b)} for a in hundred for b in hundred]
    blank = {"test_accuracy": None, "expected_low": None, "expected_high": math.nan}
    charts = [
        ranking_chart(models[:1]),
        ranking_chart([row | blank for row in models]),
        collapse_chart([*models[:1], models[1] | {"nc1": math.nan}]),
        layer_chart([row | {"nc1": math.inf, "chosen": False} for row in layers]),
        layer_chart([*layers, *(row | {"model": "other"} for row in layers)]),
        curve_chart([row | {"validation_accuracy": None, "nc1": None} for row in epochs[:1]]),
        method_chart([methods[0] | {"test_low": None, "test_high": None, "share": None}]),
        confusion_chart(matrix),
        confusion_chart([{"true": "a", "predicted": "a", "count": 1}]),
    ]
    nothing = [ranking_chart([{"model": "x", "error": "broken"}]), collapse_chart([models[0] | {"nc1": math.nan}])]
    assert nothing == [None, None]
    path = write(tmp_path / "degenerate.html", *charts, *nothing)
    with opened(browser, path, 420) as page:
        assert_quiet(page, path)
        assert page.evaluate(COUNTS) == [3, 7, 1, 9, 40, 2, 1, 100, 1]
        assert page.evaluate("document.documentElement.scrollWidth") <= 420


@pytest.mark.parametrize("table", ["rank", "measure", "transfer"])
def test_no_column_hides_behind_a_scrollbar_on_a_laptop(browser, tmp_path, table):
    named = {"model": "vit_small_patch16_dinov3", "layer": "engine.stages.3.blocks.11", "method": "layer"}
    row = {field.key: 0.12345 for field in fields(TABLES[table].columns)} | named
    row |= {field.low: 0.12345 for field in fields(TABLES[table].columns) if field.low}
    row |= {upper(field.low): 12.345 for field in fields(TABLES[table].columns) if field.low}
    row |= {"block": "stages.3.blocks.1", "trainable_parameters": 86_000_000, "parameters": 86_000_000}
    path = write(tmp_path / "wide.html", Grid(TABLES[table].columns, [row]))
    with opened(browser, path, 1300) as page:
        hidden = "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
        assert page.evaluate(hidden) == [0]
        assert page.evaluate("document.documentElement.scrollWidth") <= 1300
