"""Which architectures work: measured, tuned, saved, loaded and exported, one small model of every family.

    python benchmarks/architectures.py [--only PATTERN] [--without-export] [--record FILE]
    python benchmarks/architectures.py --list    # the smallest member of each of timm's families, by its registry

All weights are random. Of timm and torchvision it is the member with the fewest parameters of each module (timm's
models named test_ are left out); transformers and open_clip are given small configurations. 24 images, at the smallest
size that each model takes. Networks run one after the other in a process of their own, whose memory is noted after
each. Results go to FILE, a line a model; models that it has are not run again. The table is printed at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import platform
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tightframe import TrainConfig, Tuned, load_backbone, load_images, load_tuned, tune
from tightframe.backbone import PENULTIMATE, Backbone, Layer
from tightframe.deploy.export import export_onnx
from tightframe.errors import TightframeError
from tightframe.features.pixels import Pixels
from tightframe.features.workspace import Workspace
from tightframe.images import Images
from tightframe.tuning.replay import Suffix

TIMM = [
    "beit_base_patch16_224",
    "halonet_h1",
    "mobileone_s1",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_zepto_rms",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "mobilenetv2_035",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "jx_nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "resnet10t",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window16_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vit_srelpos_small_patch16_224",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
    "lambda_resnet26t",
]
TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
]
SHALLOW = [
    "beit_base_patch16_224",
    "deepseek_vit_412m",
    "gemma4_vit_167m",
    "naflexvit_base_patch16_parfac_gap",
    "qwen3_vit_88m",
    "samvit_base_patch16_224",
]
"""Transformers without a small member, of which three blocks are built."""
VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
VIT |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
MAPS = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "num_labels": 5}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "BeitForImageClassification": ("BeitConfig", VIT | {"out_indices": [1, 2, 3]}, 32),
    "ConvNextForImageClassification": ("ConvNextConfig", MAPS, 64),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", MAPS, 64),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", VIT, 32),
    "Dinov2ForImageClassification": ("Dinov2Config", VIT, 32),
    "EfficientNetForImageClassification": (
        "EfficientNetConfig",
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "num_labels": 5},
        64,
    ),
    "LevitForImageClassification": (
        "LevitConfig",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1]}
        | {"key_dim": [8, 8, 8], "num_labels": 5},
        64,
    ),
    "MobileViTForImageClassification": (
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 64]}
        | {"num_labels": 5},
        64,
    ),
    "ResNetForImageClassification": ("ResNetConfig", MAPS | {"embedding_size": 8, "layer_type": "basic"}, 64),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": VIT, "num_labels": 5}, 32),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
        | {"num_labels": 5},
        32,
    ),
    "ViTForImageClassification": ("ViTConfig", VIT, 32),
}
TOWER = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ViT": TOWER,
    "CoCa": TOWER | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    "ResNet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "ConvNeXt": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
    "SigLIP": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224},
}
SHORT = [
    "timm/mobileone_s1",
    "timm/cs3darknet_focus_s",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/levit_128s",
    "timm/mobilenetv2_035",
    "timm/mobilevit_xxs",
    "timm/pit_ti_224",
    "timm/repvit_m1",
    "timm/resnet10t",
    "timm/starnet_s050",
    "torchvision/squeezenet1_1",
    "torchvision/shufflenet_v2_x0_5",
    "hf/ConvNextForImageClassification",
    "hf/SiglipForImageClassification",
    "open_clip/ViT",
]
"""What tests run."""

SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 299, 331, 384)
EACH, FEW = 8, 3
"""Images of each of three classes, and how many of all are enough to compare numbers on."""
CLOSE = 1e-4
METHODS = ("discriminant", "linear", "scl", "lora")
STEPS = ("load", "blocks", "features", "logits", "alone", "cut", *METHODS, "saved", "exported")
MEASURED = ("load", "blocks", "features", "alone")
"""What a measured model has passed."""
PATIENCE = 600
"""Seconds for one model."""
BUILDER = """
import timm
def shallow(told):
    name, size = told.split("@")
    return timm.create_model(name, depth=3, img_size=int(size))
