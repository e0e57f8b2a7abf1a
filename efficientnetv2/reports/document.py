"""What reports are made of, rendered by the templates of this package."""

import base64
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import jinja2
import markupsafe
from PIL import Image

from efficientnetv2.reports import plots


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 6."""

    kind: ClassVar[str] = "heading"
    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Text that may begin in bold."""

    kind: ClassVar[str] = "paragraph"
    text: str
    strong: str = ""


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    kind: ClassVar[str] = "code"
    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; the first columns are text, the others numbers."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Figures:
    """Plots with captions: SVG files of `plots.save`."""

    kind: ClassVar[str] = "figures"
    pictures: Sequence[tuple[pathlib.Path, str]]


Block = Heading | Paragraph | Code | Table | Figures


def to_markdown(blocks: Sequence[Block], folder: pathlib.Path) -> str:
    """Returns Markdown, with links to pictures from a folder."""
    return render("study.md.j2", blocks=blocks, folder=folder)


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Returns a page that needs no other file: pictures are inside."""
    return render("study.html.j2", blocks=blocks, title=title)


def render(template: str, **values) -> str:
    """Returns a template of reports/templates with its values filled in."""
    return _environment().get_template(template).render(**values)


def data_uri(image: Image.Image) -> str:
    """Returns an image as the address of a page's picture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/png;base64,{data}"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("efficientnetv2.reports"),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = lambda svg: markupsafe.Markup(
        plots.inline(svg.read_text() if isinstance(svg, pathlib.Path) else svg)
    )
    environment.globals["colours"] = plots.COLOURS
    environment.filters["link"] = lambda path, folder: pathlib.Path(
        os.path.relpath(path, folder)
    ).as_posix()
    return environment
