from __future__ import annotations

import pytest

from tightframe import load_backbone


@pytest.fixture(scope="session")
def wide(names):
    """A residual model of four blocks, penultimate features of 16 values."""
    return load_backbone(names["wide"])


@pytest.fixture(scope="session")
def transformer():
    """A small vision transformer with a class token."""
    return load_backbone("timm/test_vit", pretrained=False)
