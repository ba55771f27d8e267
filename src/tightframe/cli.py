"""The command line: arguments in, a job, a table and what to do next out. No logic of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich_argparse import RawDescriptionRichHelpFormatter

from tightframe.errors import SettingsError, TightframeError

DATA_HELP = "a folder with train/CLASS/* and test/CLASS/*, or with CLASS/* only, or the built-in digits"
MODEL_HELP = """\
timm/NAME, torchvision/NAME (weights from the hub), local-dir:PATH (timm's config.json and model.safetensors), or
PATH.py:FUNCTION[:ARGUMENT], your own function that returns an nn.Module. That form runs the file: name only files you
trust."""
Command = Callable[[argparse.Namespace], None]
out = Console()
err = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 it can't be done and why, 2 usage, 130 interrupted."""
    options = parser().parse_args(arguments)
    try:
        options.command(options)
    except TightframeError as error:
        err.print(f"[bold red]✗[/] {escape(str(error))}", highlight=False)
        return 1
    except KeyboardInterrupt:
        err.print("stopped; what was finished is kept where --out or --cache was given: run the same command to go on")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        "tightframe",
        allow_abbrev=False,
        description="Which pretrained network, which layer, and how to fine-tune it, answered from neural collapse on "
        "your own pictures.",
        epilog="Start with:  tightframe transfer          (offline, on the built-in digits, in a minute or two)",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"tightframe {version('tightframe')}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _transfer_command(commands)
    _measure_command(commands)
    _rank_command(commands)
    _tune_command(commands)
    _predict_command(commands)
    return top


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=RawDescriptionRichHelpFormatter
    )
    made.set_defaults(command=run)
    made.add_argument("--json", metavar="FILE", type=Path, help="also write the rows, settings and versions to FILE")
    return made


def _transfer_command(commands: Any) -> None:
    command = _command(
        commands,
        "transfer",
        run_transfer,
        "the main job: rank networks, choose one and a layer, tune, save, report",
    )
    command.add_argument("data", metavar="DATA", nargs="?", default="digits", help=DATA_HELP + " (default)")
    command.add_argument("--models", metavar="M", nargs="+", help=MODEL_HELP + " Digits bring their own.")
    command.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/transfer"), help="default: %(default)s")
    command.add_argument(
        "--methods", nargs="+", metavar="NAME", default=["linear", "layer", "scl", "full"], help="default: all four"
    )
    command.add_argument("--layer", default="auto", metavar="NAME", help="the block to tune (default: %(default)s)")
    command.add_argument("--by", default="probe_accuracy", help="probe_accuracy (default), nc1, h_score or logme")
    _plan_options(command)
    _data_options(command)
    _model_options(command)
    _pass_options(command, cache=False)


def _measure_command(commands: Any) -> None:
    command = _command(commands, "measure", run_measure, "how collapsed every layer of a network is on your pictures")
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--model", metavar="M", required=True, help=MODEL_HELP)
    command.add_argument("--weighting", default="class", choices=("class", "sample"), help="of classes in Σ_B")
    _data_options(command)
    _model_options(command)
    _pass_options(command)


def _rank_command(commands: Any) -> None:
    command = _command(commands, "rank", run_rank, "which network suits your pictures")
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--models", metavar="M", nargs="+", required=True, help=MODEL_HELP)
    command.add_argument("--by", default="probe_accuracy", help="probe_accuracy (default), nc1, h_score or logme")
    _data_options(command)
    _model_options(command)
    _pass_options(command)


def _tune_command(commands: Any) -> None:
    command = _command(commands, "tune", run_tune, "fine-tune a network and save what was trained")
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    command.add_argument("--model", metavar="M", required=True, help=MODEL_HELP)
    command.add_argument("--method", default="scl", help="linear, layer, scl or full (default: %(default)s)")
    command.add_argument("--layer", default="auto", metavar="NAME", help="the block to tune (default: %(default)s)")
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the tuned network")
    command.add_argument("--resume", action="store_true", help="go on with what an earlier run left in DIR")
    _plan_options(command)
    _data_options(command)
    _model_options(command)
    _pass_options(command)


