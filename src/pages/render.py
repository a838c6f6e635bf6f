"""Render content to a file, with the templates, the shared style and script, and the library that draws charts."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinymem import files

if TYPE_CHECKING:
    from tinymem.pages.charts import Chart

TEMPLATES = Path(__file__).with_name("templates")


def write_page(path: str | Path, template: str, charts: Iterable[Chart] = (), **content: Any) -> Path:
    """Write a page: one file that needs no network. The same content gives the same bytes.

    charts: all charts in the template. Their library is included once, compressed to a third of its size. Raise
    ImportError without jinja2, or without bokeh if there are charts.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shared(name: str) -> Markup:
        return Markup((TEMPLATES / name).read_text(encoding="utf-8"))

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(TEMPLATES), trim_blocks=True
    )
    items = {chart.name: chart.item for chart in charts}
    packed = {"charts": _packed(json.dumps(items)), "library": _packed(_library())} if items else {"charts": ""}
    html = environment.get_template(template).render(
        style=shared("style.css"), script=shared("page.js"), **packed, **content
    )
    return files.write_file(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def _library() -> str:
    """Return the part of BokehJS that charts need."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw)


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")
