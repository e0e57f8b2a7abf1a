"""A network as TensorFlow Serving takes it: preprocessing and names inside."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2.data import listing
from efficientnetv2.serving.spec import ServingError, ServingSpec, constant


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


def write(
    network: keras.Model, spec: ServingSpec, folder: str | os.PathLike
) -> None:
    """Writes a SavedModel that needs nothing but TensorFlow.

    Its weights are constants, into which TensorFlow's graph optimizer folds
    batch normalization. To train on, take the run's folder or a .keras file.

    The class names, one per line, are the asset `assets/class_names.txt`.

    Args:
        network: from normalized images to logits, in float32.
        spec: of the network.
        folder: to write; must not exist.
    """
    module = ServingModel(constant(network), spec)
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


def load(
    folder: str | os.PathLike,
) -> Callable[[np.ndarray | Sequence[bytes]], np.ndarray]:
    """Loads a SavedModel of `write`.

    Returns:
        A function from images, uint8 [batch, height, width, 3] or encoded, to
        probabilities, float32 [batch, classes].

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
