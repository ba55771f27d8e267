"""Tightframe: which pretrained model, which layer, and how to fine-tune it, from neural collapse on your images.

data = tightframe.load_images("flowers")
run = tightframe.transfer(data, ["timm/resnet18", "timm/mobilenetv3_small_100"], out="run")
run.tuned.predict(["new.jpg"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tightframe.backbone import Backbone
    from tightframe.checks.check import check
    from tightframe.data.loading import load_images
    from tightframe.deploy.evaluate import evaluate
    from tightframe.deploy.export import export_onnx
    from tightframe.deploy.hub import push_to_hub
    from tightframe.deploy.merge import merge
    from tightframe.deploy.tuned import Tuned, load_tuned
    from tightframe.errors import TightframeError
    from tightframe.features.extract import Features
    from tightframe.features.moments import ClassMoments
    from tightframe.features.workspace import Workspace
    from tightframe.images import Images, ImageSplits
    from tightframe.jobs.compare import Comparison, compare
    from tightframe.jobs.estimator import LayerDiscriminant, TransferClassifier
    from tightframe.jobs.fewshot import fewshot
    from tightframe.jobs.layers import layers
    from tightframe.jobs.measure import measure
    from tightframe.jobs.pretrain import Pretraining, pretrain
    from tightframe.jobs.rank import rank
    from tightframe.jobs.transfer import Transfer, transfer
    from tightframe.jobs.tune import tune
    from tightframe.metrics.collapse import Head
    from tightframe.metrics.summary import CollapseMetrics, collapse_metrics
    from tightframe.metrics.torchmetric import NeuralCollapse
    from tightframe.models.backbones import load_backbone
    from tightframe.probes.discriminant import LayerReading, read_layers
    from tightframe.report.result import Result
    from tightframe.scores.transferability import transferability
    from tightframe.studies import STUDIES, run_study
    from tightframe.tuning.config import TrainConfig

_HOMES = {
    "checks.check": ("check",),
    "errors": ("TightframeError",),
    "features.extract": ("Features",),
    "features.moments": ("ClassMoments",),
    "features.workspace": ("Workspace",),
    "jobs.compare": ("Comparison", "compare"),
    "jobs.estimator": ("LayerDiscriminant", "TransferClassifier"),
    "deploy.evaluate": ("evaluate",),
    "deploy.export": ("export_onnx",),
    "jobs.fewshot": ("fewshot",),
    "deploy.hub": ("push_to_hub",),
    "jobs.layers": ("layers",),
    "jobs.measure": ("measure",),
    "deploy.merge": ("merge",),
    "tuning.config": ("TrainConfig",),
    "jobs.pretrain": ("Pretraining", "pretrain"),
    "jobs.rank": ("rank",),
    "report.result": ("Result",),
    "jobs.transfer": ("Transfer", "transfer"),
    "jobs.tune": ("tune",),
    "deploy.tuned": ("Tuned", "load_tuned"),
    "metrics.collapse": ("Head",),
    "metrics.torchmetric": ("NeuralCollapse",),
    "metrics.summary": ("CollapseMetrics", "collapse_metrics"),
    "probes.discriminant": ("LayerReading", "read_layers"),
    "scores.transferability": ("transferability",),
    "backbone": ("Backbone",),
    "images": ("Images", "ImageSplits"),
    "models.backbones": ("load_backbone",),
    "data.loading": ("load_images",),
    "studies": ("STUDIES", "run_study"),
}
"""Where each public name lives. Imported when first used: ``tightframe --help`` need not wait for PyTorch."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # but not NeuralCollapse, which needs torchmetrics: `import *` must work without
    "STUDIES",
    "Backbone",
    "ClassMoments",
    "CollapseMetrics",
    "Comparison",
    "Features",
    "Head",
    "ImageSplits",
    "Images",
    "LayerDiscriminant",
    "LayerReading",
    "Pretraining",
    "Result",
    "TightframeError",
    "TrainConfig",
    "Transfer",
    "TransferClassifier",
    "Tuned",
    "Workspace",
    "check",
    "collapse_metrics",
    "compare",
    "evaluate",
    "export_onnx",
    "fewshot",
    "layers",
    "load_backbone",
    "load_images",
    "load_tuned",
    "measure",
    "merge",
    "pretrain",
    "push_to_hub",
    "rank",
    "read_layers",
    "run_study",
    "transfer",
    "transferability",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tightframe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tightframe.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
