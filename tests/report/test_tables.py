from __future__ import annotations

import math
import re
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from rich.console import Console

from tightframe.report.fields import FIELDS, shown
from tightframe.report.formats import RESPELLED, count, number, percent, seconds, size, text
from tightframe.report.tables import columns, table

COLUMNS = ("model", "nc1", "h_score", "logme", "probe_accuracy", "test_accuracy", "trainable_parameters", "seconds")
LONG = "vit_small_patch16_dinov3.lvd1689m_with_a_name_that_goes_on"
FULL = {
    "model": LONG,
    "nc1": 1.2346e-7,
    "h_score": 9.12345,
    "logme": -0.34,
    "probe_accuracy": 0.9312,
    "test_accuracy": 0.9401,
    "trainable_parameters": 21_600_000,
    "seconds": 250,
}


def printed(rows, width=80, columns=COLUMNS, color=None):
    console = Console(file=StringIO(), width=width, force_terminal=color is not None, color_system=color)
    console.print(table("Models", columns, rows))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("spell", "value", "words"),
    [
        (percent, 0.873, "87.3 %"),
        (percent, 1, "100.0 %"),
        (percent, 0, "0.0 %"),
        (percent, 0.0004, "0.04 %"),
        (number, 0.123456, "0.1235"),
        (number, 12.3456, "12.35"),
        (number, 12345.6, "12,346"),
        (number, 1.2346e-7, "1.235e-07"),
        (number, 0, "0"),
        (number, -3.14159, "-3.142"),
        (count, 1234567, "1,234,567"),
        (seconds, 3.21, "3.2 s"),
        (seconds, 250, "4 min 10 s"),
        (seconds, 59.97, "1 min 0 s"),
        (seconds, 3599.7, "1 h 0 min"),
        (seconds, 0.0123, "12 ms"),
        (size, 999, "999 B"),
        (size, 3_400_000, "3.4 MB"),
        (size, 999_600, "1.0 MB"),
        (text, " a\n b", "a b"),
        (text, "a\x1b[31mb", "a\ufffd[31mb"),
    ],
)
def test_formats(spell, value, words):
    assert spell(value) == words


@pytest.mark.parametrize("spell", [percent, number, count, seconds, size])
def test_what_is_not_a_number_is_shown_plainly(spell):
    assert [spell(value) for value in (None, math.inf, -math.inf, math.nan)] == ["–", "inf", "-inf", "nan"]


@pytest.mark.parametrize("name", ["[red]x", "[/]", "[bold]a[/bold]", ":smile:", "a.b[0]"])
def test_markup_in_a_name_or_message_is_shown_literally(name):
    output = printed([FULL | {"model": name}, {"model": name, "error": f"{name} failed"}], width=200)
    assert output.count(name) == 3


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut(width):
    output = printed([FULL, FULL | {"model": "b", "nc1": math.inf}], width)
    assert "…" not in output
    for words in ("1.235e-07", "9.123", "-0.3400", "93.1 %", "94.0 %", "21,600,000", "4 min 10 s", "inf"):
        assert words in output
    assert max(map(len, output.splitlines())) <= width


def test_a_long_name_folds_and_keeps_every_letter():
    lines = [re.split("  ", line)[0].strip() for line in printed([FULL], 80).splitlines()]
    first = next(index for index, line in enumerate(lines) if line.startswith("vit"))
    assert "".join(lines[first:]) == LONG


def test_columns_too_many_for_the_width_go_below_with_the_names_again():
    output = printed([FULL | {"model": "short"}], 40)
    assert output.count("short") > 1
    for words in ("1.235e-07", "21,600,000", "4 min 10 s", "93.1 %"):
        assert words in output
    assert "…" not in output


def test_numbers_align_right():
    lines = printed([FULL | {"model": "a", "trainable_parameters": 7}, FULL | {"model": "b"}], 120).splitlines()
    small, large = (next(line for line in lines if line.startswith(name)) for name in "ab")
    assert small.index(" 7 ") + 2 == large.index("21,600,000") + len("21,600,000")


def test_columns_without_values_are_left_out_but_nan_is_a_value():
    rows = [
        {"model": "a", "nc1": math.nan, "h_score": None, "logme": ""},
        {"model": "b", "error": "x", "h_score": 1},
    ]
    assert [field.key for field in shown(COLUMNS, rows)] == ["model", "nc1"]


def test_an_error_has_its_name_and_message_in_red_and_no_dashes():
    message = "the hub does not answer. " * 5
    output = printed([{"model": "broken", "error": message}], 80)
    assert " ".join(output.split()).endswith("✗ broken " + message.strip())
    assert "–" not in output
    assert "\x1b[31m" in printed([{"model": "broken", "error": message}], 80, color="standard")


def test_no_rows_at_all():
    assert "Model" in printed([])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"nc1_low": 0.12345, "nc1_high": 12.345}, "0.123–12.3"),
        ({"nc1_low": 0.12345, "nc1_high": math.inf}, "≥ 0.123"),
        ({"nc1_low": 12345.6, "nc1_high": None}, "≥ 12,300"),
        ({"nc1": 1.0}, ""),
    ],
)
def test_intervals_are_read_from_their_ends(row, words):
    assert FIELDS["nc1"].interval(row) == words
    (column,) = columns(["nc1"], [row])
    assert column.title == ("NC1\n95 % interval" if words else "NC1")


def test_a_value_that_is_only_bounded_shows_the_bound_and_no_dash():
    rows = [{"nc1": None, "nc1_low": 0.5}, {"nc1": 12.3456, "nc1_low": 2, "nc1_high": 30}, {"nc1": 1}, {"nc1": None}]
    (column,) = columns(["nc1"], rows)
    assert column.cells == ["        ≥ 0.500", "12.35 2.00–30.0", "1.000          ", "    –          "]


def test_an_interval_of_shares_says_percent_once():
    test = FIELDS["test_accuracy"]
    assert test.interval({"test_low": 0.597, "test_high": 0.854}) == "59.7–85.4 %"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_spelled_with_what_it_has(encoding):
    rows = [{"model": "é\u4e2d …", "test_accuracy": 0.9, "test_low": 0.85}]
    printed = BytesIO()
    with TextIOWrapper(printed, encoding=encoding, errors=RESPELLED) as stream:
        Console(file=stream, width=80).print(table("Models ≥ 1", ["model", "test_accuracy"], rows))
        stream.flush()
        words = printed.getvalue().decode(encoding)
    assert "Models >= 1" in words
    assert ">= 85.0 %" in words
    assert ("\\xe9" if encoding == "ascii" else "é") + "\\u4e2d ..." in words
