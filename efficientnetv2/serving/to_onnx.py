"""Export to ONNX."""

import os
import warnings
from collections.abc import Callable

import keras
import numpy as np

from efficientnetv2 import backend
from efficientnetv2.serving.spec import ServingSpec, freeze

OPSET = 18


def convert(
    network: keras.Model, spec: ServingSpec, path: str | os.PathLike
) -> None:
    """Writes an ONNX file of opset `OPSET`.

    Its input `images` is float32 [batch, size, size, 3], pixels in [0, 255];
    its output `probabilities` is float32 [batch, classes].

    Args:
        network: from normalized images to logits, in float32.
        spec: of the network.
        path: of the file.
    """
    import onnx
    import tf2onnx

    function = freeze(network, spec, batch=None)
    with backend.without_native_messages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = tf2onnx.convert.from_function(
            function, function.input_signature, opset=OPSET
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, os.fspath(path))


def load(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a file with ONNX Runtime.

    Returns:
        A function from pixels, float32 [batch, size, size, 3] in [0, 255], to
        probabilities, float32 [batch, classes].
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.fspath(path), providers=["CPUExecutionProvider"]
    )

    def classify(pixels: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"images": pixels})[0]

    return classify
