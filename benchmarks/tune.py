"""What tuning costs: one block on kept inputs against the whole model, LoRA and a logistic regression.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=2 python benchmarks/tune.py > benchmarks/results/tune.md

DIR holds `zoo/zoo.py` (a builder) and `data/*`. ResNet-18 and ViT-tiny have random weights: for time and memory it
makes no difference. Each measurement has a process of its own; those of one model follow one another, and all of it
is done ROUNDS times, of which the fastest counts. Precision is what `--precision auto` takes, the same for all.

- `scl`: block chosen by the race, its inputs kept, then trained on them;  `scl, whole`: the same block, nothing kept
- `full`, `lora`: a plain PyTorch loop, no measuring, images decoded and normalized before it starts
- `logistic`: scikit-learn's LogisticRegression on the penultimate features

Memory is the growth of the process's resident set while training, above what it was once model and images are
loaded. `bare` is the forward and backward pass of what `scl` trains, on batches made before, without optimizer or loop.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

import tightframe
from tightframe.data.selection import stratified
from tightframe.decide.block import chosen_block
from tightframe.features.inputs import PixelInputs
from tightframe.features.pixels import Pixels
from tightframe.features.precision import autocast, likely_precision, on_device
from tightframe.row import Row
from tightframe.tuning.loop import Inputs, fit
from tightframe.tuning.methods import METHODS
from tightframe.tuning.recipe import Recipe, Split
from tightframe.tuning.state import Trainable
from tightframe.tuning.surgery import TunableModel

ROUNDS, EPOCHS, MEASURED = 2, 100, 4
CPU = torch.device("cpu")
MODES = ("scl", "scl, whole", "full", "lora", "logistic")
CASES = {
    "resnet20 32 px": ("zoo:resnet20_cifar10", "sign_digits", 32),
    "mobilenetv2 128 px": ("zoo:mobilenetv2_100", "dtd10", 128),
    "resnet18 224 px": ("timm/resnet18", "dtd10", 224),
    "vit_tiny 224 px": ("timm/vit_tiny_patch16_224", "dtd10", 224),
}


def main() -> None:
    shared = Path(os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    if not (shared / "zoo" / "zoo.py").is_file():
        sys.exit("no models and images: point TIGHTFRAME_SHARED at a folder with zoo/ and data/")
    if sys.argv[1:]:
        print(json.dumps(measured(shared, *sys.argv[1:3])))
        return
    print("# What tuning costs\n")
    print(
        f"`python benchmarks/tune.py` on {platform.machine()}, {os.environ.get('OMP_NUM_THREADS', '1')} threads; ",
        end="",
    )
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}. 20 images a class, 10 classes; ", end="")
    print(f"{EPOCHS} epochs, of which {MEASURED} after a first one are measured and counted {EPOCHS} times.\n")
    print("s: preparing (decoding, keeping, choosing the block), an epoch, all. ×: times as fast as `full`.\n")
    print("| model | what | prepare s | epoch s | all s | × full | × lora | memory MB | saved kB | epoch / bare |")
    print("|---" * 10 + "|", flush=True)
    for case in CASES:
        rounds = [{mode: alone(case, mode) for mode in MODES} for _ in range(ROUNDS)]
        best = {mode: min((one[mode] for one in rounds), key=lambda row: row["all"]) for mode in MODES}
        for mode, row in best.items():
            against = [f"{best[other]['all'] / row['all']:.1f}" for other in ("full", "lora")]
            bare = f"{row['epoch'] / row['bare']:.2f}" if "bare" in row else ""
            name = f"{mode} ({row['layer']}, {row['share']:.1%})" if "layer" in row else mode
            cells = [case, name, f"{row['prepare']:.1f}", f"{row['epoch']:.2f}", f"{row['all']:.0f}", *against]
            cells += [f"{row['memory']:.0f}", f"{row['bytes'] / 1e3:.0f}", bare]
            print("| " + " | ".join(cells) + " |", flush=True)
    print("\nTime until the accuracy that `full` has after its epochs, on a fifth of the training images held out:\n")
    print("| model | accuracy of full | full s | scl s | scl in the end |\n|---|---|---|---|---|")
    for case in list(CASES)[:2]:
        print(race(alone(case, "race"), case), flush=True)


def alone(case: str, mode: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, case, mode], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(shared: Path, case: str, mode: str) -> dict[str, Any]:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    uri, images, side = CASES[case]
    data = tightframe.load_images(str(shared / "data" / images), max_per_class=20)
    named = uri.replace("zoo:", f"{shared / 'zoo' / 'zoo.py'}:build:")
    backbone = tightframe.load_backbone(named, input_size=side, pretrained=uri.startswith("zoo:"))
    if mode == "race":
        return to_accuracy(data, backbone)
    made = {"scl": block, "scl, whole": block, "full": whole, "lora": whole, "logistic": logistic}[mode]
    return made(data, backbone, mode)


def block(data: tightframe.ImageSplits, backbone: tightframe.Backbone, mode: str) -> dict[str, Any]:
    started = time.perf_counter()
    plan = tightframe.TrainConfig(epochs=EPOCHS, recipe="paper")
    workspace = tightframe.Workspace(device="cpu")
    chosen, _ = chosen_block(data.train, backbone, "auto", METHODS["scl"], plan, workspace)
    model = model_of(data, backbone, "scl", chosen)
    precision = likely_precision(model.base, CPU, "auto")
    looks, bare = backbone.preprocessing, {}
    inputs: Inputs = PixelInputs(Pixels(data.train, looks))
    part: Trainable = model
    before = resident(reset=True)
    if mode == "scl":
        part = model.from_block()
        inputs = workspace.block_inputs(backbone, data.train, [chosen])[chosen]
    prepared = time.perf_counter() - started
    rows = fit(part, inputs, everything(data), recipe(MEASURED + 1), device=CPU, precision=precision)
    memory = resident(peak=True) - before
    if mode == "scl":
        bare = {"bare": bare_epoch(part, inputs, data, precision)}
    seconds = float(np.median([row["seconds"] for row in rows[1:]]))
    owned = {"layer": chosen, "share": model.trainable_parameters / model.all_parameters}
    return summed(prepared, seconds, memory, model) | owned | bare


def whole(data: tightframe.ImageSplits, backbone: tightframe.Backbone, mode: str) -> dict[str, Any]:
    """A plain loop."""
    model = model_of(data, backbone, mode, None)
    precision = likely_precision(model.base, CPU, "auto")
    started = time.perf_counter()
    count = len(data.train)
    ((_, images),) = PixelInputs(Pixels(data.train, backbone.preprocessing)).batches(range(count), count)
    labels = torch.from_numpy(data.train.labels)
    prepared = time.perf_counter() - started
    before = resident(reset=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, weight_decay=1e-4)
    seconds = []
    for _ in range(MEASURED + 1):
        model.train()
        begun = time.perf_counter()
        for rows in torch.randperm(count).split(32):
            with autocast(CPU, precision):
                loss = functional.cross_entropy(model(images[rows]).float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - begun)
    return summed(prepared, float(np.median(seconds[1:])), resident(peak=True) - before, model)


def logistic(data: tightframe.ImageSplits, backbone: tightframe.Backbone, mode: str) -> dict[str, Any]:
    before, started = resident(reset=True), time.perf_counter()
    features = tightframe.Workspace().features(backbone, data.train, ["penultimate"])["penultimate"]
    prepared, begun = time.perf_counter() - started, time.perf_counter()
    found = LogisticRegression(max_iter=1000).fit(features, data.train.labels)
    seconds = time.perf_counter() - begun
    memory, size = resident(peak=True) - before, found.coef_.size + found.intercept_.size
    return {"prepare": prepared, "epoch": seconds, "all": prepared + seconds, "memory": memory, "bytes": 4 * size}


def to_accuracy(data: tightframe.ImageSplits, backbone: tightframe.Backbone) -> dict[str, Any]:
    """Validation accuracy after each epoch, and when, of `full` and `scl`, each at the best of three rates."""
    training, held_out = stratified(data.train.labels, 0.2, 0)
    split = Split(data.train.labels, training, held_out, len(data.classes))
    plan, found = tightframe.TrainConfig(epochs=20, recipe="paper"), {}
    for method in ("full", "scl"):
        started = time.perf_counter()
        workspace, chosen = tightframe.Workspace(device="cpu"), None
        if method == "scl":
            chosen = chosen_block(data.train, backbone, "auto", METHODS["scl"], plan, workspace)[0]
        inputs: Inputs = PixelInputs(Pixels(data.train, backbone.preprocessing))
        precision = likely_precision(backbone.module, CPU, "auto")
        if chosen:
            inputs = workspace.block_inputs(backbone, data.train, [chosen])[chosen]
        prepared, best = time.perf_counter() - started, None
        for rate in (0.01, 0.002, 0.0005):
            model = model_of(data, backbone, method, chosen)
            begun, times = time.perf_counter(), list[float]()

            def note(row: Row, begun: float = begun, times: list[float] = times) -> None:
                times.append(time.perf_counter() - begun)

            part = model.from_block() if chosen else model
            rows = fit(part, inputs, split, recipe(20, rate), device=CPU, precision=precision, on_epoch=note)
            course = [(prepared + at, row["validation_accuracy"]) for at, row in zip(times, rows, strict=True)]
            if best is None or course[-1][1] > best[-1][1]:
                best = course
        found[method] = best
    return found


def race(courses: dict[str, Any], case: str) -> str:
    goal = courses["full"][-1][1]
    first = {
        method: next((at for at, accuracy in course if accuracy >= goal), None) for method, course in courses.items()
    }
    told = [f"{first[m]:.1f}" if first[m] is not None else "never" for m in ("full", "scl")]
    return f"| {case} | {goal:.1%} | {told[0]} | {told[1]} | {courses['scl'][-1][1]:.1%} |"


def model_of(
    data: tightframe.ImageSplits, backbone: tightframe.Backbone, method: str, chosen: str | None
) -> TunableModel:
    plan = tightframe.TrainConfig(recipe="paper")
    made = TunableModel(backbone, METHODS[method], chosen, len(data.classes), "auto", plan.align, plan.skip_scale)
    if chosen:
        features = tightframe.Workspace().features(backbone, data.train, made.read)
        made.neck.rescale([torch.from_numpy(features[name]) for name in made.read])
    on_device(made, CPU)
    return made


def everything(data: tightframe.ImageSplits) -> Split:
    indices = np.arange(len(data.train))
    return Split(data.train.labels, indices, indices[:0], len(data.classes))


def recipe(epochs: int, rate: float = 0.01) -> Recipe:
    return Recipe(rate, 1e-4, epochs, 32)


def bare_epoch(part: Trainable, inputs: Inputs, data: tightframe.ImageSplits, precision: str) -> float:
    labels = torch.from_numpy(data.train.labels)
    batches = list(inputs.batches(range(len(data.train)), 32))
    part.train(True)
    times = []
    for _ in range(MEASURED + 1):
        begun = time.perf_counter()
        for indices, batch in batches:
            with autocast(CPU, precision):
                loss = functional.cross_entropy(part.head(part.features(batch)).float(), labels[indices])
            loss.backward()
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))


def summed(prepared: float, seconds: float, memory: float, model: TunableModel) -> dict[str, Any]:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.changed_state().values())
    return {"prepare": prepared, "epoch": seconds, "all": prepared + EPOCHS * seconds, "memory": memory, "bytes": size}


def resident(peak: bool = False, reset: bool = False) -> float:
    """Megabytes of this process in memory: now, or at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(wanted))


if __name__ == "__main__":
    main()
