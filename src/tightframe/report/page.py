"""The report: one HTML file that needs nothing else and asks nobody for anything.

Charts, tables and thumbnails are inside the file, and so is the program that draws the charts. A content security
policy forbids the page to load or send anything and to run any script but its own two, which it names by their hashes:
should a class name ever slip through as markup, it still could not run. ::

    page = [Section("Models", "Which separates the classes best.", [ranking_chart(rows), Grid(columns, rows)])]
    write_report(Path("report.html"), title="Flowers", summary=["..."], sections=page, settings={}, versions={})
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import vl_convert

from tightframe.errors import TightframeError
from tightframe.report.fragments import escape, gallery, grid, pairs, paragraphs
from tightframe.report.tables import Column, Row


@dataclass(frozen=True)
class Grid:
    """A table on the page, with the columns and rows of a terminal table."""

    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Samples:
    """A gallery of rows with ``image`` (PIL), ``path``, ``actual`` (or None), ``predicted`` and ``probability``."""

    rows: Sequence[Row]


@dataclass(frozen=True)
class Section:
    """A heading, words, and content: Altair charts, ``Grid``, ``Samples``; ``None`` (no chart to show) is skipped."""

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
    """Write the report to ``path``, whole or not at all."""
    charts: list[str] = []
    body = "".join(_section(index, section, charts) for index, section in enumerate(sections))
    parts = [_header(title, summary, sections), f"<main>{body}</main>", _footer(settings, versions)]
    _replace(path, _document(title, "".join(parts), charts))


def _replace(path: Path, html: str) -> None:
    """Readers see the old file or the new one, never half of one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(html.encode("utf-8"))
        draft.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise TightframeError(f"The report can't be written to {path}: {reason}. Choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _document(title: str, body: str, charts: Sequence[str]) -> str:
    scripts = [_bundle(), _asset("report.js")] if charts else []
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
    policy += "base-uri 'none'; form-action 'none'"
    specs = (
        f'<script type="application/json" id="chart-{index + 1}">{chart}</script>' for index, chart in enumerate(charts)
    )
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">',
        f"<style>{_asset('report.css')}</style></head><body>",
    ]
    programs = (f"<script>{script}</script>" for script in scripts)
    return "".join([*head, body, *specs, *programs, "</body></html>\n"])


def _header(title: str, summary: Sequence[str], sections: Sequence[Section]) -> str:
    points = "".join(f"<li>{escape(line)}</li>" for line in summary)
    box = f'<div class="summary"><ul>{points}</ul></div>' if points else ""
    links = "".join(f'<a href="#section-{index}">{escape(part.heading)}</a>' for index, part in enumerate(sections))
    contents = f'<nav aria-label="Contents">{links}</nav>' if len(sections) > 1 else ""
    return f'<header><p class="maker">Tightframe report</p><h1>{escape(title)}</h1>{box}{contents}</header>'


def _section(index: int, section: Section, charts: list[str]) -> str:
    content = "".join(_content(item, charts) for item in section.content)
    heading = f'<section id="section-{index}"><h2>{escape(section.heading)}</h2>'
    return f"{heading}{paragraphs(section.text)}{content}</section>"


def _content(item: Any, charts: list[str]) -> str:
    if item is None:
        return ""
    if isinstance(item, Grid):
        return grid(item.columns, item.rows)
    if isinstance(item, Samples):
        return gallery(item.rows)
    return _chart(item.to_dict(), charts)


def _chart(spec: dict[str, Any], charts: list[str]) -> str:
    """The title moves out of the chart onto the page, where it can wrap."""
    heading = spec.pop("title", "")
    heading = heading if isinstance(heading, dict) else {"text": heading}
    charts.append(_embeddable(spec))
    name, limit = f"chart-{len(charts)}", spec.get("usermeta", {}).get("tightframe", {}).get("maxWidth")
    style = f' style="max-width: {int(limit)}px"' if limit else ""
    words = f"<strong>{escape(heading.get('text', ''))}</strong><span>{escape(heading.get('subtitle', ''))}</span>"
    hint = "<noscript>This chart needs JavaScript.</noscript>"
    return f'<figure><figcaption>{words}</figcaption><div class="plot" data-spec="{name}"{style}>{hint}</div></figure>'


def _embeddable(spec: dict[str, Any]) -> str:
    """JSON that can end neither its script element nor a line of JavaScript, whatever the names in it."""
    plain = json.dumps(_drawable(spec), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _drawable(value: Any) -> Any:
    """JSON knows no NaN and no infinity, and Vega leaves out what is null."""
    if isinstance(value, dict):
        return {key: _drawable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_drawable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _footer(settings: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    blocks = [f"<h3>{name}</h3>{pairs(of)}" for name, of in (("Settings", settings), ("Versions", versions)) if of]
    return (
        f"<footer><details><summary>How this was made</summary>{''.join(blocks)}</details></footer>" if blocks else ""
    )


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which takes seconds to put together."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


@functools.cache
def _asset(name: str) -> str:
    return resources.files("tightframe.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
