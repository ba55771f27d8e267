"""What a job found: prints as a table, shows itself in a notebook, goes into JSON and pandas."""

from __future__ import annotations

import base64
import io
import json
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tightframe.errors import TightframeError
from tightframe.files import write_text
from tightframe.report.fields import FIELDS, TABLES
from tightframe.report.formats import RESPELLED, printable
from tightframe.report.render import render
from tightframe.report.tables import table
from tightframe.row import Row, plain

if TYPE_CHECKING:
    import pandas

PACKAGES = ("tightframe", "torch", "torchvision", "timm", "numpy", "scikit-learn", "safetensors", "pillow")
WIDTH = 100
"""Characters of a line that is printed."""
MOST_ROWS = 20
"""Most rows that are printed; JSON, pandas and notebooks have them all."""


@dataclass(frozen=True, repr=False)
class Result:
    """What a job found, and all that is needed to understand it.

    Rows are plain dictionaries. Which keys each job's rows have, and what they mean, is declared in
    ``tightframe.report.fields`` and listed in docs/fields.md.

    Attributes:
        job: which job it was.
        rows: one mapping a line of the table.
        settings: the arguments that the rows depend on.
        notes: what a reader should know, in plain words.
        next_steps: what to do next, as commands.
        versions: of the packages at work.
        tables: other tables that belong to the result, by name.
    """

    job: str
    rows: list[Row]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    tables: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the rows are, and of which dataset."""
        name, data = TABLES[self.job].title if self.job in TABLES else self.job, self.settings.get("data")
        return f"{name} ({data})" if isinstance(data, str) else name

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys that are shown of the rows."""
        if self.job in TABLES:
            return TABLES[self.job].columns
        return tuple(key for key in dict.fromkeys(key for row in self.rows for key in row) if key in FIELDS)

    def __rich__(self) -> RenderableType:
        left = len(self.rows) - MOST_ROWS
        lines = [f"… and {left} more rows"] if left > 0 else []
        lines += [f"• {printable(note)}" for note in self.notes]
        lines += [f"next: {printable(step)}" for step in self.next_steps]
        return Group(table(self.title, self.columns, self.rows[:MOST_ROWS]), *map(Text, lines))

    def __str__(self) -> str:
        stream = io.StringIO()
        Console(file=stream, width=WIDTH).print(self)
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        return stream.getvalue().rstrip().encode(encoding, RESPELLED).decode(encoding)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from tightframe.report.chart import svg  # Altair takes a second to import
        from tightframe.report.charts import chart_of

        chart = chart_of(self.job, self.rows, self.tables)
        picture = base64.b64encode(svg(chart).encode("utf-8")).decode("ascii") if chart is not None else None
        return render("result.html", result=self, picture=picture)

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame. Raises ``TightframeError`` where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise TightframeError("a data frame needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame(self.rows)

    def to_json(self, path: Path | str | None = None) -> str:
        """All of it as JSON that any parser reads, also written to ``path``; numbers not finite become ``null``."""
        content = json.dumps(plain(self.__dict__), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_text(Path(path), content + "\n")
        return content


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {package: version(package) for package in PACKAGES}
