"""Tightframe: which pretrained network, which layer, and how to fine-tune it, from neural collapse on your pictures.

data = tightframe.load_images("flowers")
run = tightframe.transfer(data, ["timm/resnet18", "timm/mobilenetv3_small_100"], out="run")
run.tuned.predict(["new.jpg"])
"""

from tightframe.errors import TightframeError
from tightframe.features.extract import Features, extract
from tightframe.features.moments import ClassMoments
from tightframe.features.store import FeatureStore
from tightframe.jobs.measure import measure
from tightframe.jobs.rank import rank
from tightframe.jobs.run import Result
from tightframe.jobs.transfer import Transfer, transfer
from tightframe.jobs.tune import Plan, tune
from tightframe.jobs.tuned import Tuned, load_tuned
from tightframe.measure.collapse import CollapseMetrics, Head, collapse_metrics
from tightframe.protocols import Backbone, ImageData, ImageSplits
from tightframe.sources.backbones import load_backbone
from tightframe.sources.images import load_images

__all__ = [
    "Backbone",
    "ClassMoments",
    "CollapseMetrics",
    "FeatureStore",
    "Features",
    "Head",
    "ImageData",
    "ImageSplits",
    "Plan",
    "Result",
    "TightframeError",
    "Transfer",
    "Tuned",
    "collapse_metrics",
    "extract",
    "load_backbone",
    "load_images",
    "load_tuned",
    "measure",
    "rank",
    "transfer",
    "tune",
]
