"""Commands killed at random moments and started again: the result has to be the one of a run left alone, to the bit.

    python benchmarks/moments.py [COMMAND ...] [--kills 100]

A process runs the command, is killed (SIGKILL) at a random moment of the time that a run left alone takes, and is
started again, until it was killed so often; then it runs to its end. Compared are the rows, notes and settings of
``--json``, every tensor and every JSON file in ``--out``; left out is what tells time: keys with ``seconds``, which
checksums and logs of epochs hold besides.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tightframe import load_images

SHORT = ["--epochs", "3", "--batch-size", "8"]
COMMANDS: dict[str, list[str]] = {
    "transfer": [
        *("transfer", "{data}", "--models", "{model}", "--methods", "discriminant", "linear", "scl", "auto"),
        *(*SHORT, "--lr", "0.05", "0.01", "--recipe", "paper", "--folds", "2"),
    ],
    "rank": ["rank", "{data}", "--models", "{model}", "{other}", "--time-limit", "60", "--feature-cache", "{out}"],
    "tune": ["tune", "{data}", "--model", "{model}", "--method", "full", *SHORT, "--lr", "0.05", "--resume"],
    "pretrain": ["pretrain", "{data}", "--arch", "cifar_resnet20", *SHORT, "--resume"],
    "study": ["study", "layers", "--data", "{data}", "--models", "{model}", "--seeds", "1"],
    "check": ["check", "{data}", "--model", "{model}", "--feature-cache", "{out}/kept", "--csv", "{out}.csv"],
}
WITHOUT_OUT = ("rank",)
UNCOMPARED = (".html", ".png", ".svg", ".jsonl", ".lock", ".csv", ".md")


def world(folder: Path) -> dict[str, str]:
    """Small images and models, made once."""
    data = load_images("digits:5-9", max_per_class=8).train
    for index, label in enumerate(data.labels.tolist()):
        place = folder / "data" / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        image: Image.Image = data[index]
        image.resize((32, 32)).save(place / f"{index}.png")
    told = {"data": str(folder / "data")}
    for name, channels in {"model": (8, 8, 16, 16), "other": (4, 4, 8, 8)}.items():
        torch.manual_seed(0)
        arguments = {"layers": [1, 1, 1, 1], "channels": list(channels)}
        module = timm.create_model("resnet18", num_classes=3, **arguments)
        wants = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
        config = {"architecture": "resnet18", "num_classes": 3, "model_args": arguments, "pretrained_cfg": wants}
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(module.state_dict(), str(folder / name / "model.safetensors"))
        told[name] = f"local-dir:{folder / name}"
    return told


def typed(command: str, told: dict[str, str], out: Path) -> list[str]:
    """The command as typed, with its output in ``out``."""
    words = [word.format(**told, out=out) for word in COMMANDS[command]]
    where = [] if command in WITHOUT_OUT else ["--out", str(out)]
    return [*words, *where, "--json", f"{out}.json"]


def run(arguments: list[str], kill_after: float | None = None) -> int | None:
    """Run a command as a process of its own; its exit status, or ``None`` if it was killed before its end."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "tightframe", *arguments], **quiet) as running:
        try:
            return running.wait(kill_after)
        except subprocess.TimeoutExpired:
            running.kill()
            return None


def result(out: Path) -> dict[str, str]:
    """Hashes of all that a command left, by name, without what tells time."""
    found = {}
    beside = [
        place for place in (out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.csv")) if place.exists()
    ]
    for path in (*_files(out), *beside):
        name = path.name if path in beside else str(path.relative_to(out))
        if path.suffix == ".safetensors":
            content = repr([(key, value.dtype, value.tolist()) for key, value in sorted(load_file(path).items())])
        elif path.suffix == ".json":
            content = json.dumps(timeless(json.loads(path.read_text())), sort_keys=True)
        else:
            content = path.read_bytes().hex()
        found[name] = sha256(content.replace(str(out), "OUT").encode()).hexdigest()
    return found


def _files(out: Path) -> Iterator[Path]:
    """All but pages and charts, which show seconds, and logs and locks."""
    for path in sorted(out.rglob("*")) if out.is_dir() else ():
        hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
        if (
            path.is_file()
            and not hidden
            and path.suffix not in (".html", ".png", ".svg", ".jsonl", ".lock", ".csv", ".md")
        ):
            yield path


def timeless(told: Any) -> Any:
    """JSON without what tells time."""
    if isinstance(told, dict):
        out = ("checksum", "files", "versions")
        return {key: timeless(value) for key, value in told.items() if "seconds" not in key and key not in out}
    if isinstance(told, list):
        return [timeless(one) for one in told]
    return re.sub(r"\d+(\.\d+)? m?s\b", "TIME", told) if isinstance(told, str) else told


def killed(command: str, told: dict[str, str], folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill ``command`` so often, then compare what it left with what a run left alone leaves."""
    luck, started = random.Random(seed), time.perf_counter()
    alone, again = folder / command / "alone" / "run", folder / command / "again" / "run"
    for place in (alone, again):
        place.parent.mkdir(parents=True)
    assert run(typed(command, told, alone)) == 0, f"{command} fails by itself"
    takes, done, early = time.perf_counter() - started, 0, 0
    while done < kills:
        status = run(typed(command, told, again), luck.uniform(0, 1.1 * takes))
        if status is None:
            done += 1
        else:  # it came to its end: start over, so that kills hit every moment
            assert status == 0, f"{command} ended in {status} after {done} kills"
            early += 1
            if different := _different(alone, again):
                raise AssertionError(f"{command}: {different} differ after {done} kills")
            shutil.rmtree(again.parent)
            again.parent.mkdir()
    assert run(typed(command, told, again)) == 0, f"{command} does not go on after {done} kills"
    if different := _different(alone, again):
        raise AssertionError(f"{command}: {different} differ after {done} kills")
    return {
        "command": command,
        "kills": done,
        "ends": early + 1,
        "takes_s": round(takes, 1),
        "files": len(result(alone)),
    }


def _different(alone: Path, again: Path) -> list[str]:
    one, other = result(alone), result(again)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--kills", type=int, default=100)
    asked, failed = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as place:
        told = world(Path(place))
        for command in asked.commands:
            try:
                print(json.dumps(killed(command, told, Path(place), asked.kills)), flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{command}: {error}", file=sys.stderr, flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
