"""Try a model in the browser: drop images, see classes and why.

    efficientnetv2 demo --model=runs/fashion_mnist
    efficientnetv2 demo --model=efficientnetv2-b0 --port=8080

Takes each model that `efficientnetv2 predict` takes. Only this machine can
reach the page, unless --host or --share says otherwise.
"""

import importlib.util
import os
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import cli, quiet
from efficientnetv2.commands import predict
from efficientnetv2.errors import UserError
from efficientnetv2.serving import locate

RARE = predict.RARE


def define_flags(values: flags.FlagValues) -> None:
    predict.define_model(values)
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "Address to listen on; 0.0.0.0 for all; default: 127.0.0.1.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "port",
        None,
        "Port to listen on; default: the first free one from 7860.",
        lower_bound=1,
        upper_bound=65535,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "share",
        False,
        "Let Gradio give the page a public address for a week.",
        flag_values=values,
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    cli.no_words(words)
    if not given.model:
        raise UserError("--model is missing, such as runs/fashion_mnist.")
    locate.find_model(given.model, given.checkpoint, given.weights)
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "The demo needs gradio, which is not installed: pip install gradio"
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # TensorFlow is imported only now: mistakes above are shown at once.
    with quiet.importing_tensorflow():
        from efficientnetv2 import demo
        from efficientnetv2.serving import predict as serving
    classifier = serving.load(
        given.model,
        given.checkpoint,
        given.weights,
        given.image_size,
        given.normalization,
        given.class_names,
    )
    demo.serve(classifier, given.model, given.host, given.port, given.share)