def _predict_command(commands: Any) -> None:
    command = _command(commands, "predict", run_predict, "what a tuned network says of pictures")
    command.add_argument("folder", metavar="DIR", type=Path, help="what `tightframe tune --out DIR` wrote")
    command.add_argument("pictures", metavar="PICTURE", nargs="+", help="picture files")
    command.add_argument("--model", metavar="M", help="the base network, if its files moved or it is your own builder")


def _data_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("pictures")
    group.add_argument("--shots", type=int, metavar="N", help="at most N training pictures a class (default: all)")
    group.add_argument(
        "--test-share", type=float, metavar="S", default=0.25, help="held out where there is no test/ (default: .25)"
    )
    group.add_argument("--skip-bad", action="store_true", help="go on without files that can't be read, and count them")
    group.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")


def _model_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("networks")
    group.add_argument("--no-pretrained", action="store_true", help="random weights in place of pretrained ones")
    group.add_argument("--layers", nargs="+", metavar="NAME", help="modules to read, in place of the blocks found")
    group.add_argument("--input-size", type=int, nargs="+", metavar="PX", help="side, or height and width")
    group.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of the colours, in 0 … 1")
    group.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="of the colours, in 0 … 1")


def _pass_options(command: argparse.ArgumentParser, cache: bool = True) -> None:
    group = command.add_argument_group("running")
    group.add_argument("--pool", default="auto", help="tokens: auto (as the network's head, default), mean or cls")
    group.add_argument("--precision", default="auto", help="auto (default), float32 or bfloat16")
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    if cache:
        group.add_argument(
            "--cache",
            metavar="DIR",
            type=Path,
            default=os.environ.get("TIGHTFRAME_CACHE"),
            help="keep features in DIR and reuse them (default: $TIGHTFRAME_CACHE, else not kept)",
        )


def _plan_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=30, help="of the final training (default: %(default)s)")
    group.add_argument("--search-epochs", type=int, metavar="N", help="of each trial (default: a third of --epochs)")
    group.add_argument("--rates", type=float, nargs="+", metavar="R", help="start rates to try (default: see README)")
    group.add_argument(
        "--decays", type=float, nargs="+", metavar="D", help="weight decays to try (default: see README)"
    )
    group.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures a step (default: %(default)s)")


def run_transfer(options: argparse.Namespace) -> None:
    """``tightframe transfer``."""
    from tightframe.jobs import demo
    from tightframe.jobs.transfer import transfer
    from tightframe.report.columns import METHODS, RANKING

    with _progress() as progress:
        if options.models:
            data, models = _images(options, progress), options.models
        elif options.data in ("digits", demo.DOWNSTREAM):
            data = demo.downstream(options.shots, options.seed)
            models = demo.candidates(options.out.with_name(options.out.name + "-networks"), progress)
        else:
            raise SettingsError(f"no networks to choose from for {options.data}; name some with --models")
        run = transfer(
            data,
            models,
            out=options.out,
            methods=options.methods,
            layer=options.layer,
            by=options.by,
            plan=_plan(options),
            model_options=_network(options),
            **_running(options, cache=False),
            progress=progress,
        )
    _show("Networks", RANKING, run.ranking.rows, "probe_low", "probe_high")
    _show(f"Methods on {run.tuned.backbone.name}", METHODS, run.methods, "test_low", "test_high")
    _close(run.result, options.json)


def run_measure(options: argparse.Namespace) -> None:
    """``tightframe measure``."""
    from tightframe.jobs.measure import measure
    from tightframe.report.columns import LAYERS
    from tightframe.sources.backbones import load_backbone

    with _progress() as progress:
        data = _images(options, progress)
        backbone = load_backbone(options.model, **_network(options))
        found = measure(
            data, backbone, weighting=options.weighting, seed=options.seed, **_running(options), progress=progress
        )
    _show(f"{backbone.name} on {data.train.name}", LAYERS, found.rows, "probe_low", "probe_high")
    _close(found, options.json)


