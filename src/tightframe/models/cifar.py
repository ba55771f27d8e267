"""Models for images of 32 px, in timm's registry: once this is imported, ``timm.create_model`` knows them by name.

=============================  =========================================================================
``cifar_resnet8`` … ``110``    three stages of 16, 32 and 64 channels (He et al., CVPR 2016, §4.2)
``cifar_resnet18``, ``…50``    ImageNet's, but for a stem of one 3 × 3 convolution without pooling
``cifar_vit``                  patches of 4 px, 6 blocks of width 192, a class token
=============================  =========================================================================

Shortcuts that change shape are 1 × 1 convolutions, as in timm's models, where He et al. pad with zeros.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, make_blocks
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIDE = 32
_THIN, _WIDE = (16, 32, 64), (64, 128, 256, 512)
_RESNETS: dict[str, dict[str, Any]] = {
    **{
        f"cifar_resnet{6 * repeats + 2}": {"block": BasicBlock, "layers": (repeats,) * 3, "channels": _THIN}
        for repeats in (1, 3, 5, 7, 9, 18)
    },
    "cifar_resnet18": {"block": BasicBlock, "layers": (2, 2, 2, 2), "channels": _WIDE},
    "cifar_resnet50": {"block": Bottleneck, "layers": (3, 4, 6, 3), "channels": _WIDE},
}
_VIT = {"img_size": SIDE, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
NAMES = (*_RESNETS, "cifar_vit")
_COMMON: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (3, SIDE, SIDE),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "license": "apache-2.0",
}
default_cfgs = {
    **dict.fromkeys(_RESNETS, _COMMON | {"classifier": "fc", "first_conv": "conv1", "pool_size": (8, 8)}),
    "cifar_vit": _COMMON | {"classifier": "head", "first_conv": "patch_embed.proj", "fixed_input_size": True},
}


class CifarResNet(ResNet):  # type: ignore[misc]
    """timm's ResNet behind a stem of one 3 × 3 convolution at full resolution, as wide as its first stage."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        channels: tuple[int, ...],
        in_chans: int = 3,
        **others: Any,
    ):
        super().__init__(block, layers, channels=channels, in_chans=in_chans, **others)
        stem = channels[0]
        self.conv1 = nn.Conv2d(in_chans, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.Identity()
        stages, found = make_blocks((block,) * len(channels), channels, layers, stem)
        for name, stage in stages:
            setattr(self, name, stage)
        if len(stages) < 4:
            self.layer4 = nn.Identity()  # timm's forward runs four stages
        for told in found:
            told["reduction"] //= 4
        self.feature_info = [{"num_chs": stem, "reduction": 1, "module": "act1"}, *found]
        self.init_weights()


def _register(name: str, model: type[nn.Module], wanted: dict[str, Any]) -> None:
    def build(pretrained: bool = False, **others: Any) -> nn.Module:
        return build_model_with_cfg(model, name, pretrained, **(wanted | others))

    build.__name__ = name
    register_model(build)


for _name, _wanted in _RESNETS.items():
    _register(_name, CifarResNet, _wanted)
_register("cifar_vit", VisionTransformer, _VIT)
