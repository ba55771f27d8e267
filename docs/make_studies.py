"""Run the studies on real models and images, and write docs/studies.md from the results.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python docs/make_studies.py --runs RUNS [--only NAME …] [--scale medium]
    python docs/make_studies.py     # only the page, from docs/studies/

DIR holds `zoo/zoo.py` (a builder) and `data/*`. Studies continue what an earlier call left in RUNS. The results (plot,
rows, and all numbers of the page) are kept in docs/studies/. A test checks that the page agrees with them.
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
from tightframe.features.workspace import Workspace
from tightframe.models.backbones import load_backbone
from tightframe.studies import STUDIES, Study, run_study
from tightframe.studies.evidence import RULE

HERE = Path(__file__).parent
KEPT = HERE / "studies"
ALL = ("*",)
UNSEEN = ("cifar100", "dtd10", "flowers5", "sign_digits", "trashnet")
"""Datasets that no model was trained on: some models are of CIFAR-10."""
LARGE_IMAGES = ("dtd10", "flowers5", "trashnet", "sign_digits")
VARIANTS: dict[str, Any] = {"data": ("cifar10", "cifar100", "sign_digits", "flowers5"), "max_per_class": 200}
SETTINGS: dict[str, dict[str, Any]] = {
    "downstream-collapse": {"models": ALL, "side": 96, "data": UNSEEN, "max_per_class": 100},
    "source-collapse": VARIANTS,
    "projection-head": VARIANTS,
    "augmentation": VARIANTS,
    "few-shot": {"models": ALL, "side": 96, "data": ("cifar100", "dtd10")},
    "layers": {
        "models": ("mobilenetv1_050", "squeezenet1_1", "mobilenetv2_100", "resnet20_cifar10"),
        "side": 96,
        "data": ("dtd10", "flowers5", "sign_digits", "trashnet"),
    },
    "across-data": {"models": ALL, "side": 96, "data": UNSEEN, "max_per_class": 100},
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
    "scarce-data": {"models": ("mobilenetv1_050",), "side": 64, "data": ("cifar10", *UNSEEN)},
}
"""What each study is run on. `side` is the input size in pixels of models of ImageNet; those of CIFAR-10 take 32."""
LARGER: dict[str, dict[str, Any]] = {
    "source-collapse": {"data": VARIANTS["data"]},
    "projection-head": {"data": VARIANTS["data"]},
    "scarce-data": {
        "models": ("mobilenetv1_050",),
        "side": 64,
        "data": ("cifar10", "cifar100", "flowers5", "sign_digits", "trashnet"),
    },
}
"""What each study is run on at the medium scale."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder to run studies in; nothing is run without it")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), metavar="NAME")
    parser.add_argument("--scale", choices=("small", "medium"), default="small")
    parser.add_argument(
        "--machine", default="on one core while another study ran on the other", help="where studies are run, in words"
    )
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.runs:
        shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
        for name in options.only or (STUDIES if options.scale == "small" else LARGER):
            ran(STUDIES[name], options.runs, shared, options.scale, options.machine)
    (HERE / "studies.md").write_text(page(), encoding="utf-8")