"""


def names() -> list[str]:
    """All models, by the name of their library and their own."""
    known = {"timm": TIMM, "torchvision": TORCHVISION, "hf": TRANSFORMERS, "open_clip": OPEN_CLIP}
    return [f"{library}/{name}" for library, models in known.items() for name in models]


def options(name: str, folder: Path) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """What ``load_backbone`` is given (a name, in which the size may have a place), and the sizes of images to try."""
    library, _, model = name.partition("/")
    plain = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    if library == "hf":
        import transformers

        kind, fields, side = TRANSFORMERS[model]
        config = getattr(transformers, kind)(**fields)
        config.architectures = [model]
        config.save_pretrained(folder)
        return f"hf/{folder}", {"pretrained": False, **plain}, (side,)
    if library == "open_clip":
        config = {"embed_dim": 192 if model == "SigLIP" else 24, "vision_cfg": OPEN_CLIP[model]}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        return f"open_clip/local-dir:{folder}", {"pretrained": False}, (OPEN_CLIP[model]["image_size"],)
    if model in SHALLOW:
        (folder / "shallow.py").write_text(BUILDER)
        return f"{folder / 'shallow.py'}:shallow:{model}@{{}}", {}, SIZES
    return name, {"pretrained": False}, SIZES


def loaded(name: str, folder: Path) -> Backbone:
    """The model, with images of the smallest size that it takes."""
    uri, settings, sizes = options(name, folder)
    for side in sizes:
        try:
            backbone = load_backbone(uri.format(side), **settings, input_size=side)
            with torch.inference_mode():
                finite = bool(torch.isfinite(flat(backbone.module(torch.zeros(1, 3, side, side)))).all())
            if finite:
                return backbone
        except TightframeError as error:
            last = error
    raise last


def flat(output: Any) -> torch.Tensor:
    output = output[0] if isinstance(output, (tuple, list)) else output
    return output.flatten(1)


def keep(layer: Layer, seen: dict[str, torch.Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, made: Any) -> None:
        seen[layer.name] = (made[layer.element] if isinstance(made, (tuple, list)) else made).clone()

    return hook


def check_features(backbone: Backbone, features: Any, images: torch.Tensor) -> None:
    """Features of all layers are what plain hooks see, averaged by hand."""
    seen: dict[str, Any] = {}
    modules = dict(backbone.module.named_modules())
    hooks = [modules[layer.name].register_forward_hook(keep(layer, seen)) for layer in backbone.layers]
    with torch.inference_mode():
        backbone.module(images)
    for hook in hooks:
        hook.remove()
    for layer in backbone.layers:
        value = seen[layer.name].double()
        if layer.layout == "map":
            value = value.mean((2, 3))
        elif layer.layout == "map_last":
            value = value.mean((1, 2))
        elif layer.layout == "tokens":
            by_class = backbone.token_pool == "cls" and layer.prefix_tokens
            value = value[:, 0] if by_class else value[:, layer.prefix_tokens :].mean(1)
        same(features[layer.name][:FEW], value, layer.name)


def check_logits(backbone: Backbone, features: Any, images: torch.Tensor) -> None:
    """The penultimate features through the head are the model's own logits, or one sentence says why not."""
    if backbone.notes:
        raise ValueError(backbone.notes[0])
    with torch.inference_mode():
        logits = flat(backbone.module(images))
        seen = torch.from_numpy(np.array(features[PENULTIMATE][:FEW]))
        head = backbone.module.get_submodule(backbone.head) if backbone.head else nn.Identity()
        if isinstance(head, nn.Conv2d):
            seen = seen[..., None, None]
        same(flat(head(seen)), logits, "logits")


def check_alone(backbone: Backbone, features: Any, images: Images) -> None:
    """An image alone has the features that it has among 24."""
    alone = Workspace(device="cpu", precision="float32", batch_size=1).features(backbone, images)
    for name, values in features.items():
        same(alone[name], values[:FEW], name)


