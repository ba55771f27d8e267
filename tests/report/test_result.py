"""A result prints as a table, shows itself in a notebook, and goes into JSON and pandas."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pandas
import pytest

from tightframe.errors import TightframeError
from tightframe.jobs.transfer import Transfer
from tightframe.report.result import Result


def result(job="rank", rows=(), **more):
    return Result(job, list(rows), {"data": "flowers"}, versions={"torch": "2"}, **more)


def test_it_prints_as_the_table_of_its_job(models, nasty):
    shown = str(result("rank", models, notes=["a note"], next_steps=["tightframe tune"]))
    assert shown == repr(result("rank", models, notes=["a note"], next_steps=["tightframe tune"]))
    assert shown.splitlines()[0].strip() == "Models (flowers)"
    assert "95.0 % 93.0–96.5 %" in shown
    assert "• a note" in shown
    assert "next: tightframe tune" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    squeezed = "".join(shown.split())
    assert all("".join(name.split())[:9] in squeezed for name in nasty)


def test_what_is_long_is_a_few_lines():
    rows = [{"path": f"image {index}.png", "predicted": "a", "probability": 0.5} for index in range(5000)]
    shown = str(result("predict", rows))
    assert len(shown.splitlines()) < 30
    assert "… and 4980 more rows" in shown


def test_a_job_without_a_table_shows_the_keys_that_have_a_field():
    shown = str(result("some-study", [{"model": "a", "strange": 1, "nc1": 0.5}]))
    assert "some-study (flowers)" in shown
    assert "Model" in shown
    assert "strange" not in shown


@pytest.mark.slow
def test_printing_never_fails_whatever_the_encoding():
    program = (
        "from tightframe.report.result import Result\n"
        "row = {'method': '\\xe9 \\u4e2d', 'test_low': 0.5}\n"
        "print(Result('tune', [row], {'data': 'x\\u2026'}, ['\\u2265 1'], [], {}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Tuned model (x...)" in done.stdout
    assert "\\xe9 \\u4e2d" in done.stdout
    assert ">= 50.0 %" in done.stdout


@pytest.mark.parametrize("job", ["rank", "measure", "transfer", "evaluate", "fewshot"])
def test_a_notebook_shows_the_table_and_the_chart_and_runs_nothing(job, models, layers, methods, confusions, nasty):
    rows = {"rank": models, "measure": layers, "transfer": methods}.get(
        job, [{"accuracy": 0.5, "classifier": nasty[0]}]
    )
    shown = result(job, rows, tables={"confusion": confusions}, notes=list(nasty))._repr_html_()
    assert "<table>" in shown
    assert ("data:image/svg+xml;base64," in shown) is (job != "fewshot")
    assert not re.search(r"<script|onerror=(?!alert\(1\)&gt;)|src=x[^ ]", re.sub(r'src="data:[^"]*"', "", shown))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert 'title="' in shown  # what a column means


def test_it_goes_into_pandas(models):
    frame = result("rank", models).to_pandas()
    assert list(frame["nc1"]) == [row["nc1"] for row in models]
    assert set(frame.columns) == set(models[0])


def test_without_pandas_it_says_what_to_install(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(TightframeError, match="pip install pandas"):
        result("rank", models).to_pandas()
    assert pandas is not None


def test_json_is_strict_and_the_same_in_a_file(tmp_path):
    found = result("rank", [{"model": "é", "nc1": math.inf}], tables={"quality": [{"tau": math.nan}]})
    told = found.to_json(tmp_path / "found.json")
    assert (tmp_path / "found.json").read_text(encoding="utf-8") == told + "\n"
    kept = json.loads(told, parse_constant=pytest.fail)
    assert kept["rows"] == [{"model": "é", "nc1": None}]
    assert kept["tables"] == {"quality": [{"tau": None}]}
    assert list(kept) == ["job", "rows", "settings", "notes", "next_steps", "versions", "tables"]
    assert Result(**kept).title == "Models (flowers)"


def test_a_transfer_prints_as_its_result(methods):
    found = result("transfer", methods)
    assert Transfer.__repr__(SimpleNamespace(result=found)) == repr(found)
