"""Pushing: three files and no more, through the hub's own interface, here a stand-in that only remembers."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import huggingface_hub
import peft  # noqa: F401 - it imports from the hub, which tests replace
import pytest
import yaml

from tightframe import TrainConfig, load_tuned, push_to_hub
from tightframe.deploy.hub import Hub, PushFailed, _sendable, card
from tightframe.errors import SavedError, SettingsError
from tightframe.tuning import checkpoint

PLAN = TrainConfig(epochs=1, lr=(0.05,), weight_decay=(1e-4,))
REPO = "ann/digits-scl"


class Shelf:
    """What the hub would hold."""

    def __init__(self):
        self.repositories, self.files, self.messages = {}, {}, []

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        if repo_id in self.repositories and not exist_ok:
            raise FileExistsError(repo_id)
        self.repositories.setdefault(repo_id, private)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert repo_id in self.repositories
        self.messages.append(commit_message)
        found = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        self.files |= {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in found}


class Closed(Shelf):
    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        raise ConnectionError("401 Unauthorized\n for url")


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("a test must not talk to the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", refused)


@pytest.fixture(scope="module")
def saved(tuned_by):
    return tuned_by("scl")[1]


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "net")


def test_three_files_are_sent_and_nothing_else(folder):
    (folder / "private.txt").write_text("mine")
    (folder / "below").mkdir()
    (folder / "below" / "tuned.safetensors").write_bytes(b"no")
    shelf = Shelf()
    (row,) = push_to_hub(folder, REPO, private=True, api=shelf).rows
    assert set(shelf.files) == {"tightframe.json", "tuned.safetensors", "README.md"}
    assert shelf.files["tuned.safetensors"] == (folder / "tuned.safetensors").read_bytes()
    assert shelf.repositories == {REPO: True}
    assert row["address"] == f"https://hub.example/{REPO}"
    assert row["files"] == 3
    assert row["bytes"] == sum(map(len, shelf.files.values()))
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("form", ["local-dir:", "open_clip/local-dir:", "hf/"])
def test_no_folder_of_this_machine_is_told(form, tmp_path):
    (tmp_path / "mine").mkdir()
    assert _sendable(f"{form}{tmp_path / 'mine'}") == f"{form}mine"
    assert _sendable("hf/google/vit") == "hf/google/vit"


def test_of_lora_the_files_of_peft_are_sent(data, tuned_by, names, model_folders, tmp_path):
    tuned, folder = tuned_by("lora")
    shutil.copytree(folder, tmp_path / "net")
    shelf = Shelf()
    (row,) = push_to_hub(tmp_path / "net", REPO, api=shelf).rows
    trained = {"adapter_config.json", "adapter_model.safetensors"}
    assert set(shelf.files) == {"tightframe.json", "README.md"} | trained
    assert row["files"] == 4
    assert "pip install 'tightframe[lora]'" in shelf.files["README.md"].decode()
    assert not any(str(model_folders["wide"].parent).encode() in content for content in shelf.files.values())
    for name, content in shelf.files.items():
        (tmp_path / name).write_bytes(content)
    again = load_tuned(tmp_path, names["wide"])
    assert (again.probabilities(data.test) == tuned.probabilities(data.test)).all()
    (tmp_path / "net" / "adapter_config.json").unlink()
    with pytest.raises(SavedError, match=r"holds no adapter_config\.json; give the whole folder"):
        push_to_hub(tmp_path / "net", REPO, api=Shelf())


def test_what_was_sent_loads_with_the_base_model_named(folder, names, tmp_path):
    shelf = Shelf()
    found = push_to_hub(folder, REPO, api=shelf)
    for name, content in shelf.files.items():
        (tmp_path / name).write_bytes(content)
    assert load_tuned(tmp_path, names["wide"]).classes == ("5", "6", "7", "8", "9")
    assert "local-dir:wide" in found.notes[0]


def test_no_path_of_this_machine_is_sent(folder, model_folders):
    shelf = Shelf()
    push_to_hub(folder, REPO, api=shelf)
    for content in shelf.files.values():
        assert str(model_folders["wide"].parent).encode() not in content
        assert b"/tmp" not in content
    assert json.loads(shelf.files["tightframe.json"])["backbone"]["uri"] == "local-dir:wide"


def test_pushing_again_is_a_second_commit(folder):
    shelf = Shelf()
    push_to_hub(folder, REPO, api=shelf)
    push_to_hub(folder, REPO, message="better", api=shelf)
    assert shelf.messages == ["A model tuned with tightframe", "better"]


def test_the_card_says_what_it_is_and_how_to_load_it(folder):
    shelf = Shelf()
    found = push_to_hub(folder, REPO, license="mit", api=shelf)
    text = shelf.files["README.md"].decode()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"license": "mit", "library_name": "tightframe", "pipeline_tag": "image-classification"}
    for name in ("5", "6", "7", "8", "9"):
        assert f"\n- {name}\n" in text
    assert "| Test accuracy |" in text
    assert f"hf download {REPO}" in text
    assert f'load_tuned(snapshot_download("{REPO}"), model="…")' in text
    assert not any("license" in note for note in found.notes)


def test_the_license_is_left_to_the_author(folder):
    shelf = Shelf()
    found = push_to_hub(folder, REPO, api=shelf)
    text = shelf.files["README.md"].decode()
    assert "license" not in yaml.safe_load(text.split("---")[1])
    assert any("license" in note for note in found.notes)


def test_the_authors_own_card_is_kept(folder):
    (folder / "README.md").write_text("# Mine\n")
    shelf = Shelf()
    push_to_hub(folder, REPO, api=shelf)
    assert shelf.files["README.md"] == b"# Mine\n"


def test_a_model_of_the_hub_needs_no_naming(saved):
    description = checkpoint.read(saved)
    description.backbone["uri"] = "timm/resnet18"
    text = card(description, REPO)
    assert "The base model is `timm/resnet18`" in text
    assert f'load_tuned(snapshot_download("{REPO}"))' in text
    assert "--model" not in text


def test_class_names_can_not_drive_the_card(saved):
    description = checkpoint.read(saved)
    strange = ["<script>x</script>", "a | b", "[x](javascript:1)", "line\n# heading", "`code`"]
    description.classes[:] = strange + [f"class {index}" for index in range(60)]
    text = card(description, REPO)
    assert "<script>" not in text
    assert "[x](" not in text
    assert "\n# heading" not in text
    assert "- and 15 more" in text


@pytest.mark.parametrize("repo_id", ["", "nobody", "a/b/c", "ann/..", "ann/with space", "ann/x.git"])
def test_what_can_not_be_a_repository(folder, repo_id):
    with pytest.raises(SettingsError, match="USER/NAME"):
        push_to_hub(folder, repo_id, api=Shelf())


def test_a_hub_that_refuses_is_said_in_words(folder):
    with pytest.raises(PushFailed, match=r"401 Unauthorized for url\)\. Log in with `hf auth login`"):
        push_to_hub(folder, REPO, api=Closed())


def test_the_real_client_is_the_default(folder, monkeypatch):
    shelf = Shelf()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: shelf)
    push_to_hub(folder, REPO)
    assert shelf.repositories == {REPO: None}


def test_half_a_folder(folder):
    (folder / "tuned.safetensors").unlink()
    with pytest.raises(SavedError, match="give the whole folder"):
        push_to_hub(folder, REPO, api=Shelf())


def test_a_folder_that_is_no_saved_model(tmp_path, folder, reseal):
    with pytest.raises(SavedError, match=r"tightframe\.json"):
        push_to_hub(tmp_path / "nowhere", REPO, api=Shelf())
    reseal(folder, metrics={"test_accuracy": "good"})
    with pytest.raises(SavedError, match="no numbers"):
        push_to_hub(folder, REPO, api=Shelf())


def test_the_stand_in_has_the_interface_of_the_real_one():
    assert isinstance(Shelf(), Hub)
    real = huggingface_hub.hf_api.HfApi
    inspect.signature(real.create_repo).bind(None, REPO, private=None, exist_ok=True)
    inspect.signature(real.upload_folder).bind(None, repo_id=REPO, folder_path="x", commit_message="m")
    for name in ("create_repo", "upload_folder"):
        stated, given = inspect.signature(getattr(Hub, name)), inspect.signature(getattr(Shelf, name))
        assert list(stated.parameters) == list(given.parameters)
