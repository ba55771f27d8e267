"""The arguments of every command, and their help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich_argparse import RawDescriptionRichHelpFormatter

from tightframe.cli import commands as run

DATA_HELP = "a folder with train/CLASS/* and test/CLASS/*, or with CLASS/* only, a table filename,label, or the digits"
MODEL_HELP = """\
timm/NAME, torchvision/NAME, open_clip/NAME/PRETRAINED (the image encoder) or hf/NAME (transformers), with weights from
the hub; local-dir:PATH, open_clip/local-dir:PATH or hf/PATH, a folder as timm, open_clip or transformers writes it; or
PATH.py:FUNCTION[:ARGUMENT], your own function that returns an nn.Module; this last form RUNS THE FILE, so name only
files you trust."""
RATES = "(default: 0.05 0.01 0.002 0.0005; transformers: 0.01 0.001 0.0002; from a probe: 0.002 0.0005 0.0001 0.00002)"
DECAYS = "(default: 0.0001 0.0005; for transformers 0.0001 0)"
DEVICE_HELP = "auto (default), cpu, cuda, cuda:1, …"
METHOD_HELP = "linear, layer, scl, full, bitfit, norm, lp-ft or lora"
LAYER_HELP = "the block to tune (default: %(default)s)"
BY_HELP = "column to order by: expected_accuracy (default), probe_accuracy, knn_accuracy, nc1, logme or another score"
LOG_HELP = "tell every epoch also to tensorboard, wandb or mlflow; log.jsonl in the result's folder is always kept"
SAVED_HELP = "what `tightframe tune --out DIR` wrote"
Command = Callable[[argparse.Namespace], None]


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        "tightframe",
        allow_abbrev=False,
        description="Which pretrained model, which layer, and how to fine-tune it, answered from neural collapse on\n"
        "your own images.",
        epilog="Start with `tightframe transfer`: the whole job, offline, on built-in digits, in about a minute.",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"tightframe {version('tightframe')}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _transfer(commands)
    _measure(commands)
    _layers(commands)
    _fewshot(commands)
    _rank(commands)
    _tune(commands)
    _pretrain(commands)
    _study(commands)
    _predict(commands)
    _evaluate(commands)
    _merge(commands)
    _export(commands)
    _push(commands)
    return top


def _command(commands: Any, name: str, run: Command, summary: str, example: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"Example: {example}",
        allow_abbrev=False,
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    made.set_defaults(command=run)
    made.add_argument(
        "--json", metavar="FILE", type=_writable, help="also write the rows, settings and versions to FILE"
    )
    return made


def _writable(name: str) -> Path:
    """A file that can be made: said at once, not after an hour's work."""
    path = Path(name)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name} can't be written; name a file in a folder that exists")
    return path


def _transfer(commands: Any) -> None:
    command = _command(
        commands,
        "transfer",
        run.transfer,
        "the main job: rank models, choose one and a layer, tune, save, report",
        "tightframe transfer flowers --models timm/resnet18 timm/mobilenetv3_small_100 --out runs/flowers",
    )
    command.add_argument("data", metavar="DATA", nargs="?", default="digits", help=DATA_HELP + " (default)")
    command.add_argument("--models", metavar="M", nargs="+", help=MODEL_HELP + " The digits bring their own.")
    command.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("runs/transfer"),
        help="folder for all of it (default: %(default)s)",
    )
    command.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=["linear", "layer", "scl", "full"],
        help=f"any of {METHOD_HELP} (default: the first four)",
    )
    command.add_argument("--block", default="auto", metavar="NAME", help=LAYER_HELP)
    command.add_argument("--sort-by", metavar="SCORE", default="expected_accuracy", help=BY_HELP)
    _plan_options(command)
    _run_options(command, cache=False)