def same(found: Any, wanted: Any, what: str) -> None:
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    scale = max(np.abs(wanted).max(), 1e-6)
    apart = np.abs(found - wanted).max() / scale if found.shape == wanted.shape else float("inf")
    if not apart <= CLOSE:
        raise ValueError(f"{what}: differs by {apart:.1g} of {scale:.2g}")


def check_saved(tuned: Tuned, data: Any, folder: Path) -> None:
    tuned.save(folder)
    few = data.train.subset(range(FEW))
    again = load_tuned(folder, tuned.backbone)
    same(again.logits_and_features(few)[0], tuned.logits_and_features(few)[0], tuned.model.title)


def check_exported(tuned: Tuned, data: Any, folder: Path) -> None:
    """The file's logits are the tuned model's."""
    import onnxruntime

    file = folder / "tuned.onnx"
    export_onnx(tuned, file, data.train.subset(range(FEW)))
    pixels = next(Pixels(data.train, tuned.backbone.preprocessing).batches(range(FEW), FEW))[1]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"pixels": pixels.numpy()})[0]
    same(found, tuned.logits_and_features(data.train.subset(range(FEW)))[0], "logits")


def examined(name: str, export: bool = True) -> dict[str, Any]:
    """What came of each step: "" where it worked, else one line; and figures."""
    row: dict[str, Any] = {"model": name}
    seconds: dict[str, float] = {}

    def attempt(step: str, act: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            found, row[step] = act(), ""
            return found
        except Exception as error:
            row[step] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            return None
        finally:
            seconds[step] = round(time.perf_counter() - started, 2)

    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place)
        backbone = attempt("load", partial(loaded, name, folder))
        if backbone is not None:
            data = load_images("digits:5-7", max_per_class=EACH, test_share=0.0)
            steps(attempt, backbone, data, folder, export)
            row |= {"size": backbone.preprocessing.input_size[0], "layers": len(backbone.layers)}
            row |= {"parameters": backbone.parameters, "note": " ".join(backbone.notes)}
    return row | {"seconds": seconds, "rss_mb": memory()}