def ran(study: Study, runs: Path, shared: Path, scale: str, machine: str) -> None:
    """Run one study, and keep what the page shows."""
    chosen = dict((SETTINGS if scale == "small" else LARGER)[study.name])
    called = named(study.name, scale)
    out = runs / called
    side, names = chosen.pop("side", None), chosen.pop("models", ())
    chosen["data"] = [str(shared / "data" / name) for name in chosen["data"]]
    backbones = list(zoo_models(shared / "zoo", names, side))
    found = run_study(study, out, scale=scale, models=backbones, workspace=Workspace(progress=counted), **chosen)
    KEPT.mkdir(exist_ok=True)
    shutil.copy(out / "plot.png", KEPT / f"{called}.png")
    shutil.copy(out / "rows.csv", KEPT / f"{called}.csv")
    failed = sorted({row["error"] for row in found.rows if "error" in row})
    kept = {"settings": found.settings, "machine": machine, "versions": found.versions, "failed": failed}
    kept |= found.tables
    (KEPT / f"{called}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def counted(steps: Any, title: str, total: int) -> Iterator[Any]:
    """Progress: a line for each point of a study."""
    for place, step in enumerate(steps, 1):
        if title in STUDIES:
            print(f"{title}: {place} of {total}", flush=True)
        yield step


def zoo_models(zoo: Path, names: tuple[str, ...], side: int | None) -> Iterator[Backbone]:
    """Models of the builder, or all of them."""
    known = sorted(path.stem for path in (zoo / "models").glob("*.safetensors"))
    for name in known if names == ALL else names:
        yield load_backbone(f"{zoo / 'zoo.py'}:build:{name}", input_size=32 if "cifar" in name else side)


def page() -> str:
    """The page, in Markdown."""
    kept = {name: loaded(name) for name in STUDIES if there(name)}
    parts = [
        "# The paper's studies at small scale",
        "Written by `python docs/make_studies.py` from the results in `docs/studies/`, where CSV files have a row for "
        "every point. `tightframe study NAME --data … --models …` does the same with your images and models. Without "
        "them it runs on the built-in digits within minutes, which shows how a study works but has too few models for "
        "a verdict.",
        "The claims are those of Li et al. (TMLR 2024). The results are those of the *small* scale (models of up to 4 "
        "million parameters, datasets of hundreds to thousands of images, two cores) and, where marked, of the "
        "*medium* scale on a GPU. A claim that is not supported here is not refuted at the paper's scale.",
        f"**The rule.** {RULE} Intervals are over models, datasets or seeds: whatever could have been others.",
        "## Summary",
        *([answers(kept)] if kept else []),
        *(section(STUDIES[name], found) for name, found in kept.items()),
    ]
    return "\n\n".join(parts) + "\n"


def named(name: str, scale: str) -> str:
    """The name of the files of a study at this scale."""
    return name if scale == "small" else f"{name}-{scale}"


def there(called: str) -> bool:
    """Whether there are results under this name."""
    return (KEPT / f"{called}.json").is_file()


def loaded(called: str) -> dict[str, Any]:
    """The results under this name."""
    found: dict[str, Any] = json.loads((KEPT / f"{called}.json").read_text(encoding="utf-8"))
    return found


def answers(kept: dict[str, Any]) -> str:
    """A table of every study's first claim and verdict."""
    lines = ["| Study | Claim tested | Statistic | 95 % interval | Verdict |", "|---|---|---|---|---|"]
    for name, found in kept.items():
        first = found["evidence"][0]
        lines.append(
            f"| [{name}](#{name}) | {first['question']} | {statistic(first)} | {ends(first)} | {first['verdict']} |"
        )
    return "\n".join(lines)


def section(study: Study, found: dict[str, Any]) -> str:
    """One study: what the paper claims, what was done here, and the results, also at the medium scale."""
    called, larger = named(study.name, "medium"), list[str]()
    if there(called):
        scale = study.scales["medium"]
        what = (
            f"`--scale medium`: {scale.arch}" if study.pretrains else f"`--scale medium`: {len(scale.methods)} methods"
        )
        larger = [f"### {study.name} on a GPU", f"The same with {what}.", *results(called, loaded(called))]
    claim = study.claim[0].upper() + study.claim[1:]
    head = [f"## {study.name}", f"**The paper:** {claim}. {study.paper}", f"**Here:** {study.small}"]
    return "\n\n".join([*head, *results(study.name, found), *larger])


def results(called: str, found: dict[str, Any]) -> list[str]:
    """The plot, the evidence and the settings of one run."""
    settings = found["settings"]
    lines = ["| Claim tested | Statistic | 95 % interval | Over | Verdict |", "|---|---|---|---|---|"]
    for row in found["evidence"]:
        lines.append(f"| {row['question']} | {statistic(row)} | {ends(row)} | {row['units']} | **{row['verdict']}** |")
    data = ", ".join(f"{name} ({n:,})" for name, n in zip(settings["data"], settings["images"], strict=True))
    models = [f"Models: {', '.join(settings['models'])}."] if settings["models"] else []
    counts = [
        f"{settings[name]} {name if settings[name] > 1 else name.removesuffix('s')}"
        for name in ("epochs", "seeds")
        if settings.get(name)
    ]
    minutes = round(settings["seconds"] / 60)
    time = f"{minutes} minute{'s' if minutes != 1 else ''} {found['machine']}, PyTorch {found['versions']['torch']}."
    made = " ".join([f"Datasets (training images): {data}.", *models, ", ".join([*counts, time])])
    return [
        f"![{called}](studies/{called}.png)",
        "\n".join(lines),
        *([f"Failed: {'; '.join(found['failed'])}."] if found["failed"] else []),
        f"{made} [Rows](studies/{called}.csv).",
    ]


def statistic(row: dict[str, Any]) -> str:
    """The statistic and its value."""
    value = "–" if row["value"] is None else f"{row['value']:+.2f}"
    return f"{row['statistic']} {value}"


def ends(row: dict[str, Any]) -> str:
    """The ends of the interval."""
    return "–" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"


if __name__ == "__main__":
    main()
