"""Golden numbers: what the project computes on small, fixed tasks, as JSON that another version is compared with.

    python tests/golden/record.py              # writes golden.json beside this file
    python tests/golden/record.py - digits/    # prints the sections whose names start so

``test_golden.py`` computes the sections again and compares. Everything that this file knows of the project stands in
the adapter below. **To port it to another version, edit the adapter only**: its functions return plain numbers under
golden's own names, and what they take and hand on (splits, backbones, tuned models) is not looked into elsewhere.

A section is a dict of groups, by how they are compared:

- ``hashes``: SHA-256 of bytes;
- ``choices``: what was chosen or counted, exactly (layers, rates, penalties, numbers of parameters);
- ``shares``: accuracies and what is made of them only;
- ``statistics``: numbers that come from features in closed form, or nearly;
- ``trained``: numbers that come from many steps (training, mixtures), or from random draws along computed directions;
- ``unstable``: numbers that rounding alone changes visibly, compared on the same machine only.

A list is compared as one vector: relative to its largest entry. Numbers that are not finite are the strings ``"inf"``,
``"-inf"`` and ``"nan"``.

The sections of ``digits/`` need nothing but the packages. Those of ``flowers5/`` and ``dtd10/`` need real images
(``data``) and models (``zoo``) in the folder that the environment variable TIGHTFRAME_SHARED names, relative to the
root of the repository, ``../shared`` unless given; without them they are left out, which is said.

``changed.json`` lists the entries whose values were recorded anew since, by the reason why they changed; all others are
of the tree before it was rebuilt and stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

# ======================================================================================================================
# The adapter: all that is known of the project. Names on the left of a mapping are golden's own and stay as they are;
# names on the right are the project's.
# ======================================================================================================================
import tightframe
from tightframe.metrics.folds import Folds
from tightframe.probes.knn import neighbors_accuracy, neighbors_predict
from tightframe.probes.linear import cross_validated_center, cross_validated_lda, cross_validated_ridge
from tightframe.probes.logistic import cross_validated_logistic
from tightframe.scores.agreement import agreement

PENULTIMATE = "penultimate"
OUTPUT = "output"
RUNNING: dict[str, Any] = {"device": "cpu", "precision": "float32"}
COLLAPSE = {
    name: name for name in ("nc1", "nc1_ratio", "cdnv", "numerical_rank", "vci", "nc2_norm", "nc2_angle", "nc2_etf")
}
CORRECTED = {name: name for name in ("nc1", "cdnv", "vci")}
SCORES = {
    name: name
    for name in (
        *("h_score", "h_score_shrunk", "logme", "gbc", "gbc_of_features"),
        *("parc", "sfda", "transrate", "leep", "nce", "nleep"),
    )
}
METHODS = {name: name for name in ("linear", "layer", "scl", "full", "bitfit", "norm", "lp-ft", "lora")}  # of tuning
PLAN = {
    "epochs": "epochs",
    "search_epochs": "search_epochs",
    "batch_size": "batch_size",
    "lrs": "lr",
    "weight_decays": "weight_decay",
    "augment": "augment",
    "views": "views",
    "label_smoothing": "label_smoothing",
    "mixup_alpha": "mixup_alpha",
    "class_weights": "class_weights",
    "grad_accum_steps": "grad_accum_steps",
    "ema_decay": "ema_decay",
    "patience": "patience",
    "skip_align": "align",
    "skip_scale": "skip_scale",
}
PRETRAINING = {
    "arch": "arch",
    "loss": "loss",
    "projector": "projector",
    "augment": "augment",
    "epochs": "epochs",
    "lr": "lr",
    "batch_size": "batch_size",
    "image_size": "input_size",
    "arguments": "arguments",
}
PROBES = {"ridge": "ridge", "logistic": "logistic", "center": "center", "knn": "knn"}  # in the rows of ``layers``
FEWSHOT = {"logistic": "logistic", "ridge": "ridge", "cosine": "cosine", "center": "center"}
RANK_SHARES = {
    "probe_accuracy": "probe_accuracy",
    "probe_low": "probe_low",
    "probe_high": "probe_high",
    "lda_accuracy": "lda_accuracy",
    "knn_accuracy": "knn_accuracy",
    "test_accuracy": "test_accuracy",
}
RANK_CHOICES = {"parameters": "parameters", "macs": "macs", "dimension": "dimension"}
AGREEMENT = {name: name for name in ("weighted_tau", "tau", "spearman", "pearson", "regret")}


def workspace() -> Any:
    """Where networks run: a new one each time, so that nothing is remembered."""
    return tightframe.Workspace(**RUNNING)


def digits(classes: str = "0-9", *, per_class: int | None = None, test_share: float = 0.25) -> Any:
    """Splits of the built-in digits ``classes``, with ``per_class`` training images a class, or all."""
    return tightframe.load_images(f"digits:{classes}", max_per_class=per_class, test_share=test_share, seed=0)


def image_folder(path: Path, *, per_class: int) -> Any:
    """Splits of a folder with ``train`` and ``test``, with ``per_class`` training images a class."""
    return tightframe.load_images(path, max_per_class=per_class, seed=0)


def train_part(data: Any) -> Any:
    """The training split."""
    return data.train


def test_part(data: Any) -> Any:
    """The test split."""
    return data.test


def labels_of(part: Any) -> np.ndarray:
    """Labels (n,) of a split."""
    return np.asarray(part.labels)


def image_of(part: Any, index: int) -> np.ndarray:
    """Bytes (height, width, 3) of one image of a split."""
    return np.asarray(part[index])


def class_count(part: Any) -> int:
    """Number of classes of a split."""
    return len(part.classes)


def model_input(backbone: Any, part: Any, indices: Sequence[int]) -> np.ndarray:
    """Bytes (n, 3, height, width) of images, resized and cropped as the network wants them."""
    return torch.stack([backbone.preprocessing.pixels(part[index]) for index in indices]).numpy()


def backbone_from(file: Path, function: str, argument: str, image_size: int | None = None) -> Any:
    """The network that ``function`` in ``file`` returns for ``argument``, frozen."""
    return tightframe.load_backbone(f"{file}:{function}:{argument}", input_size=image_size)


def backbone_choices(backbone: Any) -> dict[str, Any]:
    """What was found of a network: layers in order, with widths and numbers of parameters."""
    layers = [*backbone.layers, backbone.penultimate]
    return {
        "layers": [layer.name for layer in layers],
        "dimensions": [layer.dimension for layer in layers],
        "parameters": [layer.parameters for layer in layers],
        "all_parameters": backbone.parameters,
        "macs": backbone.macs,
    }


def features_of(backbone: Any, part: Any) -> dict[str, np.ndarray]:
    """Pooled features (n, d) of a split by layer, the last but one ``PENULTIMATE``, the last logits, ``OUTPUT``."""
    layers = [*(layer.name for layer in backbone.layers), PENULTIMATE, OUTPUT]
    found = workspace().features(backbone, part, layers)
    return {name: found[name] for name in layers}


def collapse(
    features: np.ndarray, labels: np.ndarray, classes: int, weighting: str = "class", head: Any = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Collapse metrics, NC3 and NC4 with a ``head`` (weight, bias); and what was counted on the way."""
    moments = tightframe.ClassMoments.from_features(features, labels, classes)
    linear = None if head is None else tightframe.Head(torch.from_numpy(head[0]), torch.from_numpy(head[1]))
    found = tightframe.collapse_metrics(
        moments, linear, features=None if head is None else features, weighting=weighting
    )
    named = COLLAPSE if head is None else COLLAPSE | {"nc3": "nc3", "nc4": "nc4"}
    counted = {"rank_between": found.rank_between, "samples_per_class": list(found.samples_per_class)}
    return {ours: found[theirs] for ours, theirs in named.items()}, counted