def steps(attempt: Callable[..., Any], backbone: Backbone, data: Any, folder: Path, export: bool) -> None:
    """Everything that a loaded model has to do."""
    images = torch.cat([batch for _, batch in Pixels(data.train, backbone.preprocessing).batches(range(FEW), FEW)])
    images = backbone.preprocessing.normalize(images)
    few = Workspace(device="cpu", precision="float32")
    features = attempt("features", lambda: dict(few.features(backbone, data.train)))
    if features is None:
        return
    attempt("blocks", lambda: enough(backbone))
    attempt("features", lambda: check_features(backbone, features, images))
    attempt("logits", lambda: check_logits(backbone, features, images))
    attempt("alone", lambda: check_alone(backbone, features, data.train.subset(range(FEW))))
    middle = backbone.layers[len(backbone.layers) // 2].name if backbone.layers else ""
    attempt("cut", lambda: Suffix(backbone.module, middle, images.shape[1:]))
    config, made = TrainConfig(epochs=1, folds=0, lr=(0.01,), weight_decay=(1e-4,)), {}
    for method in METHODS:
        block = backbone.layers[-2].name if method == "scl" and len(backbone.layers) > 1 else "auto"
        plan = {"method": method, "block": block, "config": config, "workspace": few}
        made[method] = attempt(method, partial(tune, data, backbone, **plan))
    kept = {method: tuned for method, tuned in made.items() if tuned is not None}
    attempt("saved", lambda: [check_saved(one, data, folder / name) for name, one in kept.items()])
    if export and kept:
        attempt("exported", lambda: check_exported(kept.get("scl", next(iter(kept.values()))), data, folder))


def enough(backbone: Backbone) -> None:
    if len(backbone.layers) < 2:
        raise ValueError(f"{len(backbone.layers)} blocks")


def memory() -> int:
    """Megabytes that this process holds, once what it has freed is given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


def one_by_one(wanted: list[str], export: bool) -> Iterator[dict[str, Any]]:
    """Rows of all models, from one process after which memory is noted; a new one where a model ends it."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    for name in wanted:
        try:
            yield pool.submit(examined, name, export).result(timeout=PATIENCE)
        except Exception as error:
            why = f"{type(error).__name__}: the process ended, or took more than {PATIENCE} s"
            yield {"model": name, "load": why, "seconds": {}, "rss_mb": 0}
            for process in list(pool._processes.values()):
                process.kill()
            pool = ProcessPoolExecutor(1, mp_context=context)
    pool.shutdown()


def smallest() -> None:
    """Print the member of each of timm's modules that has the fewest parameters; no weights are made."""
    import timm
    from timm.models._registry import _model_to_module

    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, family in _model_to_module.items():
        if name.startswith("test_"):
            continue
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            try:
                found[family].append((sum(p.numel() for p in timm.create_model(name).parameters()), name))
            except RuntimeError:  # names that timm gave up
                continue
    for family, members in sorted(found.items()):
        print(family, *min(members))


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown, and every failure in words."""
    named = [(step, (step,)) for step in STEPS if step not in MEASURED]
    told = []
    for what, needed in [("measured", MEASURED), *named]:
        tried = [row for row in rows if what == "measured" or what in row]
        held = sum(all(row.get(step) == "" for step in needed) for row in tried)
        told.append(f"{what} {held} of {len(tried)} ({100 * held / max(len(tried), 1):.1f} %)")
    yield f"{len(rows)} models: " + ", ".join(told) + "."
    held = [row["rss_mb"] for row in rows if row["rss_mb"]]
    yield f"\nThe process holds {held[0]} MB after the first model, {max(held)} at most, {held[-1]} after the last."
    yield "\n| model | size | million parameters | layers | " + " | ".join(STEPS) + " | s, export | MB |"
    yield "|---" * (len(STEPS) + 6) + "|"
    for row in rows:
        marks = ["yes" if row.get(step) == "" else "–" if step not in row else "**no**" for step in STEPS]
        spent = row["seconds"]
        rest = sum(spent.values()) - spent.get("exported", 0)
        figures = [row.get("size", ""), f"{row.get('parameters', 0) / 1e6:.1f}", row.get("layers", "")]
        yield (
            f"| {row['model']} | {' | '.join(map(str, figures))} | {' | '.join(marks)} | "
            f"{rest:.0f}, {spent.get('exported', 0):.0f} | {row['rss_mb']} |"
        )
    yield "\n## What did not work\n"
    for row in rows:
        for step in STEPS:
            if row.get(step):
                yield f"- {row['model']}, {step}: {row[step]}"


def lacks(row: dict[str, Any] | None, export: bool) -> bool:
    """Whether a model has yet to be run: a record may be without exports."""
    return row is None or (export and "exported" not in row and not row.get("load"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", help="models whose name fits this pattern")
    parser.add_argument("--without-export", action="store_true")
    parser.add_argument("--record", type=Path, default=Path(tempfile.gettempdir()) / "architectures.jsonl")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list:
        return smallest()
    known = [json.loads(line) for line in given.record.read_text().splitlines()] if given.record.exists() else []
    done = {row["model"]: row for row in known}
    wanted = [name for name in names() if fnmatch(name, given.only)]
    with given.record.open("a") as file:
        left = [name for name in wanted if lacks(done.get(name), not given.without_export)]
        for row in one_by_one(left, not given.without_export):
            done[row["model"]] = row
            print(json.dumps(row), file=file, flush=True)
            failed = {step: row[step][:90] for step in STEPS if row.get(step)}
            print(row["model"], round(sum(row["seconds"].values())), row["rss_mb"], failed, file=sys.stderr, flush=True)
    print("# Architectures\n")
    print(f"`python benchmarks/architectures.py` on {platform.machine()}, {torch.get_num_threads()} threads; ", end="")
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}.\n")
    print("\n".join(table([done[name] for name in wanted if name in done])))


if __name__ == "__main__":
    main()
