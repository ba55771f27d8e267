"""A saved folder shared through the Hugging Face hub: ``tightframe.json``, what was trained and a model card.

Nothing else in the folder is sent, and no path of this machine: a base model that came from a folder or a builder is
named by the last part of its path. A ``README.md`` in the folder is the card; without one, ``card.md`` is filled in. It
states no license unless one is given: that is for the author to choose.
"""

from __future__ import annotations

import html
import re
import shutil
import tempfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Protocol, runtime_checkable

from jinja2 import StrictUndefined, Template

from tightframe.errors import SavedError, SettingsError, TightframeError
from tightframe.files import write_text
from tightframe.models.names import BUILDER, folder_of, short_name
from tightframe.report.fields import TABLES, fields
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

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> object:
        """Make the repository; ``str`` of what is returned is its address."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> object:
        """Send the files of a folder in one commit."""
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
    """Send a tuned model to the Hugging Face hub, with a model card.

    The row holds ``repository`` and ``address``, ``files`` (how many) and ``bytes`` sent.

    Args:
        folder: The saved folder.
        repo_id: Name of the repository, USER/NAME; it is made if there is none.
        private: Whether a new repository is hidden from others; by default as the account has it.
        license: The hub's name of a license (apache-2.0, mit, …), for a model card that is written here.
        message: Message of the commit.
        api: Client of the hub; by default ``huggingface_hub.HfApi()``, with the token that ``hf auth login`` kept.

    Raises:
        SavedError: no saved folder, or a damaged one.
        SettingsError: ``repo_id`` can't be the name of a repository.
        PushFailed: the hub can't be reached, or refuses.
    """
    folder = Path(folder)
    description = checkpoint.read(folder)
    _check_name(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        notes = _staged(folder, staged, description)
        if not (staged / CARD).is_file():
            write_text(staged / CARD, card(description, repo_id, license))
            notes += [] if license else ["the card states no license: choose one with --license, or edit it on the hub"]
        sizes = [file.stat().st_size for file in staged.iterdir()]
        address = _sent(staged, repo_id, private, message, api)
    row: Row = {"repository": repo_id, "files": len(sizes), "bytes": sum(sizes), "address": address}
    return Result("push", [row], {"folder": str(folder), "repository": repo_id}, notes)


def card(description: Description, repo_id: str, license: str | None = None) -> str:
    """A model card in the hub's form: the classes, what was measured, and how to load the model."""
    from huggingface_hub import ModelCardData

    uri = str(description.backbone["uri"])
    header = ModelCardData(license=license, library_name="tightframe", pipeline_tag="image-classification")
    template = resources.files("tightframe.deploy").joinpath("card.md").read_text(encoding="utf-8")
    return Template(template, trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True).render(
        header=header.to_yaml(),
        name=repo_id.partition("/")[2],
        base=short_name(uri),
        uri=uri,
        on_hub=_sendable(uri) == uri,
        told=description,
        listed=LISTED,
        description=DESCRIPTION,
        measured=_measured(description.metrics),
        package="'tightframe[lora]'" if method_named(description.method).adapt else "tightframe",
        repo_id=repo_id,
        license=license,
        plain=_plain,
    )


def _measured(metrics: Row) -> list[tuple[str, str]]:
    """What was measured when the model was tuned, with titles, as the terminal spells it."""
    try:
        shown = fields(TABLES["tune"].columns)
        return [(field.title, field.told(metrics)) for field in shown if field.told_in(metrics)]
    except (TypeError, ValueError) as error:
        raise SavedError(f"{DESCRIPTION} has metrics that are no numbers ({error}); tune again") from error


def _staged(folder: Path, staged: Path, description: Description) -> list[str]:
    """Copy what is to be sent, the description with no path of this machine in it; notes on what that changed."""
    for name in checkpoint.files(description.method):
        if not (folder / name).is_file():
            raise SavedError(f"{folder} holds no {name}; give the whole folder that `tightframe tune --out` wrote")
        shutil.copyfile(folder / name, staged / name)
    if (folder / CARD).is_file():
        shutil.copyfile(folder / CARD, staged / CARD)
    uri = description.backbone["uri"]
    sent = _sendable(uri)
    files = {name: known for name, known in description.files.items() if (staged / name).is_file()}
    content = asdict(description) | {"backbone": description.backbone | {"uri": sent}, "files": files}
    write_text(staged / DESCRIPTION, checkpoint.sealed(content))
    if sent == uri:
        return []
    return [f"the base model is called {sent} there: whoever loads it has to have it, and name it (--model)"]


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


def _sent(staged: Path, repo_id: str, private: bool | None, message: str, api: Hub | None) -> str:
    """Make the repository and send the files; its address."""
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=str(staged), commit_message=message)
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
