"""Rows as the jobs hand them over."""

from __future__ import annotations

import math

import pytest

NASTY = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[red]x",
    "a.b[0]",
    "datum.x",
    'it\'s "quoted" \\ & <b>bold</b> \u2028 é',
    "{{value}} ${x} %s",
)


@pytest.fixture(scope="session")
def nasty():
    return NASTY


@pytest.fixture(scope="session")
def models():
    def row(name, rank):
        probe = 0.95 - 0.04 * rank
        return {
            "model": name,
            "nc1": 0.3 * 2**rank,
            "h_score": 4.0 - rank,
            "logme": 1.5 - rank,
            "expected_accuracy": probe,
            "expected_low": probe - 0.02,
            "expected_high": probe + 0.015,
            "probe_accuracy": probe,
            "test_accuracy": probe - 0.01,
            "parameters": 1_000_000 * (rank + 1),
            "seconds": 3.2 * (rank + 1),
            "error": None,
        }

    return [row(name, rank) for rank, name in enumerate(NASTY)]


@pytest.fixture(scope="session")
def layers():
    names = [*NASTY, "penultimate"]
    return [
        {
            "model": "net",
            "layer": name,
            "position": position,
            "dimension": 64,
            "nc1": 9.0 / (position + 1),
            "probe_accuracy": 0.5 + 0.05 * position,
            "chosen": position == 4,
        }
        for position, name in enumerate(names)
    ]


@pytest.fixture(scope="session")
def epochs():
    return [
        {
            "method": method,
            "epoch": epoch,
            "train_accuracy": 1 - 0.5 * math.exp(-epoch),
            "validation_accuracy": 0.9 - 0.5 * math.exp(-epoch),
            "train_loss": 1 / epoch,
            "validation_loss": 1.1 / epoch,
            "nc1": 2.0 / epoch,
        }
        for method in NASTY[:3]
        for epoch in range(1, 6)
    ]


@pytest.fixture(scope="session")
def methods():
    return [
        {
            "method": name,
            "block": None if rank % 2 else "blocks.3",
            "test_accuracy": 0.9 + 0.01 * rank,
            "test_low": 0.88 + 0.01 * rank,
            "test_high": 0.91 + 0.01 * rank,
            "train_accuracy": 0.99,
            "nc1": 0.1,
            "trainable_parameters": 10**rank,
            "trainable_share": 10.0 ** (rank - 5),
            "seconds": 250,
            "lr": 1e-3,
            "weight_decay": 5e-4,
            "bytes": 4 * 10**rank,
        }
        for rank, name in enumerate(NASTY[:5])
    ]


@pytest.fixture(scope="session")
def confusions():
    return [
        {"true": true, "predicted": predicted, "count": 20 if true == predicted else len(predicted) % 3}
        for true in NASTY
        for predicted in NASTY
    ]
