"""Templates filled in: everything that users wrote is one line of harmless text, and escaped."""

from __future__ import annotations

import base64
import functools
import io
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from PIL import Image

from tightframe.report.fields import failed, shown
from tightframe.report.formats import listed, percent, text

THUMBNAIL = 256
COARSE = 64
"""Pixels: smaller images are shown enlarged, without smoothing."""


def render(template: str, **values: Any) -> str:
    """``templates/TEMPLATE`` with ``values``; HTML is escaped, Markdown is not."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tightframe.report"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        finalize=_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"breakable": breakable, "shown": shown, "listed": listed, "percent": percent}
    environment.filters |= {"data_uri": data_uri}
    environment.tests |= {"failed": failed, "coarse": lambda image: max(image.size) <= COARSE}
    return environment


def _one_line(value: Any) -> Any:
    """What every value in a template goes through; markup of our own is left as it is."""
    return value if isinstance(value, Markup) else "" if value is None or value == "" else text(value)


def breakable(value: Any) -> Markup:
    """``value`` escaped, with places to break lines after its own punctuation."""
    return Markup(re.sub(r"([._/-])", r"\1<wbr>", str(escape(_one_line(value)))))


def data_uri(image: Image.Image) -> str:
    """A thumbnail on white as a data: URI; lossless where it is so small that it is shown enlarged."""
    small = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    form, options = ("PNG", {"optimize": True}) if max(small.size) <= COARSE else ("JPEG", {"quality": 82})
    stream = io.BytesIO()
    small.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
