"""A web page that shows what a model predicts for images, and why.

`python -m efficientnetv2.demo` is `efficientnetv2 demo`.
"""

import os
import pathlib
from collections.abc import Sequence

from PIL import Image

from efficientnetv2 import progress, reports
from efficientnetv2.data.faults import fault_of_beginning
from efficientnetv2.errors import UserError
from efficientnetv2.serving import inspection, predict
from efficientnetv2.serving.loading import Classifier

TOP = 5
# Of the longer side of a picture on the page.
_SIDE = 320


def explain_images(
    classifier: Classifier, paths: Sequence[str | os.PathLike]
) -> str:
    """Returns HTML with classes, probabilities and attention for each file.

    A file that is not an image gets a message instead.
    """
    faults: dict[str, str] = {}
    paths = list(dict.fromkeys(map(str, paths)))
    for path in paths:
        with open(path, "rb") as file:
            head, size = file.read(64), os.path.getsize(path)
        if fault := fault_of_beginning(head, size):
            faults[path] = fault

    def skip(_, path, reason):
        faults[path] = reason

    good = [path for path in paths if path not in faults]
    found = dict(predict.predict_stream(classifier, good, TOP, 8, skip))
    items = []
    for path in paths:
        item = {"name": pathlib.Path(path).name, "fault": faults.get(path)}
        if path in found:
            picture, method = inspection.attention(
                classifier, path, found[path][0]
            )
            item |= {
                "predictions": found[path],
                "method": method,
                "attention": _uri(picture),
                "image": _uri(inspection.picture(path)),
            }
        items.append(item)
    return reports.render("demo.html.j2", items=items)


def _uri(picture: Image.Image) -> str:
    size = inspection.scaled_size(picture, _SIDE)
    sharp = Image.Resampling.NEAREST if _SIDE > 2 * max(picture.size) else None
    return reports.data_uri(picture.resize(size, sharp))


def build_page(classifier: Classifier, name: str):
    """Returns the page as `gradio.Blocks`, below the name of the model."""
    import gradio

    with gradio.Blocks(title=f"{name} - efficientnetv2") as page:
        gradio.Markdown(
            f"# {name}\nDrop images to see the {TOP} most likely of "
            f"{len(classifier.class_names):,} classes, and where the model "
            "looked: red areas support the first class most."
        )
        files = gradio.File(file_count="multiple", label="Images")
        results = gradio.HTML()
        files.change(
            lambda paths: explain_images(classifier, paths or []),
            files,
            results,
        )
    return page


def serve_page(
    classifier: Classifier,
    name: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    block: bool = True,
) -> str:
    """Serves the page of a model until Ctrl-C; returns its address.

    Args:
        classifier, name: of the model.
        host, port: to listen on; None: the first free port from 7860.
        share: whether Gradio gives the page a public address, too.
        block: whether to wait for Ctrl-C.

    Raises:
        UserError: if the port is taken, or the host is not this machine's.
    """
    import gradio

    page = build_page(classifier, name)
    try:
        _, address, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            # No font is fetched from elsewhere.
            theme=gradio.themes.Default(
                font="sans-serif", font_mono="monospace"
            ),
        )
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host}, port {port or 'from 7860'}: {error}. "
            "Name another --host or --port."
        ) from None
    progress.say(f"{name}: {address}  (Ctrl-C to stop)")
    if public:
        progress.say(f"Public for a week: {public}")
    if block:
        page.block_thread()
    return address


if __name__ == "__main__":
    from efficientnetv2 import cli
    from efficientnetv2.commands.predict import demo as command

    cli.start(command, "python -m efficientnetv2.demo")