def collapse_corrected(features: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """NC1, CDNV and VCI corrected for few samples; NaN where these samples cannot tell."""
    moments = tightframe.ClassMoments.from_features(features, labels, classes)
    found = tightframe.collapse_metrics(moments, correct=True)
    return {ours: found[theirs] for ours, theirs in CORRECTED.items()}


def scores_of(
    features: np.ndarray, labels: np.ndarray, classes: int, source: np.ndarray | None = None, slow: bool = False
) -> dict[str, float]:
    """Transferability scores, those of ``source`` probabilities where given, the slow one where asked for."""
    found = tightframe.transferability(features, labels, classes=classes, source=source)
    if slow:
        found |= tightframe.transferability(features, labels, classes=classes, only=[SCORES["nleep"]])
    return {ours: found[theirs] for ours, theirs in SCORES.items() if theirs in found}


def probes_of(features: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, dict[str, Any]]:
    """Cross-validated probes by name: accuracy with interval, what was chosen, predictions, head, and losses."""
    folds = Folds.of(features, labels, classes, seed=0)
    logistic = cross_validated_logistic(folds)
    ridge = cross_validated_ridge(folds)
    knn = neighbors_accuracy(features, labels, classes)
    found = {
        "ridge": _probe(ridge) | {"losses": [ridge.squared_error]},
        "lda": _probe(cross_validated_lda(folds)),
        "logistic": _probe(logistic.result) | {"losses": [logistic.log_loss, logistic.calibration_error]},
        "center": _probe(cross_validated_center(folds)),
    }
    fitted = neighbors_predict(features, labels, features, classes).numpy()
    kept = {"accuracy": knn.accuracy, "low": knn.low, "high": knn.high, "predicted": knn.predicted, "penalty": knn.k}
    return found | {"knn": kept | {"fitted": fitted}}


def ridge_head(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (K, d) and bias (K,) of the ridge probe."""
    head = cross_validated_ridge(Folds.of(features, labels, classes, seed=0)).head
    return head.weight.numpy(), head.bias.numpy()


def _probe(result: Any) -> dict[str, Any]:
    head = (result.head.weight.numpy(), result.head.bias.numpy())
    kept = {name: getattr(result, name) for name in ("accuracy", "low", "high", "penalty", "predicted")}
    return kept | {"head": head}


def measured_layers(data: Any, backbone: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of ``measure`` by layer: ``values``, ``intervals`` and ``shares``."""
    made = {}
    for row in tightframe.measure(data, backbone, seed=0, workspace=workspace()).rows:
        values = {ours: row[theirs] for ours, theirs in COLLAPSE.items()}
        values |= {f"{ours}_corrected": row[f"{theirs}_corrected"] for ours, theirs in CORRECTED.items()}
        ends = {f"{ours}_{end}": row[f"{theirs}_{end}"] for ours, theirs in COLLAPSE.items() for end in ("low", "high")}
        for ours, theirs in CORRECTED.items():
            for end in ("low", "high"):
                if f"{theirs}_corrected_{end}" in row:
                    ends[f"{ours}_corrected_{end}"] = row[f"{theirs}_corrected_{end}"]
        shares = {name: row[name] for name in ("probe_accuracy", "probe_low", "probe_high")}
        made[row["layer"]] = {"values": values, "intervals": ends, "shares": shares}
    return made


def probed_layers(data: Any, backbone: Any) -> tuple[str, dict[str, dict[str, dict[str, Any]]]]:
    """The recommended layer, and rows of ``layers`` by layer: ``values``, ``shares`` and ``choices``."""
    made, recommended = {}, ""
    for row in tightframe.layers(data, backbone, seed=0, workspace=workspace()).rows:
        recommended = row["layer"] if row["recommended"] else recommended
        shares = {
            f"{ours}_{kind}": row[f"{theirs}_{kind}"]
            for ours, theirs in PROBES.items()
            for kind in ("held_out", "train", "test", "per_class")
        }
        choices = {
            "ridge_penalty": row["ridge_penalty"],
            "logistic_strength": row["logistic_strength"],
            "knn_neighbors": row["knn_neighbors"],
        }
        values = {"nc1": row["nc1"], "logistic_calibration_error": row["logistic_calibration_error"]}
        made[row["layer"]] = {"values": values, "shares": shares, "choices": choices}
    return recommended, made


def ranked(data: Any, backbones: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of ``rank`` by network, best first: ``values``, ``shares``, ``choices``."""
    found = tightframe.rank(data, list(backbones.values()), seed=0, workspace=workspace())
    names, made = list(backbones), {}
    for row in found.rows:
        values = {ours: row[theirs] for ours, theirs in (SCORES | CORRECTED).items() if theirs in row}
        made[names[row["given"]]] = {
            "values": values | {"ncti": row["ncti"]},
            "shares": {ours: row[theirs] for ours, theirs in RANK_SHARES.items()},
            "choices": {ours: row[theirs] for ours, theirs in RANK_CHOICES.items()},
        }
    return made


def agreement_of(scores: np.ndarray, accuracies: np.ndarray) -> dict[str, list[float]]:
    """How well scores (m,) of networks rank them, by statistic: value and the ends of its interval."""
    found = agreement(scores, accuracies, 0)
    return {ours: [found[theirs].value, found[theirs].low, found[theirs].high] for ours, theirs in AGREEMENT.items()}


def few_shot(data: Any, backbone: Any, *, ways: int, shots: Sequence[int], episodes: int) -> dict[str, Any]:
    """Mean accuracy and margin by shots and classifier, as ``1/ridge``; and NC1 beside, plain and corrected."""
    rows = tightframe.fewshot(
        data, backbone, ways=ways, shots=shots, episodes=episodes, seed=0, workspace=workspace()
    ).rows
    ours = {theirs: name for name, theirs in FEWSHOT.items()}
    return {
        "shares": {f"{row['shots']}/{ours[row['classifier']]}": [row["accuracy"], row["margin"]] for row in rows},
        "values": {"nc1": rows[0]["nc1"], "nc1_corrected": rows[0]["nc1_corrected"]},
    }


def tuned_model(data: Any, backbone: Any, method: str, block: str = "auto", **plan: Any) -> Any:
    """``backbone`` tuned on ``data`` by ``method`` of ``METHODS``, with settings under the names of ``PLAN``."""
    settings = {PLAN[name]: value for name, value in plan.items()}
    if "class_weights" in settings:
        settings["class_weights"] = "balanced" if settings["class_weights"] else "none"
    config = tightframe.TrainConfig(seed=0, folds=0, recipe="paper", **settings)
    return tightframe.tune(data, backbone, method=METHODS[method], block=block, config=config, workspace=workspace())


def trained_tensors(tuned: Any) -> dict[str, np.ndarray]:
    """All tensors that were trained, by the names under which they are saved."""
    with tempfile.TemporaryDirectory() as folder:
        tuned.save(folder)
        (trained,) = (path for path in Path(folder).glob("*.safetensors") if path.name != "training_set.safetensors")
        return load_file(trained)


def logits_of(tuned: Any, part: Any) -> np.ndarray:
    """Logits (n, K) of a split."""
    return tuned.logits_and_features(part, device="cpu")[0].numpy()


def tuning_facts(tuned: Any) -> dict[str, dict[str, Any]]:
    """What tuning says of itself: ``choices``, ``shares``, ``values``, and losses, in order, in ``courses``."""
    told, phases = tuned.metrics, ("block", "search", "final")
    rows = {phase: [row for row in tuned.history if row["phase"] == phase] for phase in phases}
    courses = {
        f"{phase}_{name}": [row[name] for row in found]
        for phase, found in rows.items()
        for name in ("train_loss", "validation_loss")
        if found and found[0].get(name) is not None
    }
    return {
        "choices": {
            "block": told["block"],
            "lr": told["lr"],
            "weight_decay": told["weight_decay"],
            "epochs": told["epochs"],
            "trainable_parameters": told["trainable_parameters"],
            "all_parameters": told["all_parameters"],
            "blocks_tried": [row["block"] for row in rows["block"]],
            "rows": {phase: len(found) for phase, found in rows.items()},
        },
        "shares": {name: told[name] for name in ("train_accuracy", "test_accuracy", "test_low", "test_high")},
        "values": {"nc1": told["nc1"]},
        "courses": courses,
    }


def evaluated(tuned: Any, data: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Shares and values that ``evaluate`` gives for the test images."""
    row = tightframe.evaluate(tuned, data, device="cpu").rows[0]
    shares = {name: row[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy")}
    return shares, {name: row[name] for name in ("calibration_error", "log_loss")}


def export_to_onnx(tuned: Any, path: Path, data: Any) -> None:
    """Write an ONNX file that takes ``pixels``, bytes, and gives ``probabilities`` and ``logits``."""
    tightframe.export_onnx(tuned, path, data)


def pretrained_model(data: Any, folder: Path, **settings: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Weights of a network trained from scratch, settings under the names of ``PRETRAINING``; and a row an epoch."""
    how = tightframe.Pretraining(seed=0, **{PRETRAINING[name]: value for name, value in settings.items()})
    rows = tightframe.pretrain(data, folder, how, workspace=workspace()).rows
    kept = ("loss", "accuracy", "nc1", "nc2", "nc3")
    theirs = {f"test_{name}": f"test_{name}" for name in kept}
    theirs |= {f"train_{name}": f"train_{name}" if name in ("loss", "accuracy") else name for name in kept}
    told = [{ours: row[name] for ours, name in theirs.items()} for row in rows]
    return load_file(folder / "model.safetensors"), told


# ======================================================================================================================
# The end of the adapter. Nothing below knows the project.
# ======================================================================================================================

Group = dict[str, Any]
Section = dict[str, Group]
GROUPS = ("hashes", "choices", "shares", "statistics", "trained", "unstable")
HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
NETWORKS = ("conv", "wide", "vit")
SETS = {"flowers5": ("mobilenetv1_025", "squeezenet1_1"), "dtd10": ("mobilenetv1_025", "tiny_darknet")}
RANKED = ("mobilenetv1_025", "squeezenet1_1", "tiny_darknet")
SET_SIDE, SET_PER_CLASS = 64, 10


def shared_folder() -> Path | None:
    """Where real images and models are, if they are."""
    folder = (HERE.parents[1] / os.environ.get("TIGHTFRAME_SHARED", "../shared")).resolve()
    there = (folder / "zoo" / "zoo.py").is_file() and all((folder / "data" / name).is_dir() for name in SETS)
    return folder if there else None


def machine() -> dict[str, Any]:
    """What decides the last bits of a number (``decisive``), and other versions, for a reader."""
    packages = ("numpy", "scipy", "scikit-learn", "timm", "peft", "pillow", "onnxruntime")
    return {
        "decisive": {
            "torch": torch.__version__,
            "cpu": _processor(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {package: version(package) for package in packages},
    }


def _processor() -> str:
    """Name, family and model of the processor, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return "unknown"
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{told.get('model name', '?')}, family {told.get('cpu family', '?')}, model {told.get('model', '?')}"


@contextmanager
def one_core() -> Any:
    """One thread in PyTorch, BLAS and LAPACK: sums are made in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------- numbers made of arrays


def sha(*arrays: np.ndarray) -> str:
    """SHA-256 of the bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def sha_of_named(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names and bytes, names sorted."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def sketch(array: np.ndarray) -> list[float]:
    """Norm, and projection on a vector of standard normal numbers drawn with a fixed seed."""
    flat = np.asarray(array, np.float64).ravel()
    towards = np.random.default_rng(0).standard_normal(flat.size)
    return [math.sqrt(math.fsum(flat * flat)), math.fsum(flat * towards)]


def flat(nested: Mapping[str, Any], above: str = "") -> Group:
    """Nested dicts as one, keys joined by ``/``."""
    made: Group = {}
    for key, value in nested.items():
        name = f"{above}/{key}" if above else str(key)
        made |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return made


def plain(value: Any) -> Any:
    """``value`` as strict JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else repr(number)


def section(**groups: Mapping[str, Any]) -> Section:
    """A section of flat groups."""
    unknown = set(groups) - set(GROUPS)
    if unknown:
        raise ValueError(f"no group {unknown}; choose of {GROUPS}")
    return {name: plain(flat(groups[name])) for name in GROUPS if groups.get(name)}


def settled(unstable: bool, **groups: Mapping[str, Any]) -> Section:
    """A section of groups, of which, where the whole is ``unstable``, all numbers are."""
    if not unstable:
        return section(**groups)
    moved = {"shares": groups["shares"], **groups["trained"]}
    return section(hashes=groups["hashes"], choices=groups["choices"], unstable=moved)


def without_null_direction(made: Section, part: str) -> Section:
    """The section with what rounding decides of the entries below ``part`` among ``unstable``.

    Layer norm puts features into a hyperplane, but for rounding, and these numbers look at all directions alike.
    """
    moved = {
        key: value
        for key, value in made["statistics"].items()
        if key.startswith(f"{part}/") and key.rpartition("/")[2] in ("vci", "h_score", "parc")
    }
    kept = {key: value for key, value in made["statistics"].items() if key not in moved}
    return made | {"statistics": kept, **({"unstable": made.get("unstable", {}) | moved} if moved else {})}


# ------------------------------------------------------------------------------- what sections share, made once


@cache
def network(name: str) -> Any:
    """One of the networks of ``networks.py``."""
    return backbone_from(HERE / "networks.py", "make", name)


@cache
def zoo_network(name: str) -> Any:
    """A pretrained network, for small images."""
    folder = shared_folder()
    assert folder is not None, "sections that need it are left out"
    return backbone_from(folder / "zoo" / "zoo.py", "build", name, SET_SIDE)


@cache
def few_digits() -> Any:
    """The digits 5 to 9, twelve training images a class and some 90 for testing."""
    return digits("5-9", per_class=12, test_share=0.1)


@cache
def some_digits() -> Any:
    """All ten digits, 20 training images a class: as many as a few layers are wide, and more than others."""
    return digits(per_class=20, test_share=0.1)


@cache
def image_set(name: str) -> Any:
    """A set of real images."""
    folder = shared_folder()
    assert folder is not None, "sections that need it are left out"
    return image_folder(folder / "data" / name, per_class=SET_PER_CLASS)


FEATURES: dict[tuple[int, int], dict[str, np.ndarray]] = {}


def features(backbone: Any, part: Any) -> dict[str, np.ndarray]:
    """``features_of``, made once for objects that live as long as the caches above."""
    key = (id(backbone), id(part))
    if key not in FEATURES:
        FEATURES[key] = features_of(backbone, part)
    return FEATURES[key]


# -------------------------------------------------------------------------------------------------------- sections


def data_section(data: Any, backbone: Any) -> Section:
    """Which images are where, and how they reach a network."""
    train, test = train_part(data), test_part(data)
    chosen = range(0, len(train), max(1, len(train) // 8))
    return section(
        choices={
            "classes": class_count(train),
            "train_labels": np.bincount(labels_of(train)).tolist(),
            "test_labels": np.bincount(labels_of(test)).tolist(),
        },
        hashes={
            "labels": sha(labels_of(train).astype("<i8"), labels_of(test).astype("<i8")),
            "images": sha(*(image_of(train, index) for index in chosen)),
            "test_images": sha(*(image_of(test, index) for index in range(0, len(test), max(1, len(test) // 8)))),
            "model_input": sha(model_input(backbone, train, chosen)),
        },
    )


def features_section(data: Any, backbone: Any) -> Section:
    """Layers and what is read there."""
    found = features(backbone, train_part(data))
    return section(
        choices=backbone_choices(backbone),
        hashes={name: sha(array) for name, array in found.items()},
        statistics={name: sketch(array) for name, array in found.items()},
    )


def collapse_section(data: Any, backbone: Any, layers: Sequence[str] | None = None) -> Section:
    """Every collapse metric, plain (both weightings), with a head, and corrected, by layer."""
    part = train_part(data)
    labels, classes, statistics, choices = labels_of(part), class_count(part), Group(), Group()
    for name in layers or _layers(backbone, part):
        read = features(backbone, part)[name]
        plainly, choices[name] = collapse(read, labels, classes)
        unequal = (labels % 2 == 0) | (np.arange(len(labels)) % 3 > 0)
        by_sample, _ = collapse(read[unequal], labels[unequal], classes, "sample")
        with_head, _ = collapse(read, labels, classes, head=ridge_head(read, labels, classes))
        statistics[name] = {
            "plain": plainly,
            "by_sample": by_sample,
            "head": {metric: with_head[metric] for metric in ("nc3", "nc4")},
            "corrected": collapse_corrected(read, labels, classes),
        }
    return section(choices=choices, statistics=statistics)


def _layers(backbone: Any, part: Any) -> list[str]:
    return [name for name in features(backbone, part) if name != OUTPUT]


def scores_section(data: Any, backbone: Any, layers: Sequence[str] | None = None) -> Section:
    """Every transferability score by layer; those of a network's own output, and the slow one, once."""
    part = train_part(data)
    read, labels, classes = features(backbone, part), labels_of(part), class_count(part)
    logits = read[OUTPUT].astype(np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    source = odds / odds.sum(1, keepdims=True)
    found = {name: scores_of(read[name], labels, classes) for name in layers or _layers(backbone, part)}
    found[PENULTIMATE] = scores_of(read[PENULTIMATE], labels, classes, source, slow=True)
    mixture = {"nleep": found[PENULTIMATE].pop("nleep")}
    return section(statistics=found, trained={PENULTIMATE: mixture})


def probes_section(data: Any, backbone: Any, layers: Sequence[str] | None = None) -> Section:
    """Every probe by layer."""
    part, groups = train_part(data), {name: Group() for name in GROUPS}
    for name in layers or _layers(backbone, part):
        _add_probes(groups, name, features(backbone, part)[name], labels_of(part), class_count(part))
    return section(**groups)


def _add_probes(groups: dict[str, Group], name: str, read: np.ndarray, labels: np.ndarray, classes: int) -> None:
    for probe, result in probes_of(read, labels, classes).items():
        key = f"{name}/{probe}"
        groups["shares"][key] = {end: result[end] for end in ("accuracy", "low", "high")}
        groups["choices"][key] = {"penalty": result["penalty"]}
        said = [result[kind].astype("<i8") for kind in ("predicted", "fitted") if kind in result]
        groups["hashes"][key] = {"predicted": sha(*said)}
        if "head" in result:
            groups["trained"][key] = {"weight": sketch(result["head"][0]), "bias": sketch(result["head"][1])}
        if "losses" in result:
            groups["statistics"][key] = {"losses": result["losses"]}


def _made_up() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gaussian classes: collapsed, spread out, and in more dimensions than there are samples."""
    luck, found = np.random.default_rng(0), {}
    for name, classes, count, width, apart in (
        ("collapsed", 5, 40, 12, 4.0),
        ("spread", 6, 50, 20, 0.6),
        ("wide", 4, 12, 80, 0.8),
    ):
        labels = np.arange(classes).repeat(count)
        means, scale = apart * luck.standard_normal((classes, width)) + 3, np.linspace(0.3, 1.5, width)
        noise = scale * luck.standard_normal((len(labels), width))
        found[name] = (means[labels] + noise).astype(np.float32), labels
    return found


def made_up_section() -> Section:
    """Metrics, scores and probes without any network."""
    statistics, groups = Group(), {name: Group() for name in GROUPS}
    for name, (given, labels) in _made_up().items():
        classes = int(labels.max()) + 1
        statistics[name] = {
            "plain": collapse(given, labels, classes)[0],
            "corrected": collapse_corrected(given, labels, classes),
            "scores": scores_of(given, labels, classes),
        }
        _add_probes(groups, name, given, labels, classes)
    return section(**groups | {"statistics": groups["statistics"] | statistics})


def measure_section(data: Any, backbone: Any) -> Section:
    """``measure``, with its intervals."""
    rows = measured_layers(data, backbone)
    return section(
        choices={"layers": list(rows)},
        shares={name: row["shares"] for name, row in rows.items()},
        statistics={name: row["values"] for name, row in rows.items()},
        trained={name: row["intervals"] for name, row in rows.items()},
    )


def layers_section(data: Any, backbone: Any) -> Section:
    """``layers``, with the layer that it recommends."""
    recommended, rows = probed_layers(data, backbone)
    return section(
        choices={"recommended": recommended, **{name: row["choices"] for name, row in rows.items()}},
        shares={name: row["shares"] for name, row in rows.items()},
        statistics={name: row["values"] for name, row in rows.items()},
    )


def rank_section(data: Any, backbones: Mapping[str, Any]) -> Section:
    """``rank``."""
    rows = ranked(data, backbones)
    return section(
        choices={name: row["choices"] for name, row in rows.items()},
        shares={name: row["shares"] for name, row in rows.items()},
        statistics={name: row["values"] for name, row in rows.items()},
    )


def agreement_section() -> Section:
    """How well a score ranks eight networks, two of which it cannot tell apart."""
    scores = np.array([0.31, 0.52, 0.47, 0.47, 0.66, 0.58, 0.71, 0.69])
    accuracies = np.array([0.52, 0.61, 0.64, 0.58, 0.63, 0.72, 0.77, 0.74])
    return section(statistics=agreement_of(scores, accuracies))


def fewshot_section(data: Any, backbone: Any) -> Section:
    """``fewshot``."""
    found = few_shot(data, backbone, ways=4, shots=(1, 5), episodes=60)
    return section(shares=found["shares"], statistics=found["values"])


def tuning_section(data: Any, tuned: Any, unstable: bool = False) -> Section:
    """A tuned model: what was chosen, what was trained, what it says of test images."""
    facts, tensors, logits = tuning_facts(tuned), trained_tensors(tuned), logits_of(tuned, test_part(data))
    shares, values = evaluated(tuned, data)
    return settled(
        unstable,
        hashes={"tensors": sha_of_named(tensors), "logits": sha(logits)},
        choices=facts["choices"] | {"tensors": sorted(tensors)},
        shares=facts["shares"] | {"evaluated": shares},
        trained={
            "tensors": {name: sketch(tensor) for name, tensor in tensors.items()},
            "logits": {
                "sketch": sketch(logits),
                "of_first": logits[0].tolist(),
                "of_classes": logits.mean(0, np.float64).tolist(),
                "spread": logits.std(0, np.float64).tolist(),
            },
            "evaluated": values,
            **facts["values"],
            **facts["courses"],
        },
    )


SHORT = {"epochs": 6, "search_epochs": 3}
ONE_RATE = {"epochs": 4, "lrs": (0.02,), "weight_decays": (1e-4,)}
UNSTABLE = ("full", "lp-ft")
"""Cases in which the last bits of a processor's kernels grow, within a few steps, to what anyone can see."""
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    **{method: ("conv", method, "auto", SHORT) for method in METHODS},
    "scl, flipped views": ("conv", "scl", "layer2.0", ONE_RATE | {"augment": "flip", "views": 3}),
    "scl, cropped views": ("conv", "scl", "layer2.0", ONE_RATE | {"augment": "crop", "views": 2}),
    "scl, mixup, smoothing, average": (
        "conv",
        "scl",
        "layer2.0",
        ONE_RATE | {"mixup_alpha": 0.4, "label_smoothing": 0.1, "ema_decay": 0.8},
    ),
    "scl, patience, class weights, parts of batches": (
        "conv",
        "scl",
        "layer2.0",
        ONE_RATE | {"epochs": 8, "patience": 2, "class_weights": True, "grad_accum_steps": 2},
    ),
    "scl, concatenated, scaled": (
        "conv",
        "scl",
        "layer2.0",
        ONE_RATE | {"skip_align": "concat", "skip_scale": "spread"},
    ),
    "scl, projected": ("conv", "scl", "layer2.0", ONE_RATE | {"skip_align": "project"}),
    "full, randaugment": ("conv", "full", "auto", ONE_RATE | {"augment": "randaugment"}),
    "linear, flipped views": ("conv", "linear", "auto", ONE_RATE | {"augment": "flip", "views": 2}),
    "scl of a transformer": ("vit", "scl", "auto", {"epochs": 6, "search_epochs": 1, "lrs": (1e-2, 1e-3)}),
    "lora of a transformer": ("vit", "lora", "auto", ONE_RATE),
    "norm of a transformer": ("vit", "norm", "auto", ONE_RATE),
}
"""Tunings of digits: network, method, block, settings."""


@cache
def tuned_digits(case: str) -> Any:
    """A tuned model of ``CASES``."""
    name, method, block, settings = CASES[case]
    return tuned_model(few_digits(), network(name), method, block, **settings)


@cache
def tuned_images(data: str, name: str, method: str) -> Any:
    """A pretrained model tuned on real images."""
    return tuned_model(image_set(data), zoo_network(name), method, epochs=3, search_epochs=1, lrs=(0.02, 0.005))


def onnx_section() -> Section:
    """What the exported file of a model says of eight images."""
    import onnxruntime

    data, tuned = few_digits(), tuned_digits("scl")
    chosen = list(range(0, 8 * 9, 9))
    with tempfile.TemporaryDirectory() as folder:
        export_to_onnx(tuned, Path(folder) / "model.onnx", data)
        content = (Path(folder) / "model.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    pixels = model_input(network("conv"), test_part(data), chosen)
    probabilities, logits = session.run(["probabilities", "logits"], {"pixels": pixels})
    return section(
        choices={"predicted": probabilities.argmax(1).tolist()},
        trained={"probabilities": probabilities.ravel().tolist(), "logits": logits.ravel().tolist()},
    )


PRETRAIN = {
    "arch": "resnet18",
    "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "epochs": 2,
    "batch_size": 32,
    "image_size": 32,
}


def pretrain_section(unstable: bool = False, **settings: Any) -> Section:
    """A network made from random weights."""
    with tempfile.TemporaryDirectory() as folder:
        weights, rows = pretrained_model(
            digits("0-4", per_class=40, test_share=0.2), Path(folder) / "made", **PRETRAIN, **settings
        )
    told = {f"epoch {place + 1}": row for place, row in enumerate(rows)}
    shares = {
        f"{epoch}/{name}": row.pop(name) for epoch, row in told.items() for name in list(row) if "accuracy" in name
    }
    return settled(
        unstable,
        hashes={"weights": sha_of_named(weights)},
        choices={"tensors": sorted(weights)},
        shares=shares,
        trained={"weights": {name: sketch(tensor) for name, tensor in weights.items()}, **told},
    )


def _on_digits() -> dict[str, Callable[[], Section]]:
    made: dict[str, Callable[[], Section]] = {"data": lambda: data_section(some_digits(), network("conv"))}
    made["made-up features"] = made_up_section
    made["few data"] = lambda: data_section(few_digits(), network("vit"))
    for name in ("conv", "shallow vit"):
        for part, compute in {
            "features": features_section,
            "collapse": collapse_section,
            "scores": scores_section,
            "probes": probes_section,
            "measure": measure_section,
            "layers": layers_section,
        }.items():
            made[f"{part} of {name}"] = partial(_of_network, compute, name)
    made["rank"] = lambda: without_null_direction(
        rank_section(few_digits(), {name: network(name) for name in NETWORKS}), "vit"
    )
    made["agreement"] = agreement_section
    made["fewshot"] = lambda: fewshot_section(some_digits(), network("conv"))
    for case in CASES:
        made[f"tune: {case}"] = partial(_of_case, case)
    made["onnx"] = onnx_section
    made["pretrain, cross-entropy"] = partial(pretrain_section, loss="cross-entropy", lr=0.05)
    made["pretrain, supcon"] = partial(
        pretrain_section, loss="supcon", lr=0.05, projector=1, augment=0.5, unstable=True
    )
    return made


def _of_network(compute: Callable[[Any, Any], Section], name: str) -> Section:
    made = compute(some_digits(), network(name))
    return without_null_direction(made, PENULTIMATE) if "vit" in name else made


def _of_case(case: str) -> Section:
    return tuning_section(few_digits(), tuned_digits(case), case in UNSTABLE)


def _on_images(data: str) -> dict[str, Callable[[], Section]]:
    networks, made = SETS[data], dict[str, Callable[[], Section]]()
    made["data"] = lambda: data_section(image_set(data), zoo_network(networks[0]))
    for name in networks:
        made[f"features of {name}"] = lambda name=name: features_section(image_set(data), zoo_network(name))
        for part, compute in {
            "collapse": collapse_section,
            "scores": scores_section,
            "probes": probes_section,
        }.items():
            made[f"{part} of {name}"] = partial(_of_images, compute, data, name)
    if data == "flowers5":
        made[f"measure of {networks[0]}"] = lambda: measure_section(image_set(data), zoo_network(networks[0]))
    made["rank"] = lambda: rank_section(image_set(data), {name: zoo_network(name) for name in RANKED})
    for name, method in zip(networks, ("scl", "linear"), strict=True):
        made[f"tune: {method}"] = partial(_of_tuned_images, data, name, method)
    return made


def _of_images(compute: Callable[..., Section], data: str, name: str) -> Section:
    return compute(image_set(data), zoo_network(name), [PENULTIMATE])


def _of_tuned_images(data: str, name: str, method: str) -> Section:
    return tuning_section(image_set(data), tuned_images(data, name, method))


SECTIONS: dict[str, Callable[[], Section]] = {
    f"{data}/{name}": compute
    for data, made in {"digits": _on_digits(), **{data: _on_images(data) for data in SETS}}.items()
    for name, compute in made.items()
}
"""Every section by name."""


def needs_shared(name: str) -> bool:
    """Whether a section needs real images and models."""
    return name.partition("/")[0] in SETS


def compute(name: str) -> Section:
    """One section."""
    with one_core():
        return SECTIONS[name]()


def record(wanted: Iterable[str], say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Machine and sections."""
    found = {}
    for name in wanted:
        if needs_shared(name) and shared_folder() is None:
            say(f"left out, no real images and models (TIGHTFRAME_SHARED): {name}")
            continue
        found[name] = compute(name)
    return {"machine": machine(), "sections": found}


def written(made: Mapping[str, Any]) -> str:
    """JSON with a line an entry, for diffs to be read."""
    line = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    sections = [
        f"{line(name)}: {{\n"
        + ",\n".join(f"  {line(group)}: {_block(found, line)}" for group, found in groups.items())
        + "\n }"
        for name, groups in made["sections"].items()
    ]
    return f'{{\n"machine": {line(made["machine"])},\n"sections": {{\n ' + ",\n ".join(sections) + "\n}}\n"


def _block(found: Group, line: Callable[[Any], str]) -> str:
    return "{\n" + ",\n".join(f"   {line(key)}: {line(value)}" for key, value in found.items()) + "\n  }"


def main(out: str = str(GOLDEN), start: str = "") -> None:
    """Record the sections whose names begin with ``start`` into the file ``out``; ``-`` prints."""
    made = record([name for name in SECTIONS if name.startswith(start)], lambda line: print(line, file=sys.stderr))
    if out == "-":
        print(written(made), end="")
    else:
        Path(out).write_text(written(made), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
