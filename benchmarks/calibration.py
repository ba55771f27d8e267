"""How well probabilities and expected accuracies of the discriminants hold, beside what chance alone leaves open.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/calibration.py ROWS.jsonl [--models NAME …]
    python benchmarks/calibration.py ROWS.jsonl --report benchmarks/results/calibration.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`. A row is a model, a set, so many training images a class and a draw of
them. It holds the calibration error on test images (15 bins), and what the same probabilities would measure on as many
images if they were true: labels are drawn from them. Further, calibration error and log loss with all logits times a
factor, or the factor of least log loss on 5-fold out-of-fold predictions; and the accuracy to expect, that found, and
the mean distance that binomial chance in both leaves.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from itertools import product
from math import pi, sqrt
from pathlib import Path

import numpy as np
import torch
from points import Row, append, rows_in, shared_folder
from pooling import MOST, MOST_TEST, SETS, drawn

import tightframe
from tightframe.data.selection import at_most
from tightframe.features.workspace import Workspace, read_in_closed_form
from tightframe.metrics.folds import fold_of
from tightframe.probes.calibration import calibration_error, temperature
from tightframe.probes.discriminant import read_layers

SHIFTED = ("grocery", "red_blood_cells", "omniglot_scripts")
"""Sets whose test images come from other shops, smears or drawers than the training images."""
MODELS = ("mobilenetv1_050", "squeezenet1_1")
FACTORS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35)
TRIALS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report:
        options.report.write_text(report(rows_in(options.rows)), encoding="utf-8")
        return
    append(options.rows, study(shared_folder(), options))


def study(shared: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A row for every model, set, number of images and draw."""
    for model, data in product(options.models, SETS):
        images = tightframe.load_images(shared / "data" / data)
        assert images.test is not None
        train, test = at_most(images.train, MOST, 0), at_most(images.test, MOST_TEST, 0)
        backbone = tightframe.load_backbone(f"{shared / 'zoo' / 'zoo.py'}:build:{model}", input_size=options.side)
        workspace, layers = Workspace(precision="float32"), read_in_closed_form(backbone)
        seen, unseen = (dict(workspace.features(backbone, part, layers)) for part in (train, test))
        for shots, draw in product(options.shots, options.draws):
            chosen = drawn(train.labels, shots, draw)
            part = {name: values[chosen] for name, values in seen.items()}
            found = judged(part, train.labels[chosen], unseen, test.labels, len(images.classes))
            yield {"model": model, "data": data, "shots": shots, "draw": draw} | found


def judged(
    seen: dict[str, np.ndarray], labels: np.ndarray, unseen: dict[str, np.ndarray], asked: np.ndarray, classes: int
) -> Row:
    """What a reading promises and what came of it."""
    found = read_layers(seen, labels, classes)
    logits, truth = found.logits(unseen), torch.tensor(asked).long()
    shares = logits.softmax(1)
    drawn_labels = [
        torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(trial))[:, 0] for trial in range(TRIALS)
    ]
    factors = {str(factor): factor for factor in FACTORS} | {"5-fold": _by_folds(seen, labels, classes)}
    right = float((found.held_out.argmax(1).numpy() == labels).mean())
    accuracy = float((logits.argmax(1) == truth).double().mean())
    spread = sqrt(accuracy * (1 - accuracy) * (1 / len(labels) + 1 / len(asked)))
    return {
        "expected": right,
        "accuracy": accuracy,
        "chance": spread * sqrt(2 / pi),
        "floor": float(np.mean([calibration_error(shares, one) for one in drawn_labels])),
        "errors": {name: calibration_error((f * logits).softmax(1), truth) for name, f in factors.items()},
        "losses": {name: float(torch.nn.functional.cross_entropy(f * logits, truth)) for name, f in factors.items()},
    }


def _by_folds(seen: dict[str, np.ndarray], labels: np.ndarray, classes: int) -> float:
    said, assigned = np.empty((len(labels), classes)), fold_of(labels, 5, 0)
    for fold in np.unique(assigned):
        kept, held = assigned != fold, assigned == fold
        found = read_layers({name: values[kept] for name, values in seen.items()}, labels[kept], classes)
        said[held] = found.logits({name: values[held] for name, values in seen.items()}).log_softmax(1).numpy()
    return temperature(torch.tensor(said), torch.tensor(labels).long())


def report(rows: list[Row]) -> str:
    """The results as Markdown."""
    where = f"{platform.machine()}, one thread; Python {platform.python_version()}, PyTorch {torch.__version__}"
    lines = [
        "# Calibration of the discriminants",
        "",
        f"Written by `benchmarks/calibration.py` ({where}): {len(rows)} points, models "
        f"{', '.join(sorted({row['model'] for row in rows}))}, {len({row['data'] for row in rows})} sets, at most "
        f"{MOST_TEST} test images a class. If true: what true probabilities would measure on as many images. Chance: "
        "the mean distance of expected from found accuracy that binomial chance in both leaves.",
        "",
        "| test images | images a class | points | calibration error | if true | expected − found | mean distance | "
        "chance |",
        "|---" * 8 + "|",
    ]
    parts = [
        (name, shots, [row for row in rows if (row["data"] in SHIFTED) == shifted and row["shots"] == shots])
        for name, shifted in (("alike", False), ("from elsewhere", True))
        for shots in sorted({row["shots"] for row in rows})
    ]
    for name, shots, some in parts:
        gaps = np.array([row["expected"] - row["accuracy"] for row in some])
        numbers = [
            *(np.mean([row["errors"]["1.0"] for row in some]), np.mean([row["floor"] for row in some])),
            *(gaps.mean(), np.abs(gaps).mean(), np.mean([row["chance"] for row in some])),
        ]
        told = " | ".join(f"{100 * number:.1f}" for number in numbers)
        lines.append(f"| {name} | {shots} | {len(some)} | {told} |")
    names = list(rows[0]["errors"])
    lines += ["", "Calibration error (%) and log loss (nats) with all logits times a factor:", ""]
    lines += [f"| test images | images a class | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for name, shots, some in parts:
        errors, losses = ({f: np.mean([row[key][f] for row in some]) for f in names} for key in ("errors", "losses"))
        cells = [f"{100 * errors[f]:.1f}, {losses[f]:.3f}" for f in names]
        lines.append(f"| {name} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
