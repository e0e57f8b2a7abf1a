"""Pieces of a self-contained HTML page: text, tables, pictures, plots."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto;
       max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem;
         text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img, svg { max-width: 100%; height: auto; }
pre { background: #f5f5f5; overflow-x: auto; padding: 0.8rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.figures div b { display: block; font-size: 1.7rem; line-height: 1.2; }
.plots { display: grid; gap: 1rem;
         grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Returns a whole page.

    Args:
        title: plain text.
        parts: HTML.
    """
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n"
        "</html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def folded(summary: str, content: str) -> str:
    """Returns HTML that opens on a click."""
    return (
        f"<details><summary>{html.escape(summary)}</summary>{content}</details>"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; the first row is its head, cells are plain text."""
    lines = []
    for number, row in enumerate(rows):
        kind = "th" if number == 0 else "td"
        cells = "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in row)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def figures(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a row of large figures with what each is below it."""
    cells = "".join(
        f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>"
        for name, value in pairs
    )
    return f'<div class="figures">{cells}</div>'


def plots(pictures: Sequence[str]) -> str:
    """Returns plots side by side where there is room."""
    cells = "".join(f"<div>{picture}</div>" for picture in pictures)
    return f'<div class="plots">{cells}</div>'


def picture(image: Image.Image, text: str) -> str:
    """Returns a picture within the page; `text` describes it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def svg(figure) -> str:
    """Returns a matplotlib figure as SVG, equal for equal figures."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "efficientnetv2"}
    ):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def axes(width: float = 6.0, height: float = 4.0):
    """Returns a matplotlib figure and its axes; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    plot = figure.subplots()
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot
