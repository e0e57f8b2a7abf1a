"""Export of a trained network as a SavedModel."""

import os
import pathlib
import shutil

import keras
import ml_collections
import tensorflow as tf

from efficientnetv2.data import preprocessing


class ServingModel(tf.Module):
    """A network with its preprocessing and softmax.

    Two signatures, each with the outputs 'probabilities', float32
    [batch, classes], and 'label', string [batch], the name of the likeliest
    class:

        serving_default  images: uint8 [batch, height, width, 3], any size
        encoded          image_bytes: string [batch], JPEG, PNG, WebP, GIF
                         (first frame) or BMP of any size

    Args:
        network: from normalized images to logits, in float32.
        config: of the run.
        class_names: one a class.
    """

    def __init__(
        self,
        network: keras.Model,
        config: ml_collections.ConfigDict,
        class_names: list[str],
    ):
        super().__init__(name="serving")
        self.network = network
        self.mode, _ = preprocessing.parse_augname(config.data.augname)
        self.image_size = config.eval.isize
        self.transformations = config.data.eval_transformations
        self.class_names = tf.constant(class_names)

    def _classify(self, images):
        logits = tf.cast(self.network(images, training=False), tf.float32)
        best = tf.argmax(logits, axis=1)
        return {
            "probabilities": tf.nn.softmax(logits),
            "label": tf.gather(self.class_names, best),
        }

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.uint8, "images")
        ]
    )
    def classify_images(self, images):
        """Classifies images of one size."""
        return self._classify(
            preprocessing.preprocess_for_eval(
                images, self.image_size, self.mode, self.transformations
            )
        )

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")]
    )
    def classify_encoded(self, image_bytes):
        """Classifies encoded images of any sizes."""

        def decode(data):
            return preprocessing.decode_for_eval(
                data,
                self.image_size,
                self.mode,
                self.transformations,
                portable=True,
            )

        size = self.image_size
        images = tf.map_fn(
            decode,
            image_bytes,
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32),
        )
        return self._classify(images)


def export_saved_model(
    network: keras.Model,
    config: ml_collections.ConfigDict,
    class_names: list[str],
    folder: str | os.PathLike,
) -> pathlib.Path:
    """Writes a SavedModel that needs nothing but TensorFlow.

    It is written beside its place and renamed, so that an interrupted export
    leaves no half of one.

    Args:
        network: from normalized images to logits, in float32.
        config: of the run.
        class_names: one a class.
        folder: to write; replaced if it is there.

    Returns:
        The folder.
    """
    folder = pathlib.Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    module = ServingModel(network, config, class_names)
    tf.saved_model.save(
        module,
        str(temporary),
        signatures={
            "serving_default": module.classify_images,
            "encoded": module.classify_encoded,
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder
