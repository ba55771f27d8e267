"""Run the studies on real models and images, and write docs/studies.md from what came of them.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python docs/make_studies.py --runs RUNS [--only NAME …] [--scale medium]
    python docs/make_studies.py     # the page alone, from docs/studies/

DIR holds `zoo/zoo.py` (a builder) and `data/*`. Studies go on where an earlier call left RUNS. What came of each (its
image, rows, and all numbers of the page) is kept in docs/studies/. A test sees that the page fits to that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tightframe.backbone import Backbone
from tightframe.models.backbones import load_backbone
from tightframe.studies import STUDIES, Study, run_study
from tightframe.studies.evidence import RULE

HERE = Path(__file__).parent
KEPT = HERE / "studies"
ALL = ("*",)
NEW_SETS = ("cifar100", "dtd10", "flowers5", "sign_digits", "trashnet")
"""None that a model was trained on: some are of CIFAR-10."""
LARGE_IMAGES = ("dtd10", "flowers5", "trashnet", "sign_digits")
VARIANTS: dict[str, Any] = {"data": ("cifar10", "cifar100", "sign_digits", "flowers5"), "max_per_class": 200}
SETTINGS: dict[str, dict[str, Any]] = {
    "downstream-collapse": {"models": ALL, "side": 96, "data": NEW_SETS, "max_per_class": 100},
    "source-collapse": VARIANTS,
    "projection-head": VARIANTS,
    "augmentation": VARIANTS,
    "few-shot": {"models": ALL, "side": 96, "data": ("cifar100", "dtd10")},
    "layers": {
        "models": ("mobilenetv1_050", "squeezenet1_1", "mobilenetv2_100", "resnet20_cifar10"),
        "side": 96,
        "data": ("dtd10", "flowers5", "sign_digits", "trashnet"),
    },
    "across-data": {"models": ALL, "side": 96, "data": NEW_SETS, "max_per_class": 100},
    "tuned-layer": {
        "models": ("mobilenetv1_050", "mobilenetv1_025", "resnet20_cifar10"),
        "side": 96,
        "data": LARGE_IMAGES,
    },
    "methods": {
        "models": ("mobilenetv1_050", "mobilenetv1_025", "resnet20_cifar10", "squeezenet1_1", "tiny_darknet"),
        "side": 96,
        "data": LARGE_IMAGES,
    },
    "scarce-data": {"models": ("mobilenetv1_050",), "side": 64, "data": ("cifar10", *NEW_SETS)},
}
"""What each study is run on; `side` is that of the images for models of ImageNet, those of CIFAR-10 have 32 px."""
LARGER: dict[str, dict[str, Any]] = {
    "source-collapse": {"data": VARIANTS["data"]},
    "projection-head": {"data": VARIANTS["data"]},
    "scarce-data": {
        "models": ("mobilenetv1_050",),
        "side": 64,
        "data": ("cifar10", "cifar100", "flowers5", "sign_digits", "trashnet"),
    },
}
"""The same at the medium scale."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="where studies are run; without it, nothing is run")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), metavar="NAME")
    parser.add_argument("--scale", choices=("small", "medium"), default="small")
    parser.add_argument("--machine", default="one core, another study on the other", help="that it is run on, in words")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.runs:
        shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
        for name in options.only or (STUDIES if options.scale == "small" else LARGER):
            ran(STUDIES[name], options.runs, shared, options.scale, options.machine)
    (HERE / "studies.md").write_text(page(), encoding="utf-8")


