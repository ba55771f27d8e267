"""The saved folder: ``tightframe.json`` and ``tuned.safetensors``, which hold what was trained and nothing else.

It holds the hash of the base model in place of its weights, and can't be loaded onto other weights. It has a checksum
of itself and of every file beside it, so that a damaged folder is refused; folders of version 0.1 have none.

Nothing read here can run code: there are only JSON and safetensors, and every name, shape and type is compared with
what the model expects before use.

For LoRA peft's ``adapter_config.json`` and ``adapter_model.safetensors`` take the place of ``tuned.safetensors``. With
them peft makes the same of a plain model, where that could say the same (see ``jobs.merge``). The configuration is
for peft: it is written here and never read.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tightframe.backbone import Backbone
from tightframe.errors import SavedError, SettingsError
from tightframe.features.taps import Pool
from tightframe.files import encoded, write_tensors, write_text
from tightframe.processes import is_first
from tightframe.tuning import lora
from tightframe.tuning.heads import Align, SkipScale
from tightframe.tuning.methods import method_named
from tightframe.tuning.surgery import TunableModel

FORMAT, WITHOUT_CHECKSUMS = 5, 4
"""The format that is written, and an earlier one that is read."""
_CHECKSUM = re.compile(rb'"checksum": "[0-9a-f]{64}"')
_BLANK = '"checksum": ""'
DESCRIPTION, TENSORS = "tightframe.json", "tuned.safetensors"
BESIDE = ("training_set.safetensors", "history.json")
"""Further files of a saved model, which it can do without."""


@dataclass(frozen=True)
class Description:
    """The content of ``tightframe.json``.

    Attributes:
        backbone: arguments of ``load_backbone`` that build the base model.
        weights: hash of the base model's weights.
        method: name of the tuning method.
        block: name of the tuned block, ``None`` for methods without.
        read: names of the layers whose features the head sees.
        beside: names of the layers of the pretrained model that the head sees besides.
        pool: how tokens are pooled.
        align, skip_scale: how features of the penultimate layer and of the block come together (see ``surgery.Neck``).
        classes: class names, in the order of the logits.
        preprocessing: what is done to an image; the base model has to agree.
        metrics: measured when it was saved.
        versions: of the packages that made it.
        files: checksums (SHA-256) of the files beside it, by name.
    """

    backbone: dict[str, Any]
    weights: str
    method: str
    block: str | None
    read: list[str]
    pool: str
    align: str
    skip_scale: str
    classes: list[str]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def files(method: str) -> tuple[str, ...]:
    """Names of the files that hold what ``method`` trained, that of the tensors last."""
    return (lora.CONFIG, lora.WEIGHTS) if method_named(method).adapt else (TENSORS,)


def write(folder: Path, model: TunableModel, description: Description) -> None:
    """Save ``model`` into ``folder``, made if need be; the description last, since nothing counts without it.

    What lies in ``folder`` already and belongs to the model is in the checksums, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    if model.method.adapt:
        write_text(folder / lora.CONFIG, lora.config_text(model.base, model.backbone))
    write_tensors(folder / files(model.method.name)[-1], _kept(model))
    names = (*files(model.method.name), *(name for name in BESIDE if (folder / name).is_file()))
    if is_first():
        found = {name: _checksum((folder / name).read_bytes()) for name in names}
        write_text(folder / DESCRIPTION, sealed(asdict(description) | {"files": found}))


def sealed(content: dict[str, Any]) -> str:
    """The text of ``tightframe.json`` for its ``content``, with its own checksum."""
    told = {name: value for name, value in content.items() if name not in ("format", "checksum")}
    text = json.dumps({"format": FORMAT, "checksum": "", **told}, indent=1, ensure_ascii=False)
    return text.replace(_BLANK, f'"checksum": "{_checksum(encoded(text))}"', 1)


