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
    assert "other does not lose less beyond doubt (the difference is 0.005 nats" in found.why


def test_what_loses_less_beyond_doubt_is_used_and_of_several_the_least():
    rivals = {"first": losing(BASE), "good": losing(BASE - 0.05), "best": losing(BASE - 0.1), "bad": losing(BASE + 1)}
    found = choose(rivals, "first")
    assert found.name == "best"
    assert found.why.startswith("best is used: held out, it loses 0.1 nats")


def test_what_loses_more_beyond_doubt_is_said_so():
    found = choose({"first": losing(BASE), "bad": losing(BASE + 0.3), "worse": losing(BASE + 0.5)}, "first")
    assert found.name == "first"
    assert "bad loses 0.3 nats (0.3 to 0.3) more an image" in found.why


def test_one_alone_is_used():
    assert choose({"only": losing(BASE)}, "only").name == "only"
