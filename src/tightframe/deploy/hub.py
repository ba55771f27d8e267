"""A saved folder shared through the Hugging Face hub: ``tightframe.json``, what was trained and a model card.

Nothing else in the folder is sent, and no path of this machine: a base model that came from a folder or a builder is
named by the last part of its path. A ``README.md`` in the folder is taken as the card; else one is written for it,
which states no license unless told one: that is for the author to choose.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tightframe.errors import SavedError, SettingsError, TightframeError
from tightframe.files import write_text
from tightframe.models.backbones import BUILDER, folder_of, short_name
from tightframe.report.fields import TABLES, shown
from tightframe.report.result import Result
from tightframe.row import Row
from tightframe.tuning import checkpoint
from tightframe.tuning.checkpoint import DESCRIPTION, Description
from tightframe.tuning.methods import method_named

CARD = "README.md"
LISTED = 50
"""Most class names in a card."""


class PushFailed(TightframeError):
    """The hub did not take the folder."""


@runtime_checkable
class Hub(Protocol):
    """The part of ``huggingface_hub.HfApi`` that is used."""

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        """Make the repository; something that turns into its address."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str) -> Any:
        """Send files in one commit."""
        ...


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    message: str = "A model tuned with tightframe",
    api: Hub | None = None,
) -> Result:
    """Send what ``Tuned.save`` or ``tightframe tune --out`` wrote to the repository ``repo_id`` of the hub.

    The row holds ``repository`` and ``address``, ``files`` (how many) and ``bytes`` sent.

    Args:
        folder: the saved folder.
        repo_id: ``USER/NAME``, made if it is not there.
        private: whether the repository, if it is made, is hidden from others; ``None`` for the account's default.
        license: the hub's name of a license (``apache-2.0``, ``mit``, …), for a card that is written here.
        message: of the commit.
        api: who talks to the hub; ``huggingface_hub.HfApi()`` if ``None``, with the token that ``hf auth login`` kept.

    Raises:
        SavedError: no saved folder, or a damaged one.
        SettingsError: ``repo_id`` can't be the name of a repository.
        PushFailed: the hub can't be reached, or refuses.
    """
    folder = Path(folder)
    description = checkpoint.read(folder)
    trained = checkpoint.files(description.method)
    for name in trained:
        if not (folder / name).is_file():
            raise SavedError(f"{folder} holds no {name}; give the whole folder that `tightframe tune --out` wrote")
    _check_name(repo_id)
    notes = []
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        for name in trained:
            shutil.copyfile(folder / name, staged / name)
        notes += _stage_description(folder, staged, description)
        if (folder / CARD).is_file():
            shutil.copyfile(folder / CARD, staged / CARD)
        else:
            write_text(staged / CARD, card(description, repo_id, license))
            notes += [] if license else ["the card states no license: choose one with --license, or edit it on the hub"]
        sent = [DESCRIPTION, *trained, CARD]
        row: Row = {"repository": repo_id, "files": len(sent)}
        row["bytes"] = sum((staged / name).stat().st_size for name in sent)
        row["address"] = _sent(staged, sent, repo_id, private, message, api)
    return Result("push", [row], {"folder": str(folder), "repository": repo_id}, notes)


def card(description: Description, repo_id: str, license: str | None = None) -> str:
    """A model card in the hub's form: what it tells apart, what was measured, how to load it."""
    from huggingface_hub import ModelCardData

    name = repo_id.partition("/")[2]
    uri = str(description.backbone["uri"])
    told = ModelCardData(license=license, library_name="tightframe", pipeline_tag="image-classification")
    parts = [
        f"---\n{told.to_yaml()}\n---\n",
        f"# {_plain(name)}\n",
        f"{_plain(short_name(uri))}, tuned by {_plain(description.method)}"
        + (f" at block {_plain(description.block)}" if description.block else "")
        + f" with Tightframe to tell {len(description.classes)} classes of images apart.\n",
        f"## Classes\n\n{_classes(description.classes)}\n",
        f"## Measured\n\n{_measured(description.metrics)}\n",
        f"## How to load it\n\n{_loading(uri, description, repo_id, name)}\n",
        f"## License\n\n{_plain(license) if license else 'The author has not stated one yet.'}\n",
    ]
    return "\n".join(parts)


