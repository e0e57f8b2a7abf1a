"""A network with its weights as constants."""

from collections.abc import Callable

import keras
import tensorflow as tf

from efficientnetv2.data import preprocessing
from efficientnetv2.serving.spec import ServingSpec


def constant(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a network's inference with its weights as constants.

    TensorFlow's graph optimizer then multiplies the scales of batch
    normalization into the convolutions.

    Args:
        network: from normalized images to logits.
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

    Its argument `images` is float32 [batch, size, size, 3] in [0, 255],
    cropped and resized as `spec` says but not normalized; it returns a dict
    with `probabilities`, float32 [batch, classes].

    The weights become constants here: converters of TensorFlow 2.21 leave
    some of Keras' variables as variables, which their runtimes do not set.

    Args:
        network: from normalized images to logits, in float32.
        spec: of the network.
        batch: number of images, None for any.
    """
    infer, size = constant(network), spec.image_size

    def classify(images):
        logits = infer(preprocessing.normalize(images, spec.mode))
        return {"probabilities": spec.probabilities(logits)}

    return tf.function(
        classify,
        input_signature=[
            tf.TensorSpec([batch, size, size, 3], tf.float32, "images")
        ],
        autograph=False,
    )
