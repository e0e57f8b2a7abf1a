"""How an exported network's images are prepared and its outputs are read."""

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from efficientnetv2.data import preprocessing
from efficientnetv2.errors import UserError

# The member of a .keras file, which is a zip archive, that holds a spec.
RECORD = "efficientnetv2.json"


class ServingError(UserError):
    """A model that cannot be read or used for predictions."""


@dataclasses.dataclass(frozen=True)
class ServingSpec:
    """How images are prepared for a network, and its logits read."""

    image_size: int  # side of the network's images in pixels
    mode: str  # one of `preprocessing.MODES`
    transformations: Sequence[str] | None  # see `preprocess_for_eval`
    # 'softmax', or 'sigmoid' where the classes of an image are independent;
    # 'none' where the network gives probabilities itself.
    activation: str
    class_names: Sequence[str]  # one per logit
    # See `preprocessing.resize`; False in records of versions without it.
    antialias: bool = False

    def __post_init__(self):
        if self.mode == "default":
            # So earlier versions called it.
            object.__setattr__(self, "mode", "v2")

    @classmethod
    def from_config(cls, config: Mapping, class_names: Sequence[str]):
        """Returns the spec that evaluation has by a configuration.

        Args:
            config: sections `model`, `train`, `eval` and `data`.
            class_names: of the dataset. Logits beyond them, which a larger
                `model.num_classes` gives, are called 'class 12' and so on.
        """
        chosen = config["data"]["eval_transformations"]
        loss = config["train"]["loss_type"]
        count = config["model"]["num_classes"]
        further = [f"class {k}" for k in range(len(class_names), count)]
        return cls(
            image_size=config["eval"]["isize"],
            mode=config["data"]["normalization"],
            transformations=None if chosen is None else list(chosen),
            activation="softmax" if loss == "softmax" else "sigmoid",
            class_names=[*class_names, *further],
            antialias=config["data"]["antialias"],
        )

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """Prepares images of one size as in evaluation.

        Args:
            images: uint8 [batch, height, width, 3].

        Returns:
            float32 [batch, image_size, image_size, 3], normalized.
        """
        return preprocessing.preprocess_for_eval(
            images,
            self.image_size,
            self.mode,
            self.transformations,
            self.antialias,
        )

    def decode(self, data: tf.Tensor) -> tf.Tensor:
        """Likewise from one encoded image, to [image_size, image_size, 3]."""
        return preprocessing.decode_for_eval(
            data,
            self.image_size,
            self.mode,
            self.transformations,
            self.antialias,
            portable=True,
        )

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns float32 [batch, classes] in [0, 1]."""
        logits = tf.cast(logits, tf.float32)
        if self.activation == "none":
            return logits
        if self.activation == "sigmoid":
            return tf.sigmoid(logits)
        return tf.nn.softmax(logits)


def write_to_keras(path: str | os.PathLike, spec: ServingSpec) -> None:
    """Adds a spec to a .keras file; Keras ignores it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(RECORD, json.dumps(dataclasses.asdict(spec)))


def read_from_keras(path: str | os.PathLike) -> ServingSpec:
    """Reads the spec of a .keras file.

    Raises:
        ServingError: if the file cannot be read or has none.
    """
    path = pathlib.Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return ServingSpec(**json.loads(archive.read(RECORD)))
    except (OSError, zipfile.BadZipFile) as error:
        raise ServingError(
            f"{path} is truncated, corrupt or not a .keras file ({error})."
        ) from None
    except (KeyError, TypeError, ValueError):
        raise ServingError(
            f"{path} does not say how its images are prepared: it has no "
            f"{RECORD}, which --mode=export --formats=keras writes. Export "
            "the run's model so, or name the run's folder."
        ) from None


# --- Networks with their weights as constants --------------------------------


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
