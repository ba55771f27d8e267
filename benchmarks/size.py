"""The size and shape of the source: code lines, functions, long files, packages and import cycles.

    python benchmarks/size.py [FOLDER OF THE PACKAGE]

It needs nothing but Python. A code line is one with code on it: comments, docstrings and blank lines don't count. A
function is as long as its code lines, those of functions inside it included. A package's modules are the files in its
own folder but `__init__.py`. Every import counts towards cycles, also those inside functions and under
`TYPE_CHECKING`: modules in a cycle can only be understood together.
"""

from __future__ import annotations

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LONG_FILE = 350  # lines, of any kind
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Module:
    """One file of the package, by its dotted name."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @cached_property
    def code(self) -> set[int]:
        """The numbers of the lines with code on them."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        spans = ((token.start[0], token.end[0]) for token in tokens if token.type not in BLANK)
        return {line for first, last in spans for line in range(first, last + 1)} - self.docstrings

    @property
    def docstrings(self) -> set[int]:
        """The lines of strings that stand alone: docstrings, those of attributes included."""
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.Expr) and _is_text(node.value))
        return {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}

    @property
    def functions(self) -> dict[str, int]:
        """Code lines of every function and method, by name and line."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = range(node.lineno, node.end_lineno + 1)
                found[f"{self.name}.{node.name}:{node.lineno}"] = len(self.code.intersection(lines))
        return found

    def imported(self) -> Iterator[str]:
        """Dotted names that are imported anywhere in the file: modules, or what is in them."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
                home = ".".join([*above, *filter(None, [node.module])])
                yield from (f"{home}.{alias.name}" for alias in node.names)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def modules_of(folder: Path) -> list[Module]:
    """Every file below the folder of a package."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def import_graph(modules: list[Module]) -> dict[str, set[str]]:
    """Which modules of the package each one imports. ``from package import name`` is the package or its module."""
    names = {module.name for module in modules}
    graph = {}
    for module in modules:
        homes = (name if name in names else name.rpartition(".")[0] for name in module.imported())
        graph[module.name] = {home for home in homes if home in names and home != module.name}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others."""
    reached = {name: _reached(graph, name) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def long_files(modules: list[Module], limit: int = LONG_FILE) -> dict[str, int]:
    """Modules in files of more than ``limit`` lines of any kind."""
    lengths = {module.name: module.text.count("\n") for module in modules}
    return {name: length for name, length in lengths.items() if length > limit}


def modules_per_package(modules: list[Module]) -> Counter[str]:
    """How many modules each package has, ``__init__`` and the modules of its subpackages not counted."""
    return Counter(module.package for module in modules if module.path.name != "__init__.py")


def report(folder: Path) -> Iterator[str]:
    """All figures as Markdown, line by line."""
    modules = modules_of(folder)
    counts = modules_per_package(modules)
    code: Counter[str] = Counter()
    for module in modules:
        code[module.package] += len(module.code)
    yield from ("| package | modules | code lines |", "|---|---:|---:|")
    yield from (f"| {name} | {counts[name]} | {lines:,} |" for name, lines in sorted(code.items()))
    yield f"| **total** | {counts.total()} | **{code.total():,}** |\n"
    functions = {name: length for module in modules for name, length in module.functions.items()}
    lengths = sorted(functions.values())
    longest = sorted(functions.items(), key=lambda entry: -entry[1])[:5]
    yield f"Functions: {len(lengths):,}, median {statistics.median(lengths):g} code lines, p90 {_p90(lengths):g}."
    yield "Longest: " + ", ".join(f"{name} ({length})" for name, length in longest) + "."
    yield f"Files above {LONG_FILE} lines: {_listed(f'{name} ({n})' for name, n in long_files(modules).items())}."
    yield f"Import cycles: {_listed(' ↔ '.join(group) for group in cycles(import_graph(modules)))}."


def _p90(lengths: list[int]) -> float:
    return statistics.quantiles(lengths, n=10, method="inclusive")[-1]


def _listed(entries: Iterator[str]) -> str:
    return ", ".join(entries) or "none"


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "src" / "tightframe"
    print("\n".join(report(Path(sys.argv[1]) if len(sys.argv) > 1 else default)))
