"""The rule that takes another classifier only where it clearly loses less."""

from __future__ import annotations

import numpy as np
import pytest

from tightframe.decide.choice import beside, choose
from tightframe.decide.evidence import Evidence

BASE = np.random.default_rng(0).uniform(0.2, 0.6, 100)


def losing(losses):
    shares = np.exp(-np.broadcast_to(losses, 100))
    return Evidence(np.log(np.stack([shares, 1 - shares], 1)), np.zeros(100, dtype=int))


SWINGS = np.where(np.arange(100) % 2, 0.06, -0.05)
"""Of mean 0.005, within its standard error of 0.0055."""


def test_the_first_stays_where_nothing_is_clearly_better():
    found = choose({"first": losing(BASE), "other": losing(BASE - SWINGS)}, "first")
    assert found.name == "first"
    assert "other is not clearly better: its log loss is lower by 0.005 (standard error 0.0055)" in found.why


@pytest.mark.parametrize(("errors", "name"), [(2.0, "first"), (1.0, "other")])
def test_one_standard_error_is_enough_if_one_says_so(errors: float, name: str):
    swings = SWINGS + 0.003  # 0.008, with the same standard error
    assert choose({"first": losing(BASE), "other": losing(BASE - swings)}, "first", errors).name == name


def test_what_clearly_loses_less_is_used_and_of_several_the_least():
    rivals = {"first": losing(BASE), "good": losing(BASE - 0.05), "best": losing(BASE - 0.1), "bad": losing(BASE + 1)}
    found = choose(rivals, "first")
    assert found.name == "best"
    assert found.why.startswith("best is used: on held-out images its log loss is lower by 0.1 (standard error ")
    assert found.why.endswith(" than first's")


def test_what_clearly_loses_more_is_said_so():
    found = choose({"first": losing(BASE), "bad": losing(BASE + 0.3), "worse": losing(BASE + 0.5)}, "first")
    assert found.name == "first"
    assert "on held-out images the log loss of bad is higher by 0.3 (standard error " in found.why


def test_one_alone_is_used():
    assert choose({"only": losing(BASE)}, "only").name == "only"


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        (
            0.1,
            "discriminant, which trains nothing, does better than scl on held-out images: the log loss of "
            "discriminant is lower by 0.1 (standard error ",
        ),
        (
            -0.1,
            "scl does better on held-out images than discriminant, which trains nothing: the log loss of "
            "discriminant is higher by 0.1 (standard error ",
        ),
        (
            SWINGS,
            "held-out images can't tell scl from discriminant, which trains nothing: the log loss of "
            "discriminant is lower by 0.005 (standard error 0.0055), its accuracy ",
        ),
    ],
)
def test_what_was_asked_for_is_told_beside_what_needs_no_training(difference, says: str):
    told = beside("discriminant", losing(BASE), "scl", losing(BASE + difference))
    assert told.startswith(says)
    assert ("--method discriminant uses it" in told) == (np.mean(difference) > 0.05)
