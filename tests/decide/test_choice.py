"""The rule that takes what is trained only where it loses less beyond doubt."""

from __future__ import annotations

import numpy as np

from tightframe.decide.choice import choose
from tightframe.decide.evidence import Evidence

BASE = np.random.default_rng(0).uniform(0.2, 0.6, 100)


def losing(losses):
    shares = np.exp(-np.broadcast_to(losses, 100))
    return Evidence(np.log(np.stack([shares, 1 - shares], 1)), np.zeros(100, dtype=int))


SWINGS = np.where(np.arange(100) % 2, 0.06, -0.05)
"""Of mean 0.005, within its standard error of 0.0055."""


def test_the_first_stays_where_nothing_is_beyond_doubt():
    found = choose({"first": losing(BASE), "other": losing(BASE - SWINGS)}, "first")
    assert found.name == "first"
    assert "other is not better beyond doubt: its log loss is lower by 0.005 (95 % interval -0.0" in found.why


def test_what_loses_less_beyond_doubt_is_used_and_of_several_the_least():
    rivals = {"first": losing(BASE), "good": losing(BASE - 0.05), "best": losing(BASE - 0.1), "bad": losing(BASE + 1)}
    found = choose(rivals, "first")
    assert found.name == "best"
    assert found.why == (
        "best is used: on held-out images its log loss is lower by 0.1 (95 % interval 0.1 to 0.1) than first's"
    )


def test_what_loses_more_beyond_doubt_is_said_so():
    found = choose({"first": losing(BASE), "bad": losing(BASE + 0.3), "worse": losing(BASE + 0.5)}, "first")
    assert found.name == "first"
    assert found.why.endswith("on held-out images bad's log loss is higher by 0.3 (95 % interval 0.3 to 0.3)")


def test_one_alone_is_used():
    assert choose({"only": losing(BASE)}, "only").name == "only"
