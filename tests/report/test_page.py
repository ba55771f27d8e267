from __future__ import annotations

import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pytest
from PIL import Image

from tightframe.errors import TightframeError
from tightframe.report.charts import confusion_chart, ranking_chart
from tightframe.report.page import Grid, Samples, Section, write_report

COLUMNS = ("model", "nc1", "h_score")


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its text, and the text in each script."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.words, self.scripts, self._in_script = [], [], [], False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, words):
        (self.scripts if self._in_script else self.words).append(words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def written(tmp_path, sections=(), **changed):
    path = tmp_path / "deep" / "report.html"
    given = {"title": "Title", "summary": ["line"], "settings": {"seed": 0}, "versions": {"torch": "2.8"}}
    write_report(path, sections=list(sections), **(given | changed))
    return path.read_text(encoding="utf-8")


def sample(name, true=None, size=(40, 30), mode="RGB"):
    image = Image.new(mode, size)
    return {"image": image, "path": name, "true": true, "predicted": name, "probability": 0.873}


def test_no_user_text_becomes_markup(tmp_path, models, confusions, nasty):
    rows = [*models, *({"model": name, "error": name} for name in nasty)]
    content = [ranking_chart(models), confusion_chart(confusions), Grid(COLUMNS, rows)]
    content.append(Samples([sample(name, true) for name, true in zip(nasty, reversed(nasty), strict=True)]))
    everything = " / ".join(nasty)
    page = Page(
        written(
            tmp_path,
            [Section(everything, everything, content)],
            title=everything,
            summary=list(nasty),
            settings={name: name for name in nasty},
            versions={name: list(nasty) for name in nasty},
        )
    )
    assert len(page.all("script")) == 4
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    words = "".join(page.words)
    assert all(words.count(" ".join(name.split())) >= 8 for name in nasty)


def test_specs_survive_embedding(tmp_path, models):
    chart = ranking_chart(models)
    source = written(tmp_path, [Section("a", "", [chart])])
    spec = next(script for script in Page(source).scripts if script.startswith("{"))
    assert not re.search("[<>&\u2028\u2029]", spec)
    expected = chart.to_dict()
    del expected["title"]
    assert json.loads(spec) == expected


def test_a_chart_with_nan_is_embedded_as_json(tmp_path):
    chart = alt.Chart(alt.InlineData(values=[{"x": math.nan}, {"x": 1.0}])).mark_point().encode(x="x:Q")
    spec = next(script for script in Page(written(tmp_path, [Section("a", "", [chart])])).scripts if script[0] == "{")
    rows = next(iter(json.loads(spec, parse_constant=pytest.fail)["datasets"].values()))
    assert rows == [{"x": None}, {"x": 1.0}]


def test_the_program_is_there_once_and_only_with_charts(tmp_path, models):
    charts = [ranking_chart(models), ranking_chart(models[:2])]
    source = written(tmp_path, [Section("a", "", charts), Section("b", "", charts)])
    assert source.count("window.vegaEmbed=") == 1
    assert len(Page(source).all("script")) == 4 + 2
    assert len(written(tmp_path, [Section("a", "words", [None])])) < 20_000


def test_the_policy_forbids_everything_but_the_page_itself(tmp_path, models):
    page = Page(written(tmp_path, [Section("a", "", [ranking_chart(models)])]))
    metas = {meta.get("http-equiv") or meta.get("name"): meta.get("content") for meta in page.all("meta")}
    policy = dict(rule.split(" ", 1) for rule in metas["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[\w+/]{43}=' ?){2}", policy["script-src"])
    assert not re.search("https?:|unsafe-eval", " ".join(policy.values()))
    assert metas["viewport"].startswith("width=device-width")
    assert page.all("html")[0]["lang"] == "en"


def test_grids_show_numbers_and_errors_like_the_terminal(tmp_path):
    rows = [{"model": "a", "nc1": math.inf}, {"model": "b", "nc1": None, "error": "broken & gone"}]
    source = written(tmp_path, [Section("a", "", [Grid(COLUMNS, rows)])])
    assert "H-score" not in source
    assert '<td class="number">inf</td>' in source
    assert '<td colspan="1">✗ broken &amp; gone</td>' in source
    alone = written(tmp_path, [Section("a", "", [Grid(COLUMNS, rows[1:])])])
    assert "broken &amp; gone" in alone
    assert "colspan" not in alone


def test_right_and_wrong_differ_by_more_than_color(tmp_path):
    rows = [sample("a", "a"), sample("b", "a"), sample("c")]
    source = written(tmp_path, [Section("a", "", [Samples(rows)])])
    found = re.findall(r'<li class="(\w+)">.*?aria-label="([\w ]+)">(.)</span>', source, re.DOTALL)
    assert found == [("right", "correct", "✓"), ("wrong", "wrong", "✗"), ("unknown", "true class unknown", "?")]
    assert "87.3 %" in source


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_images_of_every_kind_become_small_thumbnails_and_stay_as_they_were(tmp_path, mode):
    row = sample("x", size=(2000, 10), mode=mode)
    source = written(tmp_path, [Section("a", "", [Samples([row, sample("y", size=(8, 8), mode=mode)])])])
    assert "data:image/jpeg;base64," in source
    assert '<img class="coarse" src="data:image/png;base64,' in source
    assert row["image"].size == (2000, 10)
    assert len(source) < 30_000


def test_settings_versions_and_text_are_readable(tmp_path):
    source = written(
        tmp_path,
        [Section("One", "first\n\nsecond"), Section("Two")],
        settings={"models": ["a", "b"], "config": {"lr": None, "epochs": 3}},
    )
    assert "<p>first</p><p>second</p>" in source
    assert re.search(r"<details><summary>.*models.*<td>a, b</td>.*Versions.*2\.8", source, re.DOTALL)
    assert re.search(r"config.<wbr>lr</th><td>–</td>.*config.<wbr>epochs</th><td>3</td>", source)
    assert '<a href="#section-1">Two</a>' in source
    assert 'id="section-1"' in source


def test_names_that_are_not_unicode_do_not_stop_the_report(tmp_path, models):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    content = [Grid(COLUMNS, [{"model": name}]), ranking_chart([models[0] | {"model": name}])]
    assert "caf\ufffd" in written(tmp_path, [Section(name, name, content)], title=name)


def test_writing_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    assert "Title" in written(tmp_path)
    before = list((tmp_path / "deep").iterdir())
    real = Path.write_bytes

    def torn(self, content):
        real(self, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(TightframeError, match="No space left on device"):
        written(tmp_path, title="Second")
    assert list((tmp_path / "deep").iterdir()) == before
    assert "Title" in before[0].read_text(encoding="utf-8")


def test_who_reads_the_old_report_keeps_it_whole(tmp_path):
    written(tmp_path, title="First")
    with (tmp_path / "deep" / "report.html").open(encoding="utf-8") as reader:
        second = written(tmp_path, title="Second")
        assert "First" in reader.read()
    assert "Second" in second
    assert "First" not in second


def test_a_place_that_cannot_be_written_to_is_explained(tmp_path):
    (tmp_path / "deep").write_text("a file")
    with pytest.raises(TightframeError, match="can't be written to"):
        written(tmp_path)


def test_escaping_is_what_the_browser_undoes(tmp_path, nasty):
    source = written(tmp_path, summary=list(nasty))
    shown = [html.unescape(item) for item in re.findall("<li>(.*?)</li>", source)]
    assert shown == [" ".join(name.split()) for name in nasty]