def _measure(commands: Any) -> None:
    command = _command(
        commands,
        "measure",
        run.measure,
        "how collapsed every layer of a model is on your images",
        "tightframe measure flowers --model timm/resnet18",
    )
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--model", metavar="M", required=True, help=MODEL_HELP)
    command.add_argument(
        "--weighting",
        default="class",
        choices=("class", "sample"),
        help="of classes in the spread between them (default: class)",
    )
    _run_options(command)


def _layers(commands: Any) -> None:
    command = _command(
        commands,
        "layers",
        run.layers,
        "what four simple classifiers read off every layer",
        "tightframe layers flowers --model timm/resnet18",
    )
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--model", metavar="M", required=True, help=MODEL_HELP)
    _run_options(command)


def _fewshot(commands: Any) -> None:
    command = _command(
        commands,
        "fewshot",
        run.fewshot,
        "how well a model tells new classes apart from a few images of each",
        "tightframe fewshot flowers --model timm/resnet18 --ways 5 --shots 1,5",
    )
    command.add_argument(
        "data", metavar="DATA", help=DATA_HELP + "; all images, of train and test together: episodes draw their own"
    )
    command.add_argument("--model", metavar="M", required=True, help=MODEL_HELP)
    group = command.add_argument_group("episodes")
    group.add_argument("--ways", type=int, metavar="K", default=5, help="classes an episode (default: %(default)s)")
    group.add_argument(
        "--shots",
        type=_whole_numbers,
        metavar="N,N",
        default=(1, 5),
        help="images a class to learn from; one or more numbers (default: 1,5)",
    )
    group.add_argument("--queries", type=int, metavar="N", default=15, help="images a class to judge (default: 15)")
    group.add_argument("--episodes", type=int, metavar="N", default=600, help="how many (default: %(default)s)")
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="draw from these classes only: a file, one name a line, or cifar-fs:test, cifar-fs:val, cifar-fs:train",
    )
    _reading_options(command.add_argument_group("images"))
    _model_options(command)
    _pass_options(command, cache=True)


def _whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers between commas."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers; write one as 1,5") from None


def _rank(commands: Any) -> None:
    command = _command(
        commands,
        "rank",
        run.rank,
        "which model suits your images",
        "tightframe rank flowers --models timm/resnet18 torchvision/densenet121 local-dir:mine",
    )
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--models", metavar="M", nargs="+", required=True, help=MODEL_HELP)
    command.add_argument("--sort-by", metavar="SCORE", default="expected_accuracy", help=BY_HELP)
    command.add_argument(
        "--truth",
        metavar="FILE",
        help="also say how well every score ranks, against accuracies in a CSV file (model,accuracy), or against the "
        "probe on the test images (the word probe)",
    )
    command.add_argument(
        "--time-limit",
        type=float,
        metavar="MINUTES",
        help="let models race: images go only to those that can still win, about a third of all forward passes",
    )
    _run_options(command)


def _tune(commands: Any) -> None:
    command = _command(
        commands,
        "tune",
        run.tune,
        "fine-tune a model and save what was trained",
        "tightframe tune flowers --model timm/resnet18 --out runs/flowers-scl",
    )
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--model", metavar="M", required=True, help=MODEL_HELP)
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--method",
        metavar="NAME",
        default="scl",
        help=f"{METHOD_HELP} (default: %(default)s)",
    )
    which.add_argument(
        "--compare", metavar="NAMES", help="several methods, as linear,scl,full: each saved in DIR/NAME, in one table"
    )
    command.add_argument("--block", default="auto", metavar="NAME", help=LAYER_HELP)
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the tuned model")
    command.add_argument("--resume", action="store_true", help="go on with what an earlier run left in DIR")
    _plan_options(command)
    _run_options(command)


