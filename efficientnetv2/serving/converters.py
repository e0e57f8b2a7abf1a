"""The formats that a network is exported to, each written and loaded here.

A network maps normalized images to logits, in float32; its `ServingSpec` has
the rest. What `load_...` returns is a function from images to probabilities,
float32 [batch, classes]. LiteRT and ONNX take pixels, float32 [batch, size,
size, 3] in [0, 255], cropped and resized as the spec says.
"""

import contextlib
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2 import backend
from efficientnetv2.data import listing, preprocessing
from efficientnetv2.serving.spec import ServingError, ServingSpec

LITERT_KINDS = ("float32", "float16", "int8")
CALIBRATION_IMAGES = 256
OPSET = 18


def _constant(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a network's inference with its weights as constants.

    TensorFlow's graph optimizer then multiplies the scales of batch
    normalization into the convolutions. Converters of TensorFlow 2.21 leave
    some of Keras' variables as variables, which their runtimes do not set.
    """
    trained = [variable.numpy() for variable in network.trainable_variables]
    others = [variable.numpy() for variable in network.non_trainable_variables]

    def infer(images):
        logits, _ = network.stateless_call(
            [tf.constant(value) for value in trained],
            [tf.constant(value) for value in others],
            images,
            training=False,
        )
        return logits

    return infer


def freeze(network: keras.Model, spec: ServingSpec, batch: int | None):
    """Returns a `tf.function` from pixels to probabilities.

    Its argument `images` is float32 [batch, size, size, 3] in [0, 255], of any
    batch size for None; it returns a dict with `probabilities`.
    """
    infer, size = _constant(network), spec.image_size

    def classify(images):
        logits = infer(preprocessing.normalize(images, spec.mode))
        return {"probabilities": spec.probabilities(logits)}

    images = tf.TensorSpec([batch, size, size, 3], tf.float32, "images")
    return tf.function(classify, input_signature=[images], autograph=False)


@contextlib.contextmanager
def _quiet():
    """Hides what a converter tells of its own parts and their future."""
    with backend.without_native_messages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- SavedModel -------------------------------------------------------------


class ServingModel(tf.Module):
    """A network with its preprocessing and class names.

    Two signatures, each with the outputs 'probabilities', float32
    [batch, classes], and 'label', string [batch], the name of the most likely
    class:

        serving_default  images: uint8 [batch, height, width, 3], any size
        encoded          image_bytes: string [batch], JPEG, PNG, WebP, GIF
                         (first frame) or BMP of any size

    Args:
        infer: from normalized images to logits, float32 tensors.
        spec: of the network.
    """

    def __init__(
        self, infer: Callable[[tf.Tensor], tf.Tensor], spec: ServingSpec
    ):
        super().__init__(name="serving")
        size = spec.image_size
        # Both signatures call it, and share the weights in it.
        self.infer = tf.function(
            infer,
            input_signature=[tf.TensorSpec([None, size, size, 3])],
            autograph=False,
        )
        self.spec = spec
        self.class_names = tf.constant(list(spec.class_names))

    def _classify(self, images):
        logits = self.infer(images)
        best = tf.argmax(logits, axis=1)
        return {
            "probabilities": self.spec.probabilities(logits),
            "label": tf.gather(self.class_names, best),
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8, "images")
        ]
    )
    def classify_images(self, images):
        """Classifies images of one size."""
        return self._classify(self.spec.prepare(images))

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")]
    )
    def classify_encoded(self, image_bytes):
        """Classifies encoded images of any sizes."""
        size = self.spec.image_size
        images = tf.map_fn(
            self.spec.decode,
            image_bytes,
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32),
        )
        return self._classify(images)


def write_saved_model(
    network: keras.Model, spec: ServingSpec, folder: str | os.PathLike
) -> None:
    """Writes a SavedModel that needs nothing but TensorFlow.

    Its weights are constants. To train on, take the run's folder or a .keras
    file. The class names, one per line, are the asset `assets/class_names.txt`.
    The folder must not exist.
    """
    module = ServingModel(_constant(network), spec)
    with tempfile.TemporaryDirectory() as temporary:
        names = pathlib.Path(temporary) / listing.NAMES_FILE
        text = listing.names_to_text(spec.class_names)
        names.write_text(text, encoding="utf-8")
        module.class_names_file = tf.saved_model.Asset(str(names))
        tf.saved_model.save(
            module,
            os.fspath(folder),
            signatures={
                "serving_default": module.classify_images,
                "encoded": module.classify_encoded,
            },
        )


def read_class_names(folder: str | os.PathLike) -> list[str]:
    """Returns the class names of a SavedModel.

    Raises:
        ServingError: if it has none.
    """
    path = pathlib.Path(folder) / "assets" / listing.NAMES_FILE
    try:
        return listing.read_names(path)
    except OSError as error:
        raise ServingError(
            f"{path} with the names of the classes cannot be read "
            f"({error.strerror}). Export the model again with --mode=export."
        ) from None


def load_saved_model(
    folder: str | os.PathLike,
) -> Callable[[np.ndarray | Sequence[bytes]], np.ndarray]:
    """Loads what `write_saved_model` wrote.

    Its images are uint8 [batch, height, width, 3], or encoded.

    Raises:
        ServingError: if it cannot be read or lacks a signature.
    """
    try:
        model = tf.saved_model.load(os.fspath(folder))
        images = model.signatures["serving_default"]
        encoded = model.signatures["encoded"]
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise ServingError(
            f"{folder} is truncated or not a SavedModel of this project "
            f"({str(error).splitlines()[0]})."
        ) from error

    def classify(batch):
        # `model` has to live as long as its signatures.
        assert model is not None
        if isinstance(batch, np.ndarray):
            outputs = images(images=tf.constant(batch))
        else:
            outputs = encoded(image_bytes=tf.constant(batch))
        return outputs["probabilities"].numpy()

    return classify


# --- LiteRT (TensorFlow Lite) -----------------------------------------------


def write_litert(
    network: keras.Model,
    spec: ServingSpec,
    folder: pathlib.Path,
    calibration: Iterable[np.ndarray],
) -> None:
    """Writes float32.tflite, float16.tflite and int8.tflite into a folder.

    Each has one signature from `images` [1, size, size, 3] to `probabilities`
    [1, classes]. Both are float32 but for 'int8', where both are uint8 and a
    probability is a multiple of 1/256.

    Args:
        network, spec, folder: to convert, and where to.
        calibration: images float32 [size, size, 3] in [0, 255] from which the
            ranges of the activations are taken.
    """

    def samples():
        for index, image in enumerate(calibration):
            if index == 0:
                # With the whole range seen, a uint8 input is the pixel itself.
                image = image.copy()
                image[0, 0], image[-1, -1] = 0.0, 255.0
            yield {"images": image[np.newaxis]}

    function = freeze(network, spec, batch=1)
    with tempfile.TemporaryDirectory() as saved, _quiet():
        tf.saved_model.save(tf.Module(), saved, signatures=function)
        for kind in LITERT_KINDS:
            converter = tf.lite.TFLiteConverter.from_saved_model(saved)
            if kind != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if kind == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if kind == "int8":
                converter.representative_dataset = samples
                converter.target_spec.supported_ops = [
                    tf.lite.OpsSet.TFLITE_BUILTINS_INT8
                ]
                converter.inference_input_type = tf.uint8
                converter.inference_output_type = tf.uint8
            (folder / f"{kind}.tflite").write_bytes(converter.convert())


def load_litert(
    path: str | os.PathLike,
) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a .tflite file with LiteRT's own runtime."""
    from ai_edge_litert.interpreter import Interpreter

    with _quiet():
        interpreter = Interpreter(
            model_path=str(path), num_threads=os.cpu_count()
        )
        interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    given = run.get_input_details()["images"]
    result = run.get_output_details()["probabilities"]

    def classify(pixels):
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


# --- ONNX -------------------------------------------------------------------


def write_onnx(
    network: keras.Model, spec: ServingSpec, path: str | os.PathLike
) -> None:
    """Writes an ONNX file of opset `OPSET`, from `images` to `probabilities`.

    Both are float32, of any batch size.
    """
    import onnx
    import tf2onnx

    function = freeze(network, spec, batch=None)
    with _quiet():
        model, _ = tf2onnx.convert.from_function(
            function, function.input_signature, opset=OPSET
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, os.fspath(path))


def load_onnx(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """Loads an ONNX file with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.fspath(path), providers=["CPUExecutionProvider"]
    )
    return lambda pixels: session.run(["probabilities"], {"images": pixels})[0]
