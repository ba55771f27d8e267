"""What is kept beside a model of the images that it was trained on: hashes, held-out predictions, where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tightframe.decide.evidence import Evidence
from tightframe.deploy.neighbors import VALUES, Neighbors
from tightframe.deploy.novelty import Familiar
from tightframe.errors import SavedError
from tightframe.files import write_tensors

TRAINING_SET = "training_set.safetensors"
DIGEST = 16
"""Bytes of a hash."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a model knows of the n images that it was trained on.

    Attributes:
        digests: hashes of their contents, n of them, or none where they are not known.
        evidence: what was predicted of each while it was held out, where it was.
        familiar: where what the head sees of them lies.
        neighbors: by which the nearest of them to an image are found.
    """

    digests: tuple[str, ...] = ()
    evidence: Evidence | None = None
    familiar: Familiar | None = None
    neighbors: Neighbors | None = None

    def write(self, folder: Path) -> None:
        """Into one file in ``folder``; none where nothing is known."""
        if not self.digests and self.evidence is None and self.familiar is None:
            (folder / TRAINING_SET).unlink(missing_ok=True)
            return
        packed = np.frombuffer(bytes.fromhex("".join(self.digests)), np.uint8).reshape(-1, DIGEST)
        tensors = {"digests": torch.tensor(packed)}
        if self.evidence is not None:
            tensors["labels"] = torch.tensor(self.evidence.labels)
            tensors["log_probabilities"] = torch.tensor(self.evidence.log_probabilities)
            if self.evidence.groups is not None:
                tensors["groups"] = torch.tensor(self.evidence.groups)
        if self.familiar is not None:
            tensors |= self.familiar._asdict()
        if self.neighbors is not None:
            tensors |= self.neighbors.packed()
        write_tensors(folder / TRAINING_SET, tensors)

    @classmethod
    def read(cls, folder: Path, classes: int, width: int) -> TrainingSet:
        """What ``write`` left in ``folder``, for a model of so many classes whose head sees ``width`` values.

        Raises:
            SavedError: the file is damaged.
        """
        path = folder / TRAINING_SET
        if not path.is_file():
            return cls()
        try:
            with safe_open(str(path), "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise SavedError(f"{path} can't be read ({error}); it is damaged") from error
        if flaw := _flaw(found, classes, width):
            raise SavedError(f"{path} does not hold what is known of training images ({flaw}); it is damaged")
        evidence, familiar, neighbors = None, None, None
        if "labels" in found:
            groups = found["groups"].numpy() if "groups" in found else None
            evidence = Evidence(found["log_probabilities"].numpy(), found["labels"].numpy(), groups)
        if "center" in found:
            familiar = Familiar(found["center"], found["factor"], found["distances"])
        if "names" in found:
            try:
                neighbors = Neighbors.unpacked(found)
            except (ValueError, RecursionError) as error:
                raise SavedError(
                    f"{path} does not hold the names of training images ({error}); it is damaged"
                ) from error
        return cls(tuple(row.tobytes().hex() for row in found["digests"].numpy()), evidence, familiar, neighbors)


def _flaw(found: dict[str, Tensor], classes: int, width: int) -> str:
    """Why these can't be what was written; empty if they can."""
    images = len(found["digests"]) if found.get("digests", torch.zeros(())).ndim else -1
    wanted = {
        "digests": (torch.uint8, (images, DIGEST)),
        "labels": (torch.int64, (images,)),
        "log_probabilities": (torch.float64, (images, classes)),
        "groups": (torch.int64, (images,)),
        "center": (torch.float32, (width,)),
        "factor": (torch.float32, (width,)),
        "distances": (torch.float32, (images,)),
        "names": (torch.uint8, (found["names"].numel() if "names" in found else 0,)),
        "sketches": (torch.float16, (images, VALUES)),
    }
    evidence = ("labels", "log_probabilities", *(("groups",) if "groups" in found else ()))
    parts = (("digests",), evidence, ("center", "factor", "distances"), ("names", "sketches"))
    present = [part for part in parts if set(part) <= set(found)]
    if parts[0] not in present or {name for part in present for name in part} != set(found):
        return f"it holds {sorted(found)}"
    for name, tensor in found.items():
        dtype, shape = wanted[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            return f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}"
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"{name} has values that are not finite"
    labels = found.get("labels", torch.zeros(0))
    return "labels are no classes" if bool(((labels < 0) | (labels >= classes)).any()) else ""
