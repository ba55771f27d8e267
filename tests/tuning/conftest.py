from __future__ import annotations

import pytest

from tightframe import load_backbone


@pytest.fixture(scope="session")
def transformer():
    """A small vision transformer with a class token."""
    return load_backbone("timm/test_vit", pretrained=False)