def _pretrain(commands: Any) -> None:
    command = _command(
        commands,
        "pretrain",
        run.pretrain,
        "train a model from random weights, and follow its collapse epoch by epoch",
        "tightframe pretrain cifar10 --arch cifar_resnet20 --loss mse --projector 1 --out runs/mse",
    )
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the model")
    command.add_argument("--resume", action="store_true", help="go on with what an earlier run left in DIR")
    group = command.add_argument_group("model")
    group.add_argument(
        "--arch",
        metavar="NAME",
        default="cifar_resnet20",
        help="cifar_resnet8, 20, 32, 44, 56, 110 (thin), cifar_resnet18, 50, cifar_vit, or any of timm's "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--projector",
        type=int,
        metavar="N",
        default=0,
        help="hidden layers of a projection head, dropped in the end: 0 (default) to 3",
    )
    group.add_argument("--input-size", type=int, metavar="PX", help="side of the images (default: the model's own)")
    group = command.add_argument_group("training")
    group.add_argument(
        "--loss",
        metavar="NAME",
        default="cross-entropy",
        help="cross-entropy (default), mse, label-smoothing, focal or supcon",
    )
    group.add_argument(
        "--augment",
        type=float,
        metavar="S",
        default=0.25,
        help="strength of crops, flips and colors: 0 (none) to 1 (default: %(default)s)",
    )
    group.add_argument("--epochs", type=int, metavar="N", default=200, help="(default: %(default)s)")
    group.add_argument("--lr", type=float, metavar="R", default=0.1, help="at the start (default: %(default)s)")
    group.add_argument(
        "--weight-decay", type=float, metavar="D", default=5e-4, help="of weights (default: %(default)s)"
    )
    group.add_argument("--batch-size", type=int, metavar="N", default=128, help="images a step (default: 128)")
    group.add_argument(
        "--grad-accum-steps", type=int, metavar="N", default=1, help="run each batch in N parts (default: %(default)s)"
    )
    group.add_argument("--log-to", dest="log", nargs="+", metavar="WHERE", default=[], help=LOG_HELP)
    _data_options(command)
    group = command.add_argument_group("running")
    _machine_options(group)


def _study(commands: Any) -> None:
    command = _command(
        commands,
        "study",
        run.study,
        "a study of the paper by name, with what it says of the paper's claim",
        "tightframe study layers --models timm/resnet18 --data flowers --out runs/layers",
    )
    command.add_argument("name", metavar="NAME", help="one of those that `tightframe study list` shows")
    command.add_argument(
        "--scale",
        metavar="S",
        default="small",
        help="small (default; minutes on a laptop), medium (minutes on a GPU; source-collapse, projection-head, "
        "augmentation and scarce-data have it) or paper (the paper's own, hours on a GPU; wants --data)",
    )
    command.add_argument(
        "--data",
        metavar="DATA",
        nargs="+",
        default=[],
        help="datasets with test images, each " + DATA_HELP + ". Studies that pre-train do so on the first and "
        "transfer to the others (default: the built-in digits)",
    )
    command.add_argument(
        "--models", metavar="M", nargs="+", default=[], help=MODEL_HELP + " Default: small ones made from the digits."
    )
    command.add_argument("--seeds", dest="repeats", type=int, metavar="N", help="how many (default: the scale's)")
    command.add_argument("--epochs", type=int, metavar="N", help="of pre-training or tuning (default: the scale's)")
    command.add_argument(
        "--max-per-class", type=int, metavar="N", help="at most N training images a class of every set (default: all)"
    )
    command.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder for the result with these settings; the same command goes on where it was stopped, and runs at "
        "once share the work (default: runs/study-NAME)",
    )
    _model_options(command)
    _pass_options(command, cache=True)


def _predict(commands: Any) -> None:
    command = _command(
        commands,
        "predict",
        run.predict,
        "what a tuned model says of images",
        "tightframe predict runs/flowers-scl new/*.jpg",
    )
    command.add_argument("folder", metavar="DIR", type=Path, help="what `tightframe tune --out DIR` wrote")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    command.add_argument("--device", metavar="NAME", default="auto", help=DEVICE_HELP)
    command.add_argument("--model", metavar="M", help="the base model, if its files moved or it is your own builder")


