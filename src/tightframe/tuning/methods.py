"""Ways to adapt a backbone: each says which parameters it trains and what the new head sees.

Linear probe, Layer FT and SCL FT follow Li et al. (TMLR 2024, arXiv 2212.12206).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tightframe.errors import SettingsError


@dataclass(frozen=True)
class Method:
    """One way to adapt a backbone.

    Attributes:
        name: as given to ``--method``.
        trains: what of the backbone is trained, besides the new head.
        skip: whether the tuned block's pooled output is added to the features that the head sees.
        summary: one line for people.
    """

    name: str
    trains: Literal["nothing", "block", "everything"]
    skip: bool
    summary: str

    @property
    def needs_layer(self) -> bool:
        """Whether a block has to be named or chosen."""
        return self.trains == "block"


METHODS = {
    method.name: method
    for method in (
        Method("linear", "nothing", False, "linear probe: a new head on frozen features"),
        Method("layer", "block", False, "Layer FT: one block and a new head"),
        Method("scl", "block", True, "SCL FT: one block, skip-connected to the features that the new head sees"),
        Method("full", "everything", False, "full fine-tuning: every parameter and a new head"),
    )
}


def method_named(name: str) -> Method:
    """The method called ``name``. Raises ``SettingsError``."""
    if name not in METHODS:
        raise SettingsError(f'no method "{name}"; choose {", ".join(METHODS)}')
    return METHODS[name]