def _classes(names: list[str]) -> str:
    lines = [f"- {_plain(name)}" for name in names[:LISTED]]
    return "\n".join(lines + [f"- and {len(names) - LISTED} more, listed in `{DESCRIPTION}`"] * (len(names) > LISTED))


def _measured(metrics: Row) -> str:
    """A table of what was measured when it was tuned, as the terminal spells it."""
    try:
        rows = [(field.title, field.told(metrics)) for field in shown(TABLES["tune"].columns, [metrics])]
    except (TypeError, ValueError) as error:
        raise SavedError(f"{DESCRIPTION} has metrics that are no numbers ({error}); tune again") from error
    lines = [f"| {_plain(header)} | {_plain(value)} |" for header, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else "Nothing was recorded."


def _loading(uri: str, description: Description, repo_id: str, name: str) -> str:
    known = _sendable(uri) == uri
    model = "" if known else ', model="…"'
    option = "" if known else " --model …"
    base = (
        f"The base model is `{uri}`"
        if known
        else "The base model is not on the hub: put its own name (a folder or a builder) in place of …"
    )
    package = "'tightframe[lora]'" if method_named(description.method).adapt else "tightframe"
    return (
        f"```sh\npip install {package}\nhf download {repo_id} --local-dir {name}\n"
        f"tightframe predict {name} IMAGE{option}\n```\n\n"
        f"```python\nimport tightframe\nfrom huggingface_hub import snapshot_download\n\n"
        f'tuned = tightframe.load_tuned(snapshot_download("{repo_id}"){model})\nprint(tuned.predict(["image.jpg"]))\n'
        f"```\n\nWhat was trained is here, and nothing that can run code. {base}; its weights have the hash "
        f"`{_plain(description.weights[:16])}`…, and others are refused."
    )


def _stage_description(folder: Path, staged: Path, description: Description) -> list[str]:
    """Copy the description with no path of this machine in it; notes on what that changed."""
    uri = str(description.backbone["uri"])
    if _sendable(uri) == uri:
        shutil.copyfile(folder / DESCRIPTION, staged / DESCRIPTION)
        return []
    content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    content["backbone"]["uri"] = _sendable(uri)
    write_text(staged / DESCRIPTION, json.dumps(content, indent=1, ensure_ascii=False))
    return [f"the base model is called {_sendable(uri)} there: whoever loads it has to have it, and name it (--model)"]


def _sendable(uri: str) -> str:
    """A model's name without folders of this machine."""
    builder = BUILDER.fullmatch(uri)
    if builder:
        return Path(builder["path"]).name + uri[len(builder["path"]) :]
    folder = folder_of(uri)
    return f"{folder[0]}{folder[1].name}" if folder else uri


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SettingsError(f'"{repo_id}" can\'t be the name of a repository; give USER/NAME ({error})') from error
    if "/" not in repo_id:
        raise SettingsError(f'"{repo_id}" does not say whose it is; give USER/NAME')


def _sent(staged: Path, names: list[str], repo_id: str, private: bool | None, message: str, api: Hub | None) -> str:
    """Make the repository and send the files; its address."""
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=str(staged), allow_patterns=names, commit_message=message)
    except Exception as error:  # whatever the hub's client and its HTTP library raise
        why = " ".join(str(error).split())[:300]
        raise PushFailed(
            f"{repo_id}: the hub did not take it ({type(error).__name__}: {why}). Log in with `hf auth login` and a "
            "token that may write, see that the name is yours, and that the model is there; then push again"
        ) from error
    return str(address)


def _plain(words: str) -> str:
    """Text that neither Markdown nor HTML reads anything into."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(" ".join(str(words).split()), quote=False))
