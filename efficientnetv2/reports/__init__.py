"""Reports of runs and of studies, and what their pages are made of."""

import base64
import functools
import io

import jinja2
import markupsafe
from PIL import Image

from efficientnetv2.reports import plots


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
        plots.inline(svg)
    )
    environment.globals["colours"] = plots.COLOURS
    return environment
