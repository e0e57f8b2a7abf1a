"""Export to LiteRT (TensorFlow Lite): float32, float16, full integer."""

import contextlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2 import backend
from efficientnetv2.serving.spec import ServingSpec, freeze

KINDS = ("float32", "float16", "int8")
CALIBRATION_IMAGES = 256


def convert(
    network: keras.Model,
    spec: ServingSpec,
    folder: str | os.PathLike,
    calibration: Iterable[np.ndarray],
) -> None:
    """Writes float32.tflite, float16.tflite and int8.tflite.

    Each has one signature from `images` [1, size, size, 3], pixels in [0,
    255], to `probabilities` [1, classes]. Both are float32 but for 'int8',
    where both are uint8 and a probability is a multiple of 1/256.

    Args:
        network: from normalized images to logits, in float32.
        spec: of the network.
        folder: to write into; it exists.
        calibration: images float32 [size, size, 3] in [0, 255] from which the
            ranges of the activations are taken.
    """
    function = freeze(network, spec, batch=1)
    with tempfile.TemporaryDirectory() as saved, _quiet():
        tf.saved_model.save(tf.Module(), saved, signatures=function)
        for kind in KINDS:
            content = _convert(saved, kind, calibration)
            (pathlib.Path(folder) / f"{kind}.tflite").write_bytes(content)


@contextlib.contextmanager
def _quiet():
    """Hides what the converter tells of its own parts and their future."""
    with backend.without_native_messages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert(saved: str, kind: str, calibration) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: _samples(calibration)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    return converter.convert()


def _samples(calibration: Iterable[np.ndarray]):
    for index, image in enumerate(calibration):
        if index == 0:
            # With the whole range seen, a uint8 input is the pixel itself.
            image = image.copy()
            image[0, 0], image[-1, -1] = 0.0, 255.0
        yield {"images": image[np.newaxis]}


def load(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a file with LiteRT's own runtime.

    Returns:
        A function from pixels, float32 [batch, size, size, 3] in [0, 255], to
        probabilities, float32 [batch, classes].
    """
    from ai_edge_litert.interpreter import Interpreter

    with _quiet():
        interpreter = Interpreter(
            model_path=str(path), num_threads=os.cpu_count()
        )
        interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    given = run.get_input_details()["images"]
    result = run.get_output_details()["probabilities"]

    def classify(pixels: np.ndarray) -> np.ndarray:
        if given["dtype"] == np.uint8:
            pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        outputs = np.concatenate(
            [run(images=image[np.newaxis])["probabilities"] for image in pixels]
        )
        if result["dtype"] == np.uint8:
            scale, zero = result["quantization"]
            outputs = scale * (outputs.astype(np.float32) - zero)
        return outputs

    return classify
