"""Write docs/fields.md from the fields: `python docs/make_fields.py`. A test checks that it is up to date."""

from __future__ import annotations

from pathlib import Path

from tightframe.report.fields import FIELDS, TABLES, Field, Table, upper

KINDS = {
    "text": "text",
    "listed": "list or mapping",
    "flag": "true or false",
    "count": "integer",
    "millions": "integer",
    "number": "number",
    "exact": "number",
    "percent": "share, 0 to 1",
    "seconds": "seconds",
    "size": "bytes",
}
"""What a value is, by the format that spells it."""

INTRODUCTION = """\
# Every key of a result

Written by `python docs/make_fields.py` from `src/tightframe/report/fields.csv` and `fields.py`; change it there.

Every job returns a `Result`, which `--json FILE` (`result.to_json("FILE")`) writes as one JSON object:

| key | holds |
|---|---|
| `job` | which job it was |
| `rows` | a list of objects, one for each row of the job's table |
| `settings` | the arguments that the rows depend on |
| `notes` | what a reader should know, in plain words |
| `next_steps` | what to do next, as commands |
| `versions` | versions of the packages at work |
| `tables` | further tables, each a list of rows, by name |

Rows are plain dictionaries (`result.to_pandas()` makes a data frame of them). The tables below declare which keys the
rows of each job have, and the list after them what each key means; a test runs the jobs and compares. A key whose value
is not known in any row may be left out or `null`, numbers that are not finite are `null`, and a row that failed has an
`error` in place of its measurements. The rows of a study have the labels of its points beside these keys.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION, "## Tables\n"]
    parts += [_table(name, table) for name, table in TABLES.items()]
    parts += ["## Keys\n", "| key | title | value | meaning | ends of its 95 % interval |\n|---|---|---|---|---|"]
    parts += [_line(field) for field in FIELDS.values()]
    return "\n".join(parts) + "\n"


def _table(name: str, table: Table) -> str:
    shown, others = (", ".join(f"`{key}`" for key in keys) for keys in (table.columns, table.others))
    return f"**`{name}`** – {table.title}\n\n- shown: {shown}\n" + (f"- also: {others}\n" if others else "")


def _line(field: Field) -> str:
    ends = f"`{field.low}`, `{upper(field.low)}`" if field.low else ""
    cells = (f"`{field.key}`", field.title, KINDS[field.format.__name__], field.meaning, ends)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    Path(__file__).with_name("fields.md").write_text(page(), encoding="utf-8")
