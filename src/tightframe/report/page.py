"""The report: one HTML file that needs nothing else and asks nobody for anything.

Charts, tables and thumbnails are inside the file, and so is the program that draws the charts. A content security
policy forbids the page to load or send anything and to run any script but its own two, which it names by their hashes:
should a class name ever slip through as markup, it still could not run. ::

    page = [Section("Models", "Which separates the classes best.", [ranking_chart(rows), Grid(("model", "nc1"), rows)])]
    write_report(Path("report.html"), title="Flowers", summary=["..."], sections=page, settings={}, versions={})
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from tightframe.errors import TightframeError
from tightframe.files import write_text
from tightframe.report.fields import Row
from tightframe.report.render import render
from tightframe.row import plain


@dataclass(frozen=True)
class Grid:
    """A table on the page, with the keys and rows of a terminal table."""

    columns: Sequence[str]
    rows: Sequence[Row]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Samples:
    """A gallery of rows with ``image`` (PIL), ``path``, ``true`` (or None), ``predicted`` and ``probability``."""

    rows: Sequence[Row]
    kind: ClassVar[str] = "samples"


@dataclass(frozen=True)
class Findings:
    """A gallery of what ``check`` found: rows with ``image`` and ``other_image`` (PIL, or None) beside their words."""

    rows: Sequence[Row]
    kind: ClassVar[str] = "findings"


@dataclass(frozen=True)
class Section:
    """A heading, words, and content: Altair charts, ``Grid``, ``Samples``, ``Findings``; ``None`` is skipped."""

    heading: str
    text: str = ""
    content: Sequence[Any] = field(default=())


def write_report(
    path: Path,
    *,
    title: str,
    summary: Sequence[str],
    sections: Sequence[Section],
    settings: Mapping[str, Any],
    versions: Mapping[str, Any],
) -> None:
    """Write the report to ``path``, whole or not at all. Raises ``TightframeError`` where it can't be written."""
    charts: list[Markup] = []
    parts = [[_part(item, charts) for item in section.content if item is not None] for section in sections]
    scripts = [_bundle(), _asset("report.js")] if charts else []
    html = render(
        "page.html",
        title=title,
        summary=summary,
        sections=list(zip(sections, parts, strict=True)),
        tables={"Settings": dict(_flat(settings)), "Versions": versions},
        charts=charts,
        scripts=scripts,
        allowed=" ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'",
        style=_asset("report.css"),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    except OSError as error:
        reason = error.strerror or error
        raise TightframeError(f"The report can't be written to {path}: {reason}. Choose another place.") from error


def _part(item: Any, charts: list[Markup]) -> Any:
    """What the template shows of ``item``; a chart's data is appended to ``charts``.

    A chart's title moves out of it onto the page, where it can wrap.
    """
    if isinstance(item, (Grid, Samples, Findings)):
        return item
    spec = item.to_dict()
    title = {"text": "", "subtitle": ""} | spec.pop("title", {})
    charts.append(_embeddable(spec))
    width = spec.get("usermeta", {}).get("tightframe", {}).get("maxWidth")
    return {"kind": "chart", "name": f"chart-{len(charts)}", "title": title, "width": width}


def _embeddable(spec: dict[str, Any]) -> Markup:
    """JSON that can end neither its script element nor a line of JavaScript, whatever the names in it."""
    told = json.dumps(plain(spec), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings inside settings by their full names: ``plan.epochs``."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@functools.cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, which takes seconds to put together."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", "<\\/script"))


@functools.cache
def _asset(name: str) -> Markup:
    return Markup(resources.files("tightframe.report").joinpath("templates", name).read_text(encoding="utf-8"))


@functools.cache
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