def run_rank(options: argparse.Namespace) -> None:
    """``tightframe rank``."""
    from tightframe.jobs.rank import rank
    from tightframe.report.columns import RANKING

    with _progress() as progress:
        data = _images(options, progress)
        found = rank(
            data,
            options.models,
            by=options.by,
            model_options=_network(options),
            seed=options.seed,
            **_running(options),
            progress=progress,
        )
    _show(f"Networks on {data.train.name}", RANKING, found.rows, "probe_low", "probe_high")
    _close(found, options.json)


def run_tune(options: argparse.Namespace) -> None:
    """``tightframe tune``."""
    from tightframe.jobs.tune import tune
    from tightframe.report.columns import METHODS
    from tightframe.sources.backbones import load_backbone

    with _progress() as progress:
        data = _images(options, progress)
        tuned = tune(
            data,
            load_backbone(options.model, **_network(options)),
            method=options.method,
            layer=options.layer,
            plan=_plan(options),
            out=options.out,
            resume=options.resume,
            **_running(options),
            progress=progress,
        )
    _show(f"{tuned.backbone.name} on {data.name}", METHODS, [tuned.metrics], "test_low", "test_high")
    _close(tuned.result(options.out), options.json)


def run_predict(options: argparse.Namespace) -> None:
    """``tightframe predict``."""
    from tightframe.jobs.run import Result
    from tightframe.jobs.tuned import load_tuned
    from tightframe.report.columns import PREDICTIONS

    rows = load_tuned(options.folder, options.model).predict(options.pictures)
    _show("Predictions", PREDICTIONS, rows)
    _close(Result("predict", rows, {"folder": str(options.folder)}), options.json)


def _images(options: argparse.Namespace, progress: Any) -> Any:
    from tightframe.sources.images import load_images

    return load_images(
        options.data,
        test_share=options.test_share,
        seed=options.seed,
        shots=options.shots,
        skip_bad=options.skip_bad,
        progress=progress,
    )


def _network(options: argparse.Namespace) -> dict[str, Any]:
    size = options.input_size
    if size and len(size) > 2:
        raise SettingsError("--input-size takes one number, or height and width")
    given = {
        "layers": options.layers,
        "input_size": (size[0], size[-1]) if size else None,
        "mean": options.mean,
        "std": options.std,
    }
    return {key: value for key, value in given.items() if value} | (
        {"pretrained": False} if options.no_pretrained else {}
    )


def _running(options: argparse.Namespace, cache: bool = True) -> dict[str, Any]:
    from tightframe.features.store import FeatureStore

    given = {"pool": options.pool, "precision": options.precision, "device": options.device}
    return given | ({"store": FeatureStore(options.cache) if options.cache else None} if cache else {})


def _plan(options: argparse.Namespace) -> Any:
    from tightframe.jobs.tune import Plan

    return Plan(
        epochs=options.epochs,
        search_epochs=options.search_epochs,
        rates=tuple(options.rates) if options.rates else None,
        decays=tuple(options.decays) if options.decays else None,
        batch_size=options.batch_size,
        seed=options.seed,
    )


def _show(title: str, columns: Any, rows: Any, low: str = "", high: str = "") -> None:
    from tightframe.report.columns import with_interval
    from tightframe.report.tables import table

    made: Table = table(title, columns, with_interval(rows, low, high) if low else rows)
    out.print(made)


def _close(result: Any, json_file: Path | None) -> None:
    """Notes, the JSON file, and what to do next."""
    for note in result.notes:
        out.print(f"• {note}", markup=False, highlight=False)
    if json_file:
        result.save(json_file)
        out.print(f"rows, settings and versions: {json_file}", markup=False, highlight=False)
    for command in result.following:
        out.print(f"next: {command}", markup=False, highlight=False, style="green", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Any]:
    """Progress on standard error: bars on a terminal, one line a step elsewhere."""
    if not err.is_terminal:
        yield _announced
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:

        def track(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
            task = bars.add_task(escape(description), total=total)
            try:
                for item in items:
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

        yield track


def _announced(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    err.print(f"{description} …", markup=False, highlight=False)
    yield from items


if __name__ == "__main__":
    sys.exit(main())
