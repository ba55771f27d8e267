"""Which images a model was trained on, kept beside it by hash, and what was predicted of each while it was held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tightframe.decide.evidence import Evidence
from tightframe.errors import SavedError
from tightframe.files import write_tensors

TRAINING_SET = "training_set.safetensors"
DIGEST = 16
"""Bytes of a hash."""


def write_training_set(folder: Path, digests: tuple[str, ...], evidence: Evidence | None) -> None:
    """Write the hashes of the training images, and what was predicted of each, into ``folder``."""
    packed = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, DIGEST)
    tensors = {"digests": torch.tensor(packed)}
    if evidence is not None:
        tensors["labels"] = torch.tensor(evidence.labels)
        tensors["log_probabilities"] = torch.tensor(evidence.log_probabilities)
    write_tensors(folder / TRAINING_SET, tensors)


def read_training_set(folder: Path, classes: int) -> tuple[tuple[str, ...], Evidence | None]:
    """What ``write_training_set`` left in ``folder``; nothing where there is no such file.

    Raises:
        SavedError: the file is damaged.
    """
    path = folder / TRAINING_SET
    if not path.is_file():
        return (), None
    try:
        with safe_open(str(path), "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SavedError(f"{path} can't be read ({error}); it is damaged") from error
    digests = found.pop("digests", torch.zeros(0))
    images = len(digests)
    sound = digests.dtype == torch.uint8 and tuple(digests.shape) == (images, DIGEST)
    if found:
        labels, said = found.pop("labels", torch.zeros(0)), found.pop("log_probabilities", torch.zeros(0))
        sound &= tuple(labels.shape) == (images,) and labels.dtype == torch.int64
        sound &= tuple(said.shape) == (images, classes) and said.is_floating_point() and not found
        sound = bool(sound and torch.isfinite(said).all() and ((labels >= 0) & (labels < classes)).all())
        evidence = Evidence(said.double().numpy(), labels.numpy()) if sound else None
    else:
        evidence = None
    if not sound:
        raise SavedError(f"{path} does not hold hashes and predictions of training images; it is damaged")
    return tuple(row.tobytes().hex() for row in digests.numpy()), evidence