def ran(study: Study, runs: Path, shared: Path, scale: str, machine: str) -> None:
    """Run one study, and keep what the page shows of it."""
    chosen = dict((SETTINGS if scale == "small" else LARGER)[study.name])
    called = named(study.name, scale)
    out = runs / called
    side, names = chosen.pop("side", None), chosen.pop("models", ())
    chosen["data"] = [str(shared / "data" / name) for name in chosen["data"]]
    backbones = list(zoo_models(shared / "zoo", names, side))
    found = run_study(study, out, scale=scale, models=backbones, progress=told, **chosen)
    KEPT.mkdir(exist_ok=True)
    shutil.copy(out / "plot.png", KEPT / f"{called}.png")
    shutil.copy(out / "rows.csv", KEPT / f"{called}.csv")
    failed = sorted({row["error"] for row in found.rows if "error" in row})
    kept = {"settings": found.settings, "machine": machine, "versions": found.versions, "failed": failed}
    kept |= found.tables
    (KEPT / f"{called}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def told(steps: Any, title: str, total: int) -> Iterator[Any]:
    """Progress of the points of a study, a line each."""
    for place, step in enumerate(steps, 1):
        if title in STUDIES:
            print(f"{title}: {place} of {total}", flush=True)
        yield step


def zoo_models(zoo: Path, names: tuple[str, ...], side: int | None) -> Iterator[Backbone]:
    """From the builder; all that it lists where ``names`` says so."""
    known = sorted(path.stem for path in (zoo / "models").glob("*.safetensors"))
    for name in known if names == ALL else names:
        yield load_backbone(f"{zoo / 'zoo.py'}:build:{name}", input_size=32 if "cifar" in name else side)


def page() -> str:
    """The page, in Markdown."""
    kept = {name: loaded(name) for name in STUDIES if there(name)}
    parts = [
        "# The paper's studies, as we find them",
        "Written by `python docs/make_studies.py` from what is kept in `docs/studies/`; the CSV files there have a row "
        "for every point. `tightframe study NAME --data … --models …` does the same with your images and models, "
        "and without them, in minutes, with the built-in digits: too few models to tell, but all of it runs.",
        "Claims are those of Li et al. (TMLR 2024). What stands here is the *small* scale: models of up to 4 million "
        "parameters, sets of hundreds to thousands of images, two cores; where it says so, the *medium* scale on a "
        "GPU. A claim that is not supported here is not refuted at the paper's scale.",
        f"**The rule.** {RULE} Intervals are over models, datasets or seeds, whichever could have been others.",
        "## In short",
        *([answers(kept)] if kept else []),
        *(section(STUDIES[name], found) for name, found in kept.items()),
    ]
    return "\n\n".join(parts) + "\n"


def named(name: str, scale: str) -> str:
    """What is kept of a study at this scale is called so."""
    return name if scale == "small" else f"{name}-{scale}"


def there(called: str) -> bool:
    """Whether the study was run."""
    return (KEPT / f"{called}.json").is_file()


def loaded(called: str) -> dict[str, Any]:
    """What is kept of it."""
    found: dict[str, Any] = json.loads((KEPT / f"{called}.json").read_text(encoding="utf-8"))
    return found


def answers(kept: dict[str, Any]) -> str:
    """Every claim with its verdict."""
    lines = ["| Study | Does it hold? | Statistic | 95 % interval | Verdict |", "|---|---|---|---|---|"]
    for name, found in kept.items():
        first = found["evidence"][0]
        lines.append(
            f"| [{name}](#{name}) | {first['question']} | {statistic(first)} | {ends(first)} | {first['verdict']} |"
        )
    return "\n".join(lines)


def section(study: Study, found: dict[str, Any]) -> str:
    """One study: the claim, what was done, the image, and what came of it; and again at the medium scale."""
    called, larger = named(study.name, "medium"), list[str]()
    if there(called):
        scale = study.scales["medium"]
        what = (
            f"`--scale medium`: {scale.arch}" if study.pretrains else f"`--scale medium`: {len(scale.methods)} methods"
        )
        larger = [f"### {study.name} on a GPU", f"The same with {what}.", *came(called, loaded(called))]
    head = [f"## {study.name}", f"**The paper:** {study.claim}. {study.paper}", f"**Here:** {study.small}"]
    return "\n\n".join([*head, *came(study.name, found), *larger])


def came(called: str, found: dict[str, Any]) -> list[str]:
    """The image, the evidence, and the settings of one run."""
    settings = found["settings"]
    lines = ["| Question | Statistic | 95 % interval | Over | Verdict |", "|---|---|---|---|---|"]
    for row in found["evidence"]:
        lines.append(f"| {row['question']} | {statistic(row)} | {ends(row)} | {row['units']} | **{row['verdict']}** |")
    models = f" Models: {', '.join(settings['models'])}." if settings["models"] else ""
    epochs = f" {settings['epochs']} epochs." if settings["epochs"] else ""
    images = ", ".join(f"{n} ({count:,})" for n, count in zip(settings["data"], settings["images"], strict=True))
    seeds = "one seed" if settings["seeds"] == 1 else f"{settings['seeds']} seeds"
    return [
        f"![{called}](studies/{called}.png)",
        "\n".join(lines),
        *([f"Failed: {'; '.join(found['failed'])}"] if found["failed"] else []),
        f"Images (training): {images}.{models}{epochs} {seeds.capitalize()}; {settings['seconds'] / 60:.0f} "
        f"minutes of {found['machine']}; PyTorch {found['versions']['torch']}. [Rows](studies/{called}.csv).",
    ]


def statistic(row: dict[str, Any]) -> str:
    """What it is, and its value."""
    value = "–" if row["value"] is None else f"{row['value']:+.2f}"
    return f"{row['statistic']} {value}"


def ends(row: dict[str, Any]) -> str:
    """Of its interval."""
    return "–" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"


if __name__ == "__main__":
    main()
