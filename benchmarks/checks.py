"""What `tightframe check` finds of what was planted in real images, and how long it takes.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/checks.py labels copies shift speed [--cache FOLDER]

DIR holds `zoo/zoo.py` (a builder) and `data/*`. Each part replaces its own lines of `results/checks.jsonl`, of which
`results/checks.md` is made. Labels need cleanlab.

labels: one in twenty training labels is another one, drawn at random; precision at as many as were changed.
copies: 200 images saved as JPEG of quality 60, halved, mirrored, or with 5 % of either side cut off at random places.
shift: 600 images in two parts; the second is blurred (σ = 1 % of the longer side), gets another white balance
(red + 10 %, blue − 10 %), or loses two thirds of the images of half of the classes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import tightframe
from tightframe.checks.duplicates import near_duplicates
from tightframe.checks.labels import ranking, suspects
from tightframe.checks.looks import look_at, thumbnail
from tightframe.checks.shift import shift_between
from tightframe.data.items import OpenImage
from tightframe.decide.evidence import Evidence
from tightframe.images import Images

SHARED = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared"))
ROWS = Path(__file__).parent / "results" / "checks.jsonl"
LABELS, SHIFT = "mobilenetv2_100", "mobilenetv1_050"
SETS = {
    "labels": (
        *("sign_digits", "trashnet"),
        *("steel_defects", "pacs_sketch", "grocery", "omniglot_scripts", "flowers5", "dtd10", "red_blood_cells"),
    ),
    "copies": (
        *("flowers5", "steel_defects", "red_blood_cells", "omniglot_scripts", "cifar10", "dtd10", "trashnet"),
        *("grocery", "sign_digits", "pacs_sketch", "cifar100"),
    ),
    "shift": ("flowers5", "trashnet", "dtd10", "sign_digits", "grocery"),
}
TUNED = {
    "labels": {"sign_digits", "trashnet", "steel_defects", "pacs_sketch", "flowers5"},
    "copies": {"flowers5", "steel_defects", "red_blood_cells", "omniglot_scripts", "cifar10", "dtd10", "trashnet"}
    | {"sign_digits"},
    "shift": {"flowers5", "trashnet"},
}
"""Sets that were looked at while thresholds were chosen."""
BY_EYE = {"red_blood_cells": 2, "omniglot_scripts": 2, "pacs_sketch": 3}
"""Of images called copies of others in the sets as they are, those that are none: simple shapes that are alike."""
MOST, PLANTED, COMPARED = 1000, 200, 600
NOISE = 0.05
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS) + "; none to write the page alone")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    for part in given.parts:
        rows = [row for row in _kept() if row["part"] != part]
        for row in PARTS[part](given):
            rows.append({"part": part, **row})
            print(rows[-1], flush=True)
            ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ROWS.with_suffix(".md").write_text(report(_kept()))


def _kept() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def _data(name: str) -> tightframe.ImageSplits:
    return tightframe.load_images(SHARED / "data" / name)


def _backbone(name: str) -> tightframe.Backbone:
    return tightframe.load_backbone(f"{SHARED / 'zoo' / 'zoo.py'}:build:{name}")


def labels(given: argparse.Namespace):
    from cleanlab.filter import find_label_issues

    workspace = tightframe.Workspace(given.cache, progress=lambda items, *_: items)
    for name in SETS["labels"]:
        images = _data(name).train
        features = workspace.features(_backbone(LABELS), images)
        for seed in range(given.seeds):
            noisy, wrong = _flipped(images.labels, len(images.classes), seed)
            said = tightframe.read_layers(features, noisy, len(images.classes)).held_out.numpy()
            evidence, count = Evidence(said, noisy), int(wrong.sum())
            theirs = find_label_issues(noisy, np.exp(said), return_indices_ranked_by="self_confidence")
            named = [one.place for one in suspects(evidence) if one.wrong]
            yield {
                "data": name,
                "seed": seed,
                "accuracy": float((said.argmax(1) == images.labels).mean()),
                "ours": float(wrong[ranking(evidence)[:count]].mean()),
                "cleanlab": float(wrong[theirs[:count]].sum() / count),
                "named": len(named) / count,
                "named_precision": float(wrong[named].mean()) if named else None,
                "cleanlab_named": len(theirs) / count,
                "cleanlab_named_precision": float(wrong[theirs].mean()) if len(theirs) else None,
            }


def _flipped(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(labels), round(NOISE * len(labels)), replace=False)
    noisy, wrong = labels.copy(), np.zeros(len(labels), dtype=bool)
    noisy[chosen] = (labels[chosen] + generator.integers(1, classes, len(chosen))) % classes
    wrong[chosen] = True
    return noisy, wrong


def _jpeg(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=60)
    return Image.open(stream).convert("RGB")


def _halved(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


def _mirrored(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _cropped(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    across, down = round(0.05 * image.width), round(0.05 * image.height)
    left, top = generator.integers(0, across + 1), generator.integers(0, down + 1)
    return image.crop((left, top, left + image.width - across, top + image.height - down))


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "jpeg": _jpeg,
    "half": _halved,
    "mirrored": _mirrored,
    "crop": _cropped,
}


def copies(given: argparse.Namespace):
    for name in SETS["copies"]:
        images, generator = _data(name).train, np.random.default_rng(7)
        if len(images) > MOST:
            images = images.subset(np.sort(generator.choice(len(images), MOST, replace=False)))
        looks, count = look_at(images), len(images)
        sources = generator.choice(count, PLANTED, replace=False)
        kinds = [list(CHANGES)[index % len(CHANGES)] for index in range(PLANTED)]
        made = [CHANGES[kind](images[source], generator) for kind, source in zip(kinds, sources, strict=True)]
        thumbnails = np.concatenate([looks.thumbnails, [thumbnail(image) for image in made]])
        sizes = np.concatenate([looks.sizes, [image.size for image in made]])
        started = time.process_time()
        pairs = near_duplicates(thumbnails, sizes)
        seconds = time.process_time() - started
        found = {one.second - count for one in pairs if one.second >= count > one.first == sources[one.second - count]}
        own = [one for one in pairs if one.second < count]
        yield {
            "data": name,
            "images": count,
            **{kind: sum(kinds[index] == kind for index in found) / kinds.count(kind) for kind in CHANGES},
            "other_images": len({one.second for one in own}),
            "others": [[images.identifiers[one.first], images.identifiers[one.second]] for one in own],
            "cpu_seconds": seconds,
        }


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 100))


def _warmer(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * [1.1, 1.0, 0.9]).clip(0, 255).astype(np.uint8))


def shift(given: argparse.Namespace):
    for name in SETS["shift"]:
        data = _data(name)
        images = data.train.joined(data.test)
        features = {way: _features(images, way, change, given.cache) for way, change in WAYS.items()}
        for way in (*WAYS, "shares"):
            draws = [_drawn(features, way, images, seed) for seed in range(given.repeats * (5 if way == "same" else 1))]
            found = [one.found for one in draws]
            yield {
                "data": name,
                "way": way,
                "repeats": len(draws),
                "found": float(np.mean(found)),
                "auc": float(np.mean([one.auc for one in draws])),
                "explained": float(np.mean([one.explained for one in draws])),
            }


WAYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "same": lambda image: image,
    "blur": _blurred,
    "white balance": _warmer,
}


def _features(images: Images, way: str, change: Callable[[Image.Image], Image.Image], cache: Path | None) -> np.ndarray:
    workspace = tightframe.Workspace(cache)
    items = tuple(OpenImage(item.name, change(item.open())) for item in images.items)
    changed = replace(images, name=f"{images.name}, {way}", items=items)
    return workspace.features(_backbone(SHIFT), changed, ["penultimate"])["penultimate"]


def _drawn(features: dict[str, np.ndarray], way: str, images: Images, seed: int):
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(images))[:COMPARED]
    train, test = order[COMPARED // 3 :], order[: COMPARED // 3]
    if way == "shares":
        classes = len(images.classes)
        rare = generator.permutation(classes)[: classes // 2]
        test = test[~np.isin(images.labels[test], rare) | (generator.random(len(test)) < 1 / 3)]
    changed = features.get(way, features["same"])
    both = np.concatenate([images.labels[train], images.labels[test]])
    return shift_between(features["same"][train], changed[test], both, seed=seed + 10**6)


def speed(given: argparse.Namespace):
    data, generator = _data("cifar10"), np.random.default_rng(0)
    train = data.train.subset(np.sort(generator.choice(len(data.train), 2250, replace=False)))
    test = data.test.subset(np.sort(generator.choice(len(data.test), 750, replace=False)))
    backbone = _backbone(SHIFT)
    for model in (None, backbone):
        started, used = time.perf_counter(), time.process_time()
        tightframe.check(replace(data, train=train, test=test), model, out=given.cache or Path("runs/check"))
        yield {
            "data": "cifar10",
            "images": 3000,
            "model": "" if model is None else SHIFT,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
            "load": os.getloadavg()[0],
        }


PARTS = {"labels": labels, "copies": copies, "shift": shift, "speed": speed}


def report(rows: list[Row]) -> str:
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[row["part"]].append(row)
    written = [
        "# What the check finds of what was planted\n",
        "`python benchmarks/checks.py labels copies shift speed`\n",
    ]
    for part, told in TOLD.items():
        if parts[part]:
            written += told(parts[part])
    return "\n".join(written) + "\n"


def _mean(rows: list[Row], key: str) -> str:
    known = [row[key] for row in rows if row[key] is not None]
    return f"{np.mean(known):.2f}" if known else "–"


def _seen(part: str, name: str) -> str:
    return "tuned on" if name in TUNED[part] else "judged on"


def _labels(rows: list[Row]) -> list[str]:
    lines = [
        "## Labels\n",
        f"5 % of the training labels are others, features of `{LABELS}`, predictions of each image left out by "
        "discriminants of all layers, the same for both. At n: precision of the first n of n changed labels. "
        "Named: how many are called wrong, over n, and how many of these are. cleanlab: `find_label_issues` as it "
        "comes.\n",
        "| data | | accuracy | at n | cleanlab at n | named | precision | cleanlab named | precision |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ("accuracy", "ours", "cleanlab", "named", "named_precision", "cleanlab_named", "cleanlab_named_precision")
    for name in SETS["labels"]:
        own = [row for row in rows if row["data"] == name]
        if own:
            lines.append(f"| {name} | {_seen('labels', name)} | " + " | ".join(_mean(own, key) for key in keys) + " |")
    return [*lines, ""]


def _copies(rows: list[Row]) -> list[str]:
    lines = [
        "## Near duplicates\n",
        f"{PLANTED} copies among at most {MOST:,} training images, 50 of each kind; share found. Others: further "
        "images that were called copies of one another, and how many of these are none, by eye. The rest are copies "
        "that the sets hold: photographs of one moment, textures in other colors.\n",
        "| data | | " + " | ".join(CHANGES) + " | others | false | CPU s |",
        "|---|---|" + "---|" * (len(CHANGES) + 3),
    ]
    for row in rows:
        found = " | ".join(f"{row[kind]:.2f}" for kind in CHANGES)
        others = f"{row['other_images']} of {row['images']} | {BY_EYE.get(row['data'], 0)}"
        lines.append(
            f"| {row['data']} | {_seen('copies', row['data'])} | {found} | {others} | {row['cpu_seconds']:.1f} |"
        )
    return [*lines, ""]


def _shift(rows: list[Row]) -> list[str]:
    lines = [
        "## Shift\n",
        f"How often {COMPARED} images, two thirds for training, are said to differ at the level of 5 %, by features of "
        f"`{SHIFT}` and class shares, over {rows[-1]['repeats']} draws ({rows[0]['repeats']} where nothing was done). "
        "In brackets the mean AUC.\n",
        "| data | | nothing | blur | white balance | class shares | … named as such |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SETS["shift"]:
        own = {row["way"]: row for row in rows if row["data"] == name}
        if len(own) == len(WAYS) + 1:
            cells = [f"{own[way]['found']:.2f} ({own[way]['auc']:.2f})" for way in (*WAYS, "shares")]
            lines.append(
                f"| {name} | {_seen('shift', name)} | " + " | ".join(cells) + f" | {own['shares']['explained']:.2f} |"
            )
    return [*lines, ""]


def _speed(rows: list[Row]) -> list[str]:
    lines = [
        "## Speed\n",
        "3,000 images of CIFAR-10 (2,250 for training), page included, on two CPU cores.\n",
        "| model | seconds | CPU seconds | load of the machine |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['model'] or 'none'} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['load']:.1f} |"
        for row in rows
    ]
    return [*lines, ""]


TOLD = {"labels": _labels, "copies": _copies, "shift": _shift, "speed": _speed}

if __name__ == "__main__":
    main()
