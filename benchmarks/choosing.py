"""Which model is chosen, how sure one is told to be of it, and what came of it: P(best) said against found.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/choosing.py ROWS.jsonl CACHE [--shots 5 10 20]
    python benchmarks/choosing.py ROWS.jsonl --report benchmarks/results/choosing.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`. A row is a set, so many training images a class and a draw of them; it
holds what `tightframe rank` says of each model, by training images alone, and the test accuracy of what would be used:
discriminants of all layers. Features of a whole set are kept in CACHE. `RIVALRY` of `decide.recommendation` was fixed
on draws 2 to 4; any nine of the ten sets choose nearly the same.
"""

from __future__ import annotations

import argparse
import itertools
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from points import Row, append, rows_in, shared_folder

import tightframe
from tightframe.data.selection import at_most
from tightframe.decide.evidence import Evidence
from tightframe.decide.recommendation import Outcome, standings
from tightframe.features.workspace import Workspace, read_in_closed_form
from tightframe.probes.discriminant import read_layers

SETS = (
    *("flowers5", "dtd10", "trashnet", "sign_digits", "grocery", "red_blood_cells"),
    *("omniglot_scripts", "steel_defects", "pacs_sketch", "cifar10"),
)
MODELS = (
    *("mobilenetv1_025", "mobilenetv1_050", "mobilenetv1_100", "mobilenetv2_100"),
    *("squeezenet1_0", "squeezenet1_1", "tiny_darknet"),
)
MOST = 28
"""Training images a class from which draws are made."""
BINS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--draws", type=int, nargs="+", default=[5, 6, 7])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report:
        options.report.write_text(report(rows_in(options.rows)), encoding="utf-8")
        return
    append(options.rows, study(shared_folder(), options), told)


def told(row: Row) -> Iterator[object]:
    yield from (row["data"], row["shots"], row["draw"])
    yield {name: round(value, 2) for name, value in row["p_best"].items()}


def study(shared: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A row for every set, number of images and draw."""
    for data in SETS:
        images = tightframe.load_images(shared / "data" / data)
        assert images.test is not None
        train = at_most(images.train, MOST, 0)
        seen, unseen, sizes = {}, {}, []
        for name in MODELS:
            backbone = tightframe.load_backbone(f"{shared / 'zoo' / 'zoo.py'}:build:{name}", input_size=options.side)
            workspace = Workspace(folder=options.cache)
            layers = read_in_closed_form(backbone)
            seen[name] = dict(workspace.features(backbone, train, layers))
            unseen[name] = dict(workspace.features(backbone, images.test, layers))
            sizes.append(backbone.parameters)
        for shots in options.shots:
            for draw in options.draws:
                chosen = drawn(train.labels, shots, draw)
                labels, classes = train.labels[chosen], len(images.classes)
                outcomes, accuracy = [], {}
                for name in MODELS:
                    found = read_layers({k: v[chosen] for k, v in seen[name].items()}, labels, classes)
                    outcomes.append(Outcome.of(Evidence(found.held_out.numpy(), labels)))
                    said = found.logits(unseen[name]).argmax(1).numpy()
                    accuracy[name] = float((said == images.test.labels).mean())
                told = dict(zip(MODELS, standings(outcomes, sizes, draw), strict=True))
                yield {
                    "data": data,
                    "shots": shots,
                    "draw": draw,
                    "accuracy": accuracy,
                    "merit": {name: one.merit for name, one in told.items()},
                    "p_best": {name: one.p_best for name, one in told.items()},
                }


def drawn(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """Indices of so many images of each class."""
    luck = np.random.default_rng(draw).random(len(labels))
    order = np.lexsort((luck, labels))
    place = np.concatenate([np.arange(count) for count in np.bincount(labels)])
    return np.sort(order[place < shots])


def report(rows: list[Row]) -> str:
    """The results as Markdown."""
    where = f"{platform.machine()}, one thread; Python {platform.python_version()}, PyTorch {torch.__version__}"
    lines = [
        "# The choice of the model",
        "",
        f"Written by `benchmarks/choosing.py` ({where}): {len(MODELS)} models, "
        f"{len({row['data'] for row in rows})} sets, {len(rows)} rankings. Regret: points of "
        "test accuracy that the first of the ranking is behind the best.",
        "",
        "| images a class | rankings | regret, mean | worst | more than 2 points behind |",
        "|---|---|---|---|---|",
    ]
    for shots in sorted({row["shots"] for row in rows}):
        some = [row for row in rows if row["shots"] == shots]
        lost = np.array([regret(row) for row in some])
        lines.append(
            f"| {shots} | {len(some)} | {lost.mean():.1f} | {lost.max():.1f} | {np.sum(lost > 2)} of {len(some)} |"
        )
    said = np.concatenate([list(row["p_best"].values()) for row in rows])
    best = np.concatenate([[is_best(row, name) for name in row["p_best"]] for row in rows])
    lines += [
        "",
        "P(best), over all models of all rankings:",
        "",
        "| said | models | said, mean | found |",
        "|---|---|---|---|",
    ]
    for low, high in itertools.pairwise(BINS):
        inside = (said >= low) & (said < high if high < 1 else said <= high)
        if inside.any():
            means = f"{100 * said[inside].mean():.0f} % | {100 * best[inside].mean():.0f} %"
            lines.append(f"| {100 * low:.0f} to {100 * high:.0f} % | {inside.sum()} | {means} |")
    return "\n".join(lines) + "\n"


def regret(row: Row) -> float:
    first = max(row["merit"], key=row["merit"].get)
    return 100 * (max(row["accuracy"].values()) - row["accuracy"][first])


def is_best(row: Row, name: str) -> float:
    """Whether the model is the best on test images; shared by those that are equally good."""
    top = max(row["accuracy"].values())
    best = [one for one, accuracy in row["accuracy"].items() if accuracy == top]
    return (name in best) / len(best)


if __name__ == "__main__":
    main()
