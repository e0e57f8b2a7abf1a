"""How an exported network's images are prepared and its outputs are read."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence

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
    mode: str  # one of `normalizations.MODES`
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

        From uint8 [batch, height, width, 3] to float32 [batch, image_size,
        image_size, 3], normalized.
        """
        return preprocessing.preprocess_for_eval(images, *self._preprocessing)

    def decode(self, data: tf.Tensor) -> tf.Tensor:
        """Likewise from one encoded image, to [image_size, image_size, 3]."""
        return preprocessing.decode_for_eval(
            data, *self._preprocessing, portable=True
        )

    @property
    def _preprocessing(self):
        return self.image_size, self.mode, self.transformations, self.antialias

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns float32 [batch, classes] in [0, 1]."""
        logits = tf.cast(logits, tf.float32)
        if self.activation == "none":
            return logits
        if self.activation == "sigmoid":
            return tf.sigmoid(logits)
        return tf.nn.softmax(logits)


def write_record(path: str | os.PathLike, spec: ServingSpec) -> None:
    """Adds a spec to a .keras file; Keras ignores it."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(RECORD, json.dumps(dataclasses.asdict(spec)))


def read_record(path: str | os.PathLike) -> ServingSpec | None:
    """Reads the spec of a .keras file; None if Keras alone wrote the file.

    Raises:
        ServingError: if the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if RECORD not in archive.namelist():
                return None
            return ServingSpec(**json.loads(archive.read(RECORD)))
    except (OSError, zipfile.BadZipFile, TypeError, ValueError) as error:
        raise ServingError(
            f"{path} is truncated, corrupt or not a .keras file ({error})."
        ) from None