def _evaluate(commands: Any) -> None:
    command = _command(
        commands,
        "evaluate",
        run.evaluate,
        "how good a tuned model is on labeled images, class by class",
        "tightframe evaluate runs/flowers-scl flowers",
    )
    _saved_options(command)
    command.add_argument("data", metavar="DATA", help=DATA_HELP + "; of classes that it was tuned on")
    command.add_argument("--device", metavar="NAME", default="auto", help=DEVICE_HELP)
    _judged_options(command)


def _merge(commands: Any) -> None:
    command = _command(
        commands,
        "merge",
        run.merge,
        "a tuned model as a plain one, which timm loads without Tightframe",
        "tightframe merge runs/flowers-full --out flowers-net",
    )
    _saved_options(command)
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="a new folder, in timm's layout")


def _export(commands: Any) -> None:
    command = _command(
        commands,
        "export",
        run.export,
        "a tuned model as one ONNX file, checked against ONNX Runtime",
        "tightframe export runs/flowers-scl --onnx flowers.onnx --data flowers",
    )
    _saved_options(command)
    command.add_argument("--onnx", metavar="FILE", type=_writable, required=True, help="the file to write")
    command.add_argument("--data", metavar="DATA", help="images to check it on (default: made-up ones)")
    command.add_argument(
        "--pixels",
        choices=("uint8", "float32"),
        default="uint8",
        help="what it takes: bytes (default), or numbers from 0 to 1",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="P",
        default=1e-4,
        help="largest difference of a probability that is let pass (default: %(default)s)",
    )
    _judged_options(command)


def _push(commands: Any) -> None:
    command = _command(
        commands,
        "push",
        run.push,
        "send a tuned model to the Hugging Face hub, with a model card",
        "tightframe push runs/flowers-scl ann/flowers-scl",
    )
    command.add_argument("folder", metavar="DIR", type=Path, help=SAVED_HELP)
    command.add_argument("repository", metavar="REPO", help="USER/NAME, made if it is not there")
    command.add_argument("--private", action="store_true", help="hide the repository from others, if it is made now")
    command.add_argument("--license", metavar="NAME", help="for the card: apache-2.0, mit, … (default: none stated)")


def _saved_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="DIR", type=Path, help=SAVED_HELP)
    command.add_argument("--model", metavar="M", help="the base model, if its files moved or it is your own builder")


def _judged_options(command: argparse.ArgumentParser) -> None:
    """Which of the images in DATA a tuned model is judged on."""
    group = command.add_argument_group("images")
    group.add_argument(
        "--test-share",
        type=float,
        metavar="S",
        default=0.25,
        help="the share that `tune` held out where there is no test folder (default: 0.25)",
    )
    group.add_argument("--seed", type=int, metavar="N", default=0, help="by which it was held out (default: 0)")
    group.add_argument("--all", action="store_true", help="take all images, where it was trained on none of them")
    group.add_argument("--skip-bad", action="store_true", help="go on without files that can't be read, and count them")


def _run_options(command: argparse.ArgumentParser, cache: bool = True) -> None:
    """Which images, which models and how to run them: the same for every command that does."""
    _data_options(command)
    _model_options(command)
    _pass_options(command, cache)


def _data_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("images")
    group.add_argument(
        "--max-per-class", type=int, metavar="N", help="at most N training images a class (default: all)"
    )
    group.add_argument(
        "--test-share",
        type=float,
        metavar="S",
        default=0.25,
        help="held out where there is no test folder (default: 0.25)",
    )
    _reading_options(group)


def _reading_options(group: Any) -> None:
    group.add_argument("--skip-bad", action="store_true", help="go on without files that can't be read, and count them")
    group.add_argument("--seed", type=int, metavar="N", default=0, help="of every random choice (default: %(default)s)")


def _model_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("models")
    group.add_argument("--no-pretrained", action="store_true", help="random weights in place of pretrained ones")
    group.add_argument("--layers", nargs="+", metavar="NAME", help="modules to read, in place of the blocks found")
    group.add_argument("--input-size", type=int, nargs="+", metavar="PX", help="side, or height and width")
    group.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of the colors, in 0 … 1")
    group.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="of the colors, in 0 … 1")


