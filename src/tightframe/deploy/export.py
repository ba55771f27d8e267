"""Export a tuned model as one ONNX file, from normalization to softmax, for any ONNX runtime.

The graph takes ``pixels`` (n, 3, height, width), n free: bytes (``uint8``, 0 … 255) or ``float32`` in 0 … 1, chosen at
export, since an input of ONNX has one type. It yields ``probabilities`` and ``logits``, (n, K) each. Normalization by
the model's mean and deviation is inside. Resizing and cropping to height × width is not: the metadata say how to do it,
in timm's terms.

Metadata of the file: ``classes`` (a JSON list, in the order of the probabilities), ``preprocessing`` and ``model``
(JSON objects), ``pixels`` (what the graph takes, in words).

The file is written only once ONNX Runtime and PyTorch have given the same probabilities.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from tightframe.backbone import Preprocessing
from tightframe.deploy.tuned import Tuned
from tightframe.errors import SettingsError, TightframeError, needed_by
from tightframe.features.pixels import Pixels
from tightframe.files import write_bytes
from tightframe.images import Images, ImageSplits
from tightframe.report.result import Result, versions
from tightframe.row import Row

TAKES = {"uint8": "bytes from 0 to 255", "float32": "numbers from 0 to 1"}
TOLERANCE = 1e-4
"""Largest accepted difference between the probabilities of ONNX Runtime and of PyTorch."""
IMAGES = 32
"""Most images that an export is checked on."""


class ExportFailed(TightframeError):
    """The model can't be exported, or the exported one gives other probabilities."""


def export_onnx(
    tuned: Tuned,
    path: Path | str,
    data: Images | ImageSplits | None = None,
    *,
    pixels: str = "uint8",
    tolerance: float = TOLERANCE,
) -> Result:
    """Write a tuned model as one ONNX file, checked against PyTorch in ONNX Runtime.

    The row holds ``model``, ``bytes`` of the file, ``images`` of the check, ``difference`` (the largest between two
    probabilities), ``same`` (share of images that both put into the same class), ``opset`` and ``file``.

    Args:
        tuned: The model, tuned by any method.
        path: The file to write; it is replaced if it is there.
        data: Images to check on, spread over all of them; of splits, the test images where there are any. Made-up
            images by default.
        pixels: What the file takes: uint8 (bytes) or float32 (numbers from 0 to 1).
        tolerance: Largest difference of a probability that is accepted.

    Raises:
        PackageMissing: ``pip install 'tightframe[onnx]'`` is needed.
        ExportFailed: PyTorch can't export the model, or the probabilities differ by more than ``tolerance``.
    """
    if pixels not in TAKES:
        raise SettingsError(f'no pixels of type "{pixels}"; choose {" or ".join(TAKES)}')
    packages = _packages()
    shown = _shown(tuned, data)
    for optimize in (True, False):
        proto = _exported(_Graph(tuned, pixels), pixels, optimize)
        _describe(proto, tuned, pixels)
        content = proto.SerializeToString()
        try:
            wanted, found = _both(tuned, packages["onnxruntime"], content, shown, pixels)
            break
        except _NotAccepted:  # the exporter's optimizer removes what is needed, now and then
            if not optimize:
                raise
    apart = float(np.abs(wanted - found).max())
    if not apart <= tolerance:
        raise ExportFailed(
            f"ONNX Runtime's probabilities differ from PyTorch's by up to {apart:.2g}, more than {tolerance:g}: "
            f"{path} was not written. Update onnxruntime and torch, or allow more with --tolerance"
        )
    write_bytes(Path(path), content)
    row: Row = {
        "model": tuned.backbone.name,
        "bytes": len(content),
        "images": len(shown),
        "difference": apart,
        "same": float((wanted.argmax(1) == found.argmax(1)).mean()),
        "opset": max(entry.version for entry in proto.opset_import),
        "file": str(path),
    }
    of = data.name if data is not None else "made-up images; name yours with --data to check on them"
    notes = [f"the same as PyTorch to {apart:.1g} in probability, on {len(shown)} images of {of}"]
    told = versions() | {name: str(package.__version__) for name, package in packages.items()}
    return Result("export", [row], tuned.settings | {"pixels": pixels}, notes, versions=told)


class _NotAccepted(ExportFailed):
    """ONNX Runtime can't load the exported model."""


