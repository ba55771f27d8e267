"""How well every column of `tightframe rank` ranks real models on real datasets, and the order that it gives them.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/ranking.py CACHE > benchmarks/results/ranking.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`; features are kept in CACHE. ImageNet models see images
at 128 px (96 px for CIFAR), CIFAR ones at 32 px. Truth is the test accuracy of the ridge probe trained on all training
images.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import tightframe
from tightframe.decide.ranking import orders, quality
from tightframe.decide.recommendation import MOVING, SIZE
from tightframe.features.workspace import Workspace
from tightframe.jobs.rank import rank
from tightframe.row import Row
from tightframe.scores.agreement import agreement

SHOTS = (10, 20, None)
SHOWN = ("weighted_tau", "regret")
Found = dict[tuple[str, int | None], list[Row]]


def models_for(shared: Path, data: str) -> list[tightframe.Backbone]:
    """All models, set up for the images ``data``; those trained on ImageNet with their accuracy there."""
    sys.path.insert(0, str(shared / "zoo"))
    import zoo

    made = []
    for name in zoo.names():
        side = {} if "cifar" in name else {"input_size": 96 if data.startswith("cifar") else 128}
        backbone = tightframe.load_backbone(f"{shared / 'zoo' / 'zoo.py'}:build:{name}", **side)
        measured = [one["top1"] / 100 for one in zoo.card(name)["measured"].values()]
        known = float(np.mean(measured)) if side else None
        made.append(replace(backbone, source_accuracy=known))
    return made


def table(shared: Path, cache: Path) -> Found:
    found: Found = {}
    for folder in sorted(p for p in (shared / "data").iterdir() if p.is_dir()):
        models = models_for(shared, folder.name)
        for shots in SHOTS:
            started = time.perf_counter()
            data = tightframe.load_images(str(folder), max_per_class=shots)
            rows = rank(data, models, workspace=Workspace(cache, precision="float32")).rows
            found[folder.name, shots] = rows
            print(f"{folder.name} {shots}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        truth = {row["model"]: row["test_accuracy"] for row in found[folder.name, None]}
        for shots in SHOTS:
            for row in found[folder.name, shots]:
                row["truth"] = truth[row["model"]]
    return found


def judged(rows: list[Row], scores: list[float]) -> dict[str, float]:
    found = agreement(np.array(scores, float), np.array([row["truth"] for row in rows]), draws=1)
    return {name: found[name].value for name in SHOWN}


def columns(found: Found, shots: int | None) -> dict[str, dict[str, list[float]]]:
    made: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (_, given), rows in found.items():
        for column, higher in orders().items():
            if given == shots and all(row.get(column) is not None for row in rows):
                values = [row[column] if higher else -row[column] for row in rows]
                for name, value in judged(rows, values).items():
                    made[column][name].append(-1.0 if name == "weighted_tau" and np.isnan(value) else value)
    return made


def means(found: Found) -> None:
    """A line a column: mean weighted τ and regret over the sets, by images a class."""
    print("| ranked by | " + " | ".join(f"{shots or 'all'} a class" for shots in SHOTS) + " |")
    print("|---" * (len(SHOTS) + 1) + "|")
    by_shots = {shots: columns(found, shots) for shots in SHOTS}
    known = [column for column in orders() if column in by_shots[None]]
    for column in sorted(known, key=lambda c: -np.mean(by_shots[None][c]["weighted_tau"])):
        print(f"| `{column}` | " + " | ".join(spelled(by_shots[shots].get(column)) for shots in SHOTS) + " |")
    firsts = [{name: [value] for name, value in first_of_the_list(found, shots).items()} for shots in SHOTS]
    print("| the order of the list, with its head start for larger models | " + " | ".join(map(spelled, firsts)) + " |")


def first_of_the_list(found: Found, shots: int | None) -> dict[str, float]:
    """How well the order of the rows themselves ranks the models."""
    taken = [
        judged(rows, [-float(place) for place in range(len(rows))]) for (_, at), rows in found.items() if at == shots
    ]
    return {name: float(np.mean([one[name] for one in taken])) for name in SHOWN}


def spelled(cell: dict[str, list[float]] | None) -> str:
    return f"{np.mean(cell['weighted_tau']):.2f} / {100 * np.mean(cell['regret']):.1f}" if cell else "–"


def by_set(found: Found) -> None:
    """Weighted τ of every column on every set, with its interval over models."""
    sets = sorted({name for name, _ in found})
    table = {name: {row["score"]: row for row in quality(found[name, None], None)} for name in sets}
    print("\n| ranked by | " + " | ".join(sets) + " |\n" + "|---" * (len(sets) + 1) + "|")
    for column in orders():
        cells = [table[name].get(column) for name in sets]
        if any(cells):
            told = [
                f"{c['weighted_tau']:.2f} ({c['weighted_tau_low']:.2f} to {c['weighted_tau_high']:.2f})" if c else "–"
                for c in cells
            ]
            print(f"| `{column}` | " + " | ".join(told) + " |")


def moving(found: Found) -> float:
    """By how much accuracies move apart with each doubling of images, root mean square over sets."""
    apart = []
    for name in {name for name, _ in found}:
        few, many = found[name, SHOTS[0]], {row["model"]: row for row in found[name, None]}
        change = np.array([many[row["model"]]["probe_accuracy"] - row["probe_accuracy"] for row in few])
        doublings = np.log2(next(iter(many.values()))["images"] / few[0]["images"])
        apart.append(change.var() / doublings**2)
    return float(np.mean(apart) ** 0.5)


def races(shared: Path, cache: Path, found: Found) -> None:
    print("\n| images | first of all | first of the race | its regret | forward passes saved |\n|---|---|---|---|---|")
    for name in sorted({name for name, _ in found}):
        data, rows = tightframe.load_images(str(shared / "data" / name)), found[name, None]
        workspace = Workspace(cache, precision="float32")
        raced = rank(data, models_for(shared, name), time_limit=600.0, workspace=workspace).rows
        truth = {row["model"]: row["test_accuracy"] for row in rows}
        passes = len(rows) * len(data.train) / sum(row["images_seen"] for row in raced)
        regret = 100 * (max(truth.values()) - truth[raced[0]["model"]])
        print(f"| {name} | {rows[0]['model']} | {raced[0]['model']} | {regret:.1f} points | {passes:.1f} × |")


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    if not (shared / "zoo" / "zoo.py").is_file():
        sys.exit("no models and images: point TIGHTFRAME_SHARED at a folder with zoo/ and data/")
    cache = Path(sys.argv[1])
    found = table(shared, cache)
    count, sets = len(next(iter(found.values()))), len({name for name, _ in found})
    print("# How well each column ranks\n")
    print(f"`python benchmarks/ranking.py CACHE` on {platform.machine()}, {torch.get_num_threads()} thread; ", end="")
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}.\n")
    print(f"{count} models, {sets} datasets; mean weighted Kendall τ / mean regret of the first choice in points.")
    print("Truth: test accuracy of the ridge probe on all training images. `expected_accuracy` is of discriminants of")
    print(
        f"all layers; the order of the list adds a head start of {SIZE} for e times the parameters. A score that gives"
    )
    print("every model the same value counts as τ = −1.\n")
    means(found)
    some = {key: [row for row in rows if row["source_accuracy"] is not None] for key, rows in found.items()}
    few = len(next(iter(some.values())))
    print(f"\n## The {few} models trained on ImageNet, beside their accuracy there\n")
    means(some)
    print(f"\n## Set by set\n\nWeighted τ and its 95 % interval over {count} models, all training images.")
    by_set(found)
    print("\n## Races (`rank --time-limit`)\n")
    print(f"{count} models each. Accuracies of models move apart by {moving(found):.3f} at each doubling of images,")
    print(f"root mean square over sets; the race takes {MOVING}.")
    races(shared, cache, found)


if __name__ == "__main__":
    main()