def _pass_options(command: argparse.ArgumentParser, cache: bool) -> None:
    group = command.add_argument_group("running")
    group.add_argument(
        "--pool", metavar="NAME", default="auto", help="tokens: auto (as the model's head, default), mean or cls"
    )
    _machine_options(group)
    if cache:
        group.add_argument(
            "--feature-cache",
            metavar="DIR",
            type=Path,
            default=os.environ.get("TIGHTFRAME_CACHE"),
            help="keep features in DIR and reuse them (default: $TIGHTFRAME_CACHE, else not kept)",
        )


def _machine_options(group: Any) -> None:
    group.add_argument("--precision", metavar="NAME", default="auto", help="auto (default), float32 or bfloat16")
    group.add_argument("--device", metavar="NAME", default="auto", help=DEVICE_HELP)


def _plan_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("training")
    group.add_argument(
        "--epochs", type=int, metavar="N", default=30, help="of the final training (default: %(default)s)"
    )
    group.add_argument("--search-epochs", type=int, metavar="N", help="of each trial (default: a third of --epochs)")
    group.add_argument("--lr", type=float, nargs="+", metavar="R", help="start rates to try " + RATES)
    group.add_argument("--weight-decay", type=float, nargs="+", metavar="D", help="weight decays to try " + DECAYS)
    group.add_argument(
        "--align", metavar="HOW", default="pad", help="of scl: pad (default), concat or project the block's features"
    )
    group.add_argument(
        "--skip-scale",
        metavar="HOW",
        default="none",
        help="of scl: take them as they are (none, default), or bring them to the spread of the last ones",
    )
    group.add_argument(
        "--head-init",
        metavar="HEAD",
        default="auto",
        help="of the new head: zeros, or probe (fitted to the features; batch norms then keep their statistics); auto "
        "(default) is probe for lp-ft and zeros for all others",
    )
    group.add_argument(
        "--prefix-cache-gb",
        type=float,
        metavar="GB",
        default=8.0,
        help="disk for what goes into the block (default: 8; 0: none)",
    )
    group.add_argument("--batch-size", type=int, default=32, metavar="N", help="images a step (default: %(default)s)")
    group.add_argument(
        "--augment",
        metavar="HOW",
        default="none",
        help="none (default), flip (left and right), crop (and flip) or randaugment (and both)",
    )
    group.add_argument(
        "--views",
        type=int,
        metavar="N",
        default=5,
        help="of each image, itself among them, where they are kept: with --augment and one tuned block or none "
        "(default: %(default)s); else every epoch draws its own",
    )
    group.add_argument("--class-weights", default="none", help="balanced: rare classes weigh as much as frequent ones")
    group.add_argument("--label-smoothing", type=float, metavar="S", default=0.0, help="label smoothing (default: 0)")
    group.add_argument(
        "--mixup-alpha", type=float, metavar="A", default=0.0, help="mix images by Beta(A, A) (default: 0, not)"
    )
    group.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="hold out a fifth of the training images to the end; stop after N epochs in which their loss is no "
        "lower, and go back to the best epoch (default: train on all images, to the end)",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        metavar="MINUTES",
        help="of each tuning, about: fewer rates and epochs if need be; --resume starts the clock anew",
    )
    group.add_argument(
        "--grad-accum-steps",
        type=int,
        metavar="N",
        default=1,
        help="run each batch in N parts, which takes less memory (default: 1)",
    )
    group.add_argument(
        "--ema-decay",
        type=float,
        metavar="D",
        default=0.0,
        help="keep an exponential moving average of the weights with decay D, such as 0.99 (default: 0, not)",
    )
    group.add_argument(
        "--log-to",
        dest="log",
        nargs="+",
        metavar="WHERE",
        default=[],
        help=LOG_HELP,
    )