class _Graph(nn.Module):
    """The exported graph: pixels (n, 3, h, w) in, probabilities and logits (n, K) out."""

    def __init__(self, tuned: Tuned, pixels: str):
        super().__init__()
        self.model = tuned.model.cpu().train(False)
        self.preprocessing = tuned.backbone.preprocessing
        self.factor = 1 if pixels == "uint8" else 255

    def forward(self, pixels: Shaped[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        logits = self.model(self.preprocessing.normalize(self.factor * pixels))
        return logits.softmax(1), logits


def _packages() -> dict[str, Any]:
    with needed_by("exporting to ONNX", "onnx"):
        import onnx
        import onnxruntime
        import onnxscript
    return {"onnx": onnx, "onnxscript": onnxscript, "onnxruntime": onnxruntime}


def _exported(graph: _Graph, pixels: str, optimize: bool = True) -> Any:
    """The graph in ONNX's protocol buffer, without the exporter's notes about files of this machine."""
    example = torch.zeros(2, 3, *graph.preprocessing.input_size, dtype=getattr(torch, pixels))
    try:
        with torch.no_grad(), warnings.catch_warnings(), _attention_on_four_axes():
            warnings.simplefilter("ignore")  # of the exporter's own parts, to each other
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                optimize=optimize,
                verbose=False,
                external_data=False,
                input_names=["pixels"],
                output_names=["probabilities", "logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
            )
    except Exception as error:  # whatever of a model the exporter can't follow
        first = _first_of(error)
        why = " ".join(str(first).split())[:300]
        raise ExportFailed(
            f"PyTorch can't export this model to ONNX ({type(first).__name__}: {why}); "
            "update torch and onnxscript, or use the saved folder with `tightframe predict`"
        ) from error
    assert program is not None, "with dynamo it always is one"
    proto = program.model_proto
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        node.doc_string = ""
        del node.metadata_props[:]
    return proto


@contextmanager
def _attention_on_four_axes() -> Iterator[None]:
    """Let attention (n, tokens, d) run as that of one head, (n, 1, tokens, d): the exporter knows no other."""
    own = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *more: Any, **named: Any) -> Tensor:
        if query.ndim != 3:
            return own(query, key, value, attn_mask, *more, **named)
        mask = attn_mask[:, None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        return own(query[:, None], key[:, None], value[:, None], mask, *more, **named)[:, 0]

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def _first_of(error: BaseException) -> BaseException:
    """The error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _describe(proto: Any, tuned: Tuned, pixels: str) -> None:
    """Put what users of the file need to know into its metadata."""
    height, width = tuned.backbone.preprocessing.input_size
    model = {"name": tuned.backbone.name, "weights": tuned.backbone.weights, "method": tuned.model.method.name}
    told = {
        "classes": json.dumps(list(tuned.classes), ensure_ascii=False),
        "preprocessing": json.dumps(asdict(tuned.backbone.preprocessing)),
        "model": json.dumps(model | {"block": tuned.model.block}),
        "pixels": f"RGB, shape (n, 3, {height}, {width}), {pixels}: {TAKES[pixels]}; mean and std are applied inside",
    }
    proto.producer_name, proto.producer_version = "tightframe", versions()["tightframe"]
    del proto.metadata_props[:]
    for key, value in told.items():
        proto.metadata_props.add(key=key, value=value)


def _shown(tuned: Tuned, data: Images | ImageSplits | None) -> Shaped[Tensor, "n 3 h w"]:
    """Images to check the export on, as bytes (n, 3, h, w)."""
    wants = tuned.backbone.preprocessing
    if data is None:
        return _made_up(wants)
    if isinstance(data, ImageSplits):
        data = data.test if data.test is not None else data.train
    chosen = np.unique(np.linspace(0, len(data) - 1, min(IMAGES, len(data))).astype(int))
    batches = [batch for _, batch in Pixels(data, wants, keep_bytes=0).batches(chosen, IMAGES)]
    if not batches:
        raise SettingsError(f"{data.name} has no images to check the file on; give others with --data")
    return torch.cat(batches)


def _made_up(wants: Preprocessing) -> Shaped[Tensor, "n 3 h w"]:
    """Images of noise, from coarse to fine, and a black and a white one."""
    luck = np.random.default_rng(0)
    sides = [1 + 2 * step for step in range(IMAGES - 2)]
    noise = [Image.fromarray(luck.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]
    plain = [Image.new("RGB", (8, 8), color) for color in ("black", "white")]
    return torch.stack([wants.pixels(image.resize((64, 64))) for image in (*noise, *plain)])


def _both(
    tuned: Tuned, runtime: Any, content: bytes, shown: Shaped[Tensor, "n 3 h w"], pixels: str
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, K) of PyTorch and of ONNX Runtime, in batches of two sizes, since any size is promised."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever of the exporter's work the runtime does not accept
        why = " ".join(str(error).split())[:300]
        raise _NotAccepted(
            f"ONNX Runtime does not accept what PyTorch exported of this model ({why}); update torch, onnxscript and "
            "onnxruntime, or use the saved folder with `tightframe predict`"
        ) from error
    wanted, found = [], []
    for batch in (shown[:1], shown[1:]):
        if len(batch):
            given = batch if pixels == "uint8" else batch.float() / 255
            found.append(session.run(["probabilities"], {"pixels": given.numpy()})[0])
            with torch.inference_mode():
                wanted.append(tuned.model(tuned.backbone.preprocessing.normalize(batch)).softmax(1).numpy())
    return np.concatenate(wanted), np.concatenate(found)