def read(folder: Path) -> Description:
    """What was saved in ``folder``. Raises ``SavedError`` if that is not a tuned model."""
    path = folder / DESCRIPTION
    try:
        raw = path.read_bytes()
        content = json.loads(raw.decode())
    except FileNotFoundError:
        saved = ", ".join(str(entry.parent) for entry in sorted(folder.glob(f"*/{DESCRIPTION}")))
        instead = (
            f"give one of the tuned models in it: {saved}" if saved else "give the folder that `tightframe tune` wrote"
        )
        raise SavedError(f"{folder} holds no {DESCRIPTION}; {instead}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SavedError(f"{path} can't be read ({type(error).__name__}); it is damaged") from error
    version = content.pop("format", None) if isinstance(content, dict) else None
    if version not in (FORMAT, WITHOUT_CHECKSUMS):
        raise SavedError(f"{path} is not of format {FORMAT}; it was written by another version of tightframe")
    written = content.pop("checksum", None)
    if (written is not None or version == FORMAT) and written != _own_checksum(raw):
        raise SavedError(_damaged(path))
    try:
        description = Description(**content)
    except TypeError as error:
        raise SavedError(f"{path} lacks entries or has unknown ones ({error})") from error
    _check(path, description)
    return description


def verify(folder: Path, description: Description) -> None:
    """Raise ``SavedError`` if a file in ``folder`` is not the one that was written with ``description``."""
    for name, wanted in description.files.items():
        path = folder / name
        try:
            if path.is_file() and _checksum(path.read_bytes()) != wanted:
                raise SavedError(_damaged(path))
        except OSError as error:
            raise SavedError(f"{path} can't be read ({error.strerror}); it is damaged") from error


def _damaged(path: Path) -> str:
    return f"{path} is damaged: its checksum is another than when it was saved; restore it from a copy, or tune again"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _own_checksum(raw: bytes) -> str:
    return _checksum(_CHECKSUM.sub(_BLANK.encode(), raw, count=1))


def restore(folder: Path, description: Description, backbone: Backbone) -> TunableModel:
    """The tuned model in ``folder`` on its base model.

    Raises:
        SavedError: the base model has other weights, or the tensors are not those of this model.
    """
    if backbone.weights != description.weights:
        raise SavedError(
            f"{folder} was tuned on {description.backbone.get('uri')} with weights {description.weights[:12]}…, but "
            f"{backbone.name} has {backbone.weights[:12]}…: fetch those weights again and name them with --model"
        )
    if json.loads(json.dumps(asdict(backbone.preprocessing))) != description.preprocessing:
        raise SavedError(
            f"{folder} was tuned on images prepared as {description.preprocessing}, but {backbone.name} now asks for "
            f"{asdict(backbone.preprocessing)}: put its configuration back"
        )
    model = TunableModel(
        backbone,
        method_named(description.method),
        description.block,
        len(description.classes),
        description.pool,  # type: ignore[arg-type]
        description.align,  # type: ignore[arg-type]
        description.skip_scale,  # type: ignore[arg-type]
        read=description.read if method_named(description.method).closed_form else (),
        beside=description.beside,
    )
    if model.read != description.read:
        raise SavedError(f"{folder} reads {description.read}, but {description.method} reads {model.read}")
    expected = _kept(model)
    path = folder / files(description.method)[-1]
    try:
        with safe_open(str(path), "pt") as file, torch.no_grad():
            for name, tensor in _tensors(path, file, expected).items():
                expected[name].copy_(tensor)
    except (SafetensorError, OSError) as error:
        raise SavedError(f"{path} can't be read ({error}); it is missing or damaged") from error
    model.train(False)
    return model


def _kept(model: TunableModel) -> dict[str, Tensor]:
    """What is kept of the model, by the names in its file: the model's own memory."""
    changed = model.changed_state()
    return lora.as_peft(changed, model.backbone) if model.method.adapt else changed


def _tensors(path: Path, file: Any, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the file holds, after seeing that it is what the model needs."""
    names = set(file.keys())
    if names != set(expected):
        wrong = sorted(names ^ set(expected))
        raise SavedError(f"{path} does not hold the tensors of this model (first difference: {wrong[0]!r})")
    found = {}
    for name, tensor in expected.items():
        shape = tuple(file.get_slice(name).get_shape())
        if shape != tuple(tensor.shape):
            raise SavedError(f"{path}: {name!r} has shape {shape}, the model needs {tuple(tensor.shape)}")
        found[name] = file.get_tensor(name)
        if found[name].dtype != tensor.dtype:
            raise SavedError(f"{path}: {name!r} holds {found[name].dtype}, the model needs {tensor.dtype}")
        strange = ~torch.isfinite(found[name])
        if (found[name] != tensor.cpu())[strange].any():  # some models have bounds that are infinite
            raise SavedError(f"{path}: {name!r} holds values that are not finite; it is damaged")
    return found


def _check(path: Path, description: Description) -> None:
    backbone = description.backbone
    texts = (description.weights, description.method, description.pool, description.align, description.skip_scale)
    sound = (
        isinstance(backbone, dict)
        and isinstance(backbone.get("uri"), str)
        and all(isinstance(text, str) for text in texts)
        and description.pool in get_args(Pool)
        and description.align in get_args(Align)
        and description.skip_scale in get_args(SkipScale)
        and isinstance(description.block, str | None)
        and isinstance(description.read, list)
        and all(isinstance(name, str) for name in description.read)
        and 0 < len(set(description.read)) == len(description.read)
        and isinstance(description.beside, list)
        and all(isinstance(name, str) for name in description.beside)
        and len(set(description.beside)) == len(description.beside)
        and isinstance(description.classes, list)
        and len(description.classes) > 1
        and all(isinstance(name, str) and _is_text(name) for name in description.classes)
        and len(set(description.classes)) == len(description.classes)
        and isinstance(description.metrics, dict)
        and isinstance(description.files, dict)
        and all(isinstance(name, str) and Path(name).name == name for name in description.files)
    )
    if not sound:
        raise SavedError(f"{path} has an entry of the wrong kind; it is damaged or was not written by tightframe")
    try:
        method = method_named(description.method)
    except SettingsError as error:
        raise SavedError(f"{path}: {error}") from error
    if method.needs_block != (description.block is not None):
        raise SavedError(f"{path}: method {method.name} and block {description.block!r} don't go together")


def _is_text(name: str) -> bool:
    """Whether it can be written: JSON may hold halves of characters."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
