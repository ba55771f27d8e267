"""The ``tightframe`` command: its commands are functions of the package, its options their parameters."""

from __future__ import annotations

import ast
import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from tightframe.cli import stopping, terminal
from tightframe.errors import TightframeError

JOBS = {
    "transfer": "tightframe.jobs.transfer:transfer",
    "check": "tightframe.checks.check:check",
    "measure": "tightframe.jobs.measure:measure",
    "layers": "tightframe.jobs.layers:layers",
    "fewshot": "tightframe.jobs.fewshot:fewshot",
    "rank": "tightframe.jobs.rank:rank",
    "tune": "tightframe.jobs.tune:tune",
    "pretrain": "tightframe.jobs.pretrain:pretrain",
    "study": "tightframe.studies.runner:run_study",
    "predict": "tightframe.deploy.tuned:predict",
    "evaluate": "tightframe.deploy.evaluate:evaluate",
    "merge": "tightframe.deploy.merge:merge",
    "export": "tightframe.deploy.export:export_onnx",
    "push": "tightframe.deploy.hub:push_to_hub",
}
"""Commands, and the function of the package whose docstring describes each."""
ELSEWHERE = {"check": "checking"} | dict.fromkeys(("predict", "evaluate", "merge", "export", "push"), "saved")
"""Commands that are not in ``cli.commands``, and their modules."""
EXAMPLES = {
    "transfer": "flowers --models timm/resnet18 timm/mobilenetv3_small_100 --out runs/flowers",
    "check": "flowers --write-clean flowers/clean.csv",
    "measure": "flowers --model timm/resnet18",
    "layers": "flowers --model timm/resnet18",
    "fewshot": "flowers --model timm/resnet18 --ways 5 --shots 1 5",
    "rank": "flowers --models timm/resnet18 torchvision/densenet121 local-dir:mine",
    "tune": "flowers --model timm/resnet18 --out runs/flowers-tuned",
    "pretrain": "cifar10 --arch cifar_resnet20 --loss mse --projector 1 --out runs/mse",
    "study": "layers --models timm/resnet18 --data flowers --out runs/layers",
    "predict": "runs/flowers-tuned new/1.jpg new/2.jpg",
    "evaluate": "runs/flowers-tuned flowers",
    "merge": "runs/flowers/linear --out flowers-net",
    "export": "runs/flowers-tuned --onnx flowers.onnx --data flowers",
    "push": "runs/flowers-tuned ann/flowers",
}
EXITS = (
    "Exit status: 0 done, 1 it can't be done (one line says why), 2 wrong usage, 130 interrupted, 143 terminated, 141 "
    "nobody reads what it writes."
)
STOPPED = 128
"""From here on exit statuses are those of signals."""
NO_MEMORY = ("out of memory", "allocate memory", "start new thread", "std::bad_alloc")
"""What libraries say, other than by ``MemoryError``, where there is too little memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status (see ``EXITS``)."""
    if arguments is not None:
        return _run(list(arguments))
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata of images is no concern of who runs a command
    with stopping.stoppable(terminal.interrupted):
        code = _run(sys.argv[1:])
    return code if code < STOPPED else stopping.leave(code)


def _run(tokens: list[str]) -> int:
    try:
        command, bound, *_ = application().parse_args(tokens, exit_on_error=False, print_error=False)
        status = command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        error.verbose = False
        where = f"tightframe {tokens[0]} --help" if tokens and tokens[0] in JOBS else "tightframe --help"
        terminal.failure(f"{' '.join(str(error).split())} ({where} lists what there is)")
        return 2
    except TightframeError as error:
        terminal.failure(str(error))
        return 1
    except BrokenPipeError:
        return stopping.unread()
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        terminal.failure(f"{what}. Check that the folders given exist, may be written to and have room.")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in NO_MEMORY):
            raise
        terminal.failure(
            "there is too little memory for this: lower --batch-size or --input-size, or allow more; what is in --out "
            "and --feature-cache is kept"
        )
        return 1
    except KeyboardInterrupt as stopped:
        terminal.interrupted()
        return stopping.status(stopped)
    return status if isinstance(status, int) else 0


def application() -> App:
    """All commands. What a command needs is imported when it is asked for: ``tightframe --help`` needs no PyTorch."""
    app = App(
        "tightframe",
        version=f"tightframe {version('tightframe')}",
        help="Which pretrained model, which layer, and how to fine-tune it, answered from neural collapse on your own "
        "images. Start with `tightframe transfer`: the whole job, offline, on built-in digits, in about a minute.",
        help_epilogue=EXITS,
        help_format="plaintext",
        default_parameter=Parameter(negative_iterable=(), negative_none=()),
    )
    for place, (name, function) in enumerate(JOBS.items()):
        app.command(
            f"tightframe.cli.{ELSEWHERE.get(name, 'commands')}:{name}_command",
            name=name,
            help=summary(function),
            sort_key=place,
            help_epilogue=f"Example: tightframe {name} {EXAMPLES[name]}",
        )
    app.register_install_completion_command()
    return app


def summary(function: str) -> str:
    """The first sentence of the docstring of ``module:function``, read without running the module."""
    module, _, name = function.partition(":")
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    said = inspect.cleandoc(ast.get_docstring(found) or "").partition("\n\n")[0]
    return " ".join(said.replace("``", "").split())
