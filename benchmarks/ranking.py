"""How well every column of `tightframe rank` ranks real networks on real picture sets, and the rule that combines them.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/ranking.py CACHE > benchmarks/results/ranking.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`; features are kept in CACHE. ImageNet networks see pictures
at 128 px (96 px for CIFAR), CIFAR ones at 32 px. Truth is the test accuracy of the ridge probe trained on all training
pictures. The bonus for size is fitted anew for every set on the other sets, as is the weight of each probe.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import torch

import tightframe
from tightframe.jobs.rank import orders, rank
from tightframe.jobs.run import Row, Run
from tightframe.metrics.agreement import agreement
from tightframe.metrics.recommendation import FADING, SIZE, WEIGHTS

SHOTS = (10, 20, None)
SHOWN = ("weighted_tau", "regret")


def backbone(zoo: Path, name: str, data: str) -> tightframe.Backbone:
    side = {} if "cifar" in name else {"input_size": 96 if data.startswith("cifar") else 128}
    return tightframe.load_backbone(f"{zoo}:build:{name}", **side)


def table(shared: Path, cache: Path) -> dict[tuple[str, int | None], list[Row]]:
    sys.path.insert(0, str(shared / "zoo"))
    import zoo

    found: dict[tuple[str, int | None], list[Row]] = {}
    for folder in sorted(p for p in (shared / "data").iterdir() if p.is_dir()):
        networks = [backbone(shared / "zoo" / "zoo.py", name, folder.name) for name in zoo.names()]
        for shots in SHOTS:
            started = time.perf_counter()
            data = tightframe.load_images(str(folder), shots=shots)
            run, store = Run(cache / f"{folder.name}-{shots}"), tightframe.FeatureStore(cache / "features")
            rows = rank(data, networks, run=run, store=store, precision="float32").rows
            found[folder.name, shots] = rows
            print(f"{folder.name} {shots}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        truth = {row["network"]: row["test_accuracy"] for row in found[folder.name, None]}
        for shots in SHOTS:
            for row in found[folder.name, shots]:
                row["truth"] = truth[row["network"]]
    return found


def judged(rows: list[Row], scores: list[float]) -> dict[str, float]:
    found = agreement(np.array(scores, float), np.array([row["truth"] for row in rows]), draws=1)
    return {name: found[name].value for name in SHOWN}


def columns(found: dict[tuple[str, int | None], list[Row]], shots: int | None) -> dict[str, dict[str, list[float]]]:
    made: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (_, given), rows in found.items():
        for column, higher in orders().items():
            if given == shots and all(row.get(column) is not None for row in rows):
                values = [row[column] if higher else -row[column] for row in rows]
                for name, value in judged(rows, values).items():
                    made[column][name].append(-1.0 if name == "weighted_tau" and np.isnan(value) else value)
    return made


def estimate(rows: list[Row], probe: float, size: float) -> list[float]:
    pictures = rows[0]["pictures"]
    logs = np.log([row["parameters"] for row in rows])
    bonus = size * FADING / (FADING + pictures) * (logs - logs.mean())
    return [probe * r["probe_accuracy"] + (1 - probe) * r["knn_accuracy"] + b for r, b in zip(rows, bonus, strict=True)]


def left_out(found: dict[tuple[str, int | None], list[Row]], shots: int | None) -> dict[str, float]:
    """Share of the probe against neighbours, and the bonus, chosen on all sets but the one they are judged on."""
    sets = sorted({name for name, _ in found})
    grid = list(product((0.5, 0.65, 0.8, 1.0), (0.0, 0.02, 0.05, 0.08, 0.12)))
    scored = {
        (name, at): judged(found[name, shots], estimate(found[name, shots], *grid[at]))
        for name in sets
        for at in range(len(grid))
    }
    taken = []
    for held in sets:
        means = [
            np.mean([scored[name, at]["weighted_tau"] for name in sets if name != held]) for at in range(len(grid))
        ]
        taken.append(scored[held, int(np.argmax(means))])
    return {name: float(np.mean([one[name] for one in taken])) for name in SHOWN}


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    if not (shared / "zoo" / "zoo.py").is_file():
        sys.exit("no networks and pictures: point TIGHTFRAME_SHARED at a folder with zoo/ and data/")
    found = table(shared, Path(sys.argv[1]))
    count, sets = len(next(iter(found.values()))), len({name for name, _ in found})
    print("# How well each column ranks\n")
    print(
        f"{count} networks, {sets} picture sets; mean weighted Kendall τ / mean regret of the first choice in points,"
    )
    print("by training pictures a class. Truth: test accuracy of the ridge probe on all training pictures.")
    print(
        f"`expected_accuracy` uses {dict(WEIGHTS)} and a bonus of {SIZE}; the last line is judged on sets that had no "
    )
    print("part in choosing its numbers. A score that gives every network the same value counts as τ = −1.\n")
    print("| ranked by | " + " | ".join(f"{shots or 'all'} a class" for shots in SHOTS) + " |")
    print("|---" * (len(SHOTS) + 1) + "|")
    by_shots = {shots: columns(found, shots) for shots in SHOTS}
    lines = {
        column: [by_shots[shots].get(column, {}) for shots in SHOTS] for column in orders() if column in by_shots[None]
    }
    for column in sorted(lines, key=lambda c: -np.mean(lines[c][-1]["weighted_tau"])):
        cells = [
            f"{np.mean(c['weighted_tau']):.2f} / {100 * np.mean(c['regret']):.1f}" if c else "–" for c in lines[column]
        ]
        print(f"| `{column}` | " + " | ".join(cells) + " |")
    cells = [left_out(found, shots) for shots in SHOTS]
    told = [f"{cell['weighted_tau']:.2f} / {100 * cell['regret']:.1f}" for cell in cells]
    print("| probe, neighbours and size, weights left out | " + " | ".join(told) + " |")


if __name__ == "__main__":
    main()
