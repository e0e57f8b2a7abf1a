"""A document of a few kinds of blocks, as Markdown and as one HTML page."""

import base64
import dataclasses
import html
import os
import pathlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 6."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Text that may begin in bold."""

    text: str
    strong: str = ""


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to be copied; on a page folded below `summary`, if there is one."""

    text: str
    summary: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; the first columns are text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Figures:
    """Pictures with captions: PNG files."""

    pictures: Sequence[tuple[pathlib.Path, str]]


Block = Heading | Paragraph | Code | Table | Figures

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem;
  max-width: 70rem; color: #1a1a1a; background: #fff; }
h1, h2, h3 { line-height: 1.25; }
p, pre { max-width: 48rem; }
pre { background: #f3f3f3; padding: .6rem; overflow-x: auto; }
.wide { overflow-x: auto; margin: 0 0 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd;
  text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; white-space: normal; min-width: 9rem;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; }
"""


def to_markdown(blocks: Sequence[Block], folder: pathlib.Path) -> str:
    """Returns Markdown.

    Args:
        blocks: of this module.
        folder: of the file; pictures are linked from there.
    """
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block, folder: pathlib.Path) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + block.text
    if isinstance(block, Paragraph):
        return (
            f"**{block.strong}** {block.text}" if block.strong else block.text
        )
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Table):
        numbers = len(block.header) - block.text_columns
        rules = ["---"] * block.text_columns + ["---:"] * numbers
        rows = [block.header, rules, *block.rows]
        return "\n".join(
            "| " + " | ".join(c.replace("|", "\\|") for c in row) + " |"
            for row in rows
        )
    links = [
        (caption, pathlib.Path(os.path.relpath(path, folder)).as_posix())
        for path, caption in block.pictures
    ]
    return "\n\n".join(f"![{caption}]({link})" for caption, link in links)


def to_html(blocks: Sequence[Block], title: str) -> str:
    """Returns a page that needs no other file: pictures are inside."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        strong = html.escape(block.strong)
        strong = f"<strong>{strong}</strong> " if strong else ""
        return f"<p>{strong}{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        lines = f"<pre>{html.escape(block.text)}</pre>"
        if not block.summary:
            return lines
        summary = f"<summary>{html.escape(block.summary)}</summary>"
        return f"<details>{summary}{lines}</details>"
    if isinstance(block, Table):
        rows = "\n".join(
            _row(cells, tag, block.text_columns)
            for cells, tag in [(block.header, "th")]
            + [(row, "td") for row in block.rows]
        )
        return f'<div class="wide"><table>\n{rows}\n</table></div>'
    pictures = "\n".join(_picture(*each) for each in block.pictures)
    return f'<div class="figures">\n{pictures}\n</div>'


def _row(cells: Sequence[str], tag: str, text_columns: int) -> str:
    parts = []
    for index, cell in enumerate(cells):
        kind = ' class="text"' if index < text_columns else ""
        parts.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def _picture(path: pathlib.Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
