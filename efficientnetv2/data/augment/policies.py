"""RandAugment and AutoAugment on batches, as pure functions of uniform draws.

A policy takes uint8 images [batch, height, width, 3] and float32 uniforms
[batch, draws] in [0, 1), and returns images of the same shape. All randomness
is in the uniforms: equal rows give equal images, whatever else is in the batch.

Within a layer the images that drew the same operation are gathered,
transformed by one call and put back, so that an image costs only the operation
that it drew, and a layer costs a fixed number of TensorFlow operations.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from efficientnetv2.data.augment import ops
from efficientnetv2.data.operations import POLICIES, RAND_AUGMENT_OPS

MAX_LEVEL = 10.0
"""The magnitude at which an operation reaches its nominal full strength."""

AUTO_AUGMENT_POLICIES = {
    # The released EfficientNetV2 code's policy for ImageNet. It is not the one
    # printed in the paper (arXiv 1805.09501, table 9).
    "v0": (
        (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
        (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
        (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
        (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
        (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
        (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
        (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
        (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
        (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
        (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
        (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
        (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
        (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
        (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
        (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
        (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
        (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
        (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
        (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
        (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
        (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
        (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
        (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
        (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
        (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
    ),
    # The same operations on every image, for debugging a pipeline.
    "test": ((("TranslateX", 1.0, 4), ("Equalize", 1.0, 10)),),
}
"""Sub-policies by policy name: sequences of (operation, probability, level)."""

# Called with images, argument and, for Cutout, its centre.
_FUNCTIONS = {
    "AutoContrast": lambda images, *_: ops.autocontrast(images),
    "Equalize": lambda images, *_: ops.equalize(images),
    "Invert": lambda images, *_: ops.invert(images),
    "Cutout": ops.cutout,
    **{
        name: lambda images, argument, _, op=op: op(images, argument)
        for name, op in {
            "Rotate": ops.rotate,
            "Posterize": ops.posterize,
            "Solarize": ops.solarize,
            "SolarizeAdd": ops.solarize_add,
            "Color": ops.color,
            "Contrast": ops.contrast,
            "Brightness": ops.brightness,
            "Sharpness": ops.sharpness,
            "ShearX": ops.shear_x,
            "ShearY": ops.shear_y,
            "TranslateX": ops.translate_x,
            "TranslateY": ops.translate_y,
        }.items()
    },
}

_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")

# Of an operation: its sign, and the centre (y, x) of its cutout.
_OP_DRAWS = 3


def level_to_arg(
    name: str,
    magnitude: float | tf.Tensor,
    cutout_const: float = 40,
    translate_const: float = 100,
) -> int | float | tf.Tensor | None:
    """The argument of an operation at a magnitude, without its random sign.

    A magnitude that changes during training, such as the ramp of progressive
    learning, can be a tensor. Both paths compute in double precision and in
    the same order, and agree exactly. A float32 tensor holds a magnitude such
    as 25/3 to seven digits; where an integer argument hangs on more, pass
    float64.

    Args:
      name: an operation of `RAND_AUGMENT_OPS`.
      magnitude: number or scalar tensor, at least 0; 10 is full strength, and
        more is allowed.
      cutout_const: half the side of the cutout at magnitude 10, pixels.
      translate_const: the translation at magnitude 10, pixels.

    Returns:
      None for an operation without argument. For a number: int for Posterize
      (bits), Solarize (threshold), SolarizeAdd (addition) and Cutout (pixels),
      float for Rotate (degrees), Color, Contrast, Brightness, Sharpness
      (factor), ShearX, ShearY (slope), TranslateX, TranslateY (pixels). For a
      tensor: int32 and float64 scalars likewise.

    Raises:
      ValueError: if the operation is unknown.
    """
    if name in ("AutoContrast", "Equalize", "Invert"):
        return None
    if tf.is_tensor(magnitude):
        level = tf.cast(magnitude, tf.float64) / MAX_LEVEL

        def integer(value):
            return tf.cast(value, tf.int32)

    else:
        level = magnitude / MAX_LEVEL
        integer = int
    if name == "Rotate":
        return level * 30.0
    if name == "Posterize":
        return integer(level * 4.0)
    if name == "Solarize":
        return integer(level * 256.0)
    if name == "SolarizeAdd":
        return integer(level * 110.0)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return level * 1.8 + 0.1
    if name in ("ShearX", "ShearY"):
        return level * 0.3
    if name in ("TranslateX", "TranslateY"):
        return level * float(translate_const)
    if name == "Cutout":
        return integer(level * float(cutout_const))
    raise ValueError(
        f"Unknown operation {name!r}; known: {', '.join(RAND_AUGMENT_OPS)}."
    )


def _as_float(argument) -> tf.Tensor:
    return tf.cast(0.0 if argument is None else argument, tf.float32)


def _index(uniform: tf.Tensor, count) -> tf.Tensor:
    """Maps [0, 1) to 0 .. count - 1, each equally likely; int32."""
    scaled = tf.cast(uniform * tf.cast(count, tf.float32), tf.int32)
    # The product of the largest float below 1 and `count` may round up.
    return tf.minimum(scaled, count - 1)


def _check(images: tf.Tensor) -> tf.Tensor:
    """Converts a policy's images to a tensor, and checks what is static."""
    images = tf.convert_to_tensor(images)
    shape = images.shape
    if images.dtype != tf.uint8 or shape.rank != 4 or shape[3] != 3:
        raise ValueError(
            "images must be uint8 [batch, height, width, 3], got "
            f"{images.dtype.name} {shape}."
        )
    return images


def _check_draws(uniforms: tf.Tensor, count: int) -> tf.Tensor:
    uniforms = tf.convert_to_tensor(uniforms)
    if uniforms.shape.rank != 2 or uniforms.shape[1] not in (None, count):
        raise ValueError(
            f"uniforms must be [batch, {count}], got {uniforms.shape}."
        )
    return uniforms


class Layer(NamedTuple):
    """What one layer of a policy does to each image of a batch.

    Attributes:
      operation: int32 [batch], index into `RAND_AUGMENT_OPS`; their number
        leaves the image.
      argument: float32 [batch], with its sign; whole where the operation wants
        an integer.
      centre: float32 [batch, 2] in [0, 1): where a cutout has its centre.
    """

    operation: tf.Tensor
    argument: tf.Tensor
    centre: tf.Tensor


def _layer(operation, argument, uniforms) -> Layer:
    """Gives the argument its sign; uniforms: float32 [batch, 3]."""
    signed = tf.constant(
        [name in _SIGNED for name in RAND_AUGMENT_OPS] + [False]
    )
    negative = tf.gather(signed, operation) & (uniforms[:, 0] < 0.5)
    argument = tf.where(negative, -argument, argument)
    return Layer(operation, argument, uniforms[:, 1:3])


def centres(layer: Layer, height, width) -> tf.Tensor:
    """The pixels (y, x) on which the cutouts of a layer are centred."""
    return tf.stack(
        [
            _index(layer.centre[:, axis], size)
            for axis, size in enumerate((height, width))
        ],
        axis=1,
    )


def sources(layer: Layer, height, width) -> tf.Tensor:
    """Where a layer's rotations, shears and translations read from.

    Returns:
      float32 [batch, 6]: the source's row is a * x + b * y + c, its column
      d * x + e * y + f; of another operation it is the pixel itself.
    """
    argument = layer.argument
    zero, one = tf.zeros_like(argument), tf.ones_like(argument)
    sin, cos, y_offset, x_offset = ops.rotation(argument, height, width)
    results = tf.stack([zero, one, zero, one, zero, zero], axis=1)
    for name, row in {
        "Rotate": (sin, cos, y_offset, cos, -sin, x_offset),
        "ShearX": (zero, one, zero, one, argument, zero),
        "ShearY": (argument, one, zero, one, zero, zero),
        "TranslateX": (zero, one, zero, one, zero, argument),
        "TranslateY": (zero, one, argument, one, zero, zero),
    }.items():
        drew = layer.operation == RAND_AUGMENT_OPS.index(name)
        results = tf.where(drew[:, None], tf.stack(row, axis=1), results)
    return results


def _apply(images: tf.Tensor, layer: Layer) -> tf.Tensor:
    """Applies to each image the one operation chosen for it.

    Args:
      images: uint8 [batch, height, width, 3].
      layer: of the batch.

    Returns:
      uint8, the shape of `images`.
    """
    positions = tf.range(tf.size(layer.operation))
    size = tf.unstack(tf.shape(images))[1:3]
    parts = (images, layer.argument, centres(layer, *size), positions)
    groups, arguments, middles, positions = (
        tf.dynamic_partition(values, layer.operation, len(RAND_AUGMENT_OPS) + 1)
        for values in parts
    )
    for index, name in enumerate(RAND_AUGMENT_OPS):
        groups[index] = _FUNCTIONS[name](
            groups[index], arguments[index], middles[index]
        )
    stitched = tf.dynamic_stitch(positions, groups)
    return tf.ensure_shape(stitched, images.shape)


def rand_augment_draws(num_layers: int = 2) -> int:
    """How many uniforms an image needs in `rand_augment`."""
    return num_layers * (1 + _OP_DRAWS)


def _rand_augment_layers(
    uniforms, magnitude, num_layers, cutout_const, translate_const
) -> list[Layer]:
    uniforms = _check_draws(uniforms, rand_augment_draws(num_layers))
    arguments = tf.stack(
        [
            _as_float(
                level_to_arg(name, magnitude, cutout_const, translate_const)
            )
            for name in RAND_AUGMENT_OPS
        ]
    )
    layers = []
    for draws in tf.split(uniforms, num_layers, axis=1) if num_layers else ():
        choice = _index(draws[:, 0], len(RAND_AUGMENT_OPS))
        layers.append(
            _layer(choice, tf.gather(arguments, choice), draws[:, 1:])
        )
    return layers


@tf.autograph.experimental.do_not_convert
def rand_augment(
    images: tf.Tensor,
    uniforms: tf.Tensor,
    magnitude: float | tf.Tensor,
    num_layers: int = 2,
    cutout_const: float = 40,
    translate_const: float = 100,
) -> tf.Tensor:
    """RandAugment (arXiv 1909.13719), number for number the released code.

    In each layer an image draws one of the sixteen `RAND_AUGMENT_OPS`, all
    with equal probability. Rotations, shears and translations take either sign
    with equal probability; a cutout is centred on a pixel drawn uniformly.

    Args:
      images: uint8 [batch, height, width, 3], sides at least 3. Any dimension
        but the last may be unknown while tracing, and the batch empty.
      uniforms: float32 [batch, rand_augment_draws(num_layers)] in [0, 1).
      magnitude: number or scalar tensor, at least 0: M in the paper. A tensor
        can change from step to step in one traced graph.
      num_layers: operations applied one after the other: N in the paper.
      cutout_const: half the side of the cutout at magnitude 10, pixels.
      translate_const: the translation at magnitude 10, pixels.

    Returns:
      uint8 [batch, height, width, 3].

    Raises:
      ValueError: if `images` or `uniforms` have another dtype or shape.

    Example:

    >>> uniforms = tf.random.stateless_uniform(
    ...     [len(images), rand_augment_draws()], seed=(seed, step)
    ... )
    >>> images = rand_augment(images, uniforms, magnitude=10)
    """
    return apply(
        images,
        _rand_augment_layers(
            uniforms, magnitude, num_layers, cutout_const, translate_const
        ),
    )


def _sub_policies(policy: str | Sequence) -> Sequence:
    if not isinstance(policy, str):
        return policy
    if policy not in AUTO_AUGMENT_POLICIES:
        raise ValueError(
            f"Unknown AutoAugment policy {policy!r}; known: "
            f"{', '.join(AUTO_AUGMENT_POLICIES)}."
        )
    return AUTO_AUGMENT_POLICIES[policy]


def auto_augment_draws(policy: str | Sequence = "v0") -> int:
    """How many uniforms an image needs in `auto_augment`.

    Raises:
      ValueError: if the policy's name is unknown.
    """
    return 1 + max(map(len, _sub_policies(policy))) * (1 + _OP_DRAWS)


def _auto_augment_layers(
    uniforms, policy="v0", cutout_const=100, translate_const=250
) -> list[Layer]:
    sub_policies = _sub_policies(policy)
    count = auto_augment_draws(policy)
    uniforms = _check_draws(uniforms, count)
    chosen = _index(uniforms[:, 0], len(sub_policies))
    layers = []
    for position in range((count - 1) // (1 + _OP_DRAWS)):
        # One row per sub-policy: operation, probability, argument.
        rows = np.zeros([len(sub_policies), 3], np.float32)
        for row, steps in zip(rows, sub_policies, strict=True):
            if position < len(steps):
                name, probability, level = steps[position]
                argument = level_to_arg(
                    name, level, cutout_const, translate_const
                )
                index = RAND_AUGMENT_OPS.index(name)
                row[:] = index, probability, argument or 0.0
        first = 1 + position * (1 + _OP_DRAWS)
        draws = uniforms[:, first : first + 1 + _OP_DRAWS]
        row = tf.gather(tf.constant(rows), chosen)
        operation = tf.where(
            draws[:, 0] < row[:, 1],
            tf.cast(row[:, 0], tf.int32),
            len(RAND_AUGMENT_OPS),
        )
        layers.append(_layer(operation, row[:, 2], draws[:, 1:]))
    return layers


@tf.autograph.experimental.do_not_convert
def auto_augment(
    images: tf.Tensor,
    uniforms: tf.Tensor,
    policy: str | Sequence = "v0",
    cutout_const: float = 100,
    translate_const: float = 250,
) -> tf.Tensor:
    """AutoAugment (arXiv 1805.09501), number for number the released code.

    An image draws one sub-policy, all with equal probability, and applies its
    operations in order, each with the probability that the policy gives it.

    Args:
      images: uint8 [batch, height, width, 3], as of `rand_augment`.
      uniforms: float32 [batch, auto_augment_draws(policy)] in [0, 1).
      policy: a name in `AUTO_AUGMENT_POLICIES`, or sub-policies, each a
        sequence of (operation, probability, level).
      cutout_const: half the side of the cutout at level 10, pixels.
      translate_const: the translation at level 10, pixels.

    Returns:
      uint8 [batch, height, width, 3].

    Raises:
      ValueError: if the policy or one of its operations is unknown, or if
        `images` or `uniforms` have another dtype or shape.
    """
    return apply(
        images,
        _auto_augment_layers(uniforms, policy, cutout_const, translate_const),
    )


def draws(name: str, num_layers: int = 2) -> int:
    """How many uniforms an image needs in `distort`.

    Raises:
      ValueError: if `name` is not one of `POLICIES`.
    """
    if name == "randaug":
        return rand_augment_draws(num_layers)
    if name == "autoaug":
        return auto_augment_draws()
    if name == "ra_aa":
        return 1 + max(auto_augment_draws(), rand_augment_draws(num_layers))
    raise ValueError(
        f"Unknown augmentation {name!r}; known: {', '.join(POLICIES)}."
    )


@tf.autograph.experimental.do_not_convert
def layers(
    uniforms: tf.Tensor,
    name: str,
    magnitude: float | tf.Tensor = 10,
    num_layers: int = 2,
    cutout_const: float = 40,
    translate_const: float = 100,
    chosen: tf.Tensor | None = None,
) -> list[Layer]:
    """Draws what the policy of that name does to each image.

    Args:
      uniforms: float32 [batch, draws(name, num_layers)] in [0, 1).
      name: "randaug" (`rand_augment`), "autoaug" (`auto_augment`, policy v0)
        or "ra_aa" (for each image one of the two, with equal probability).
      magnitude: number or scalar tensor, of RandAugment.
      num_layers: of RandAugment.
      cutout_const: of RandAugment. AutoAugment keeps the constants that its
        policy was found with.
      translate_const: of RandAugment, likewise.
      chosen: bool [batch], which images are changed; None: all.

    Returns:
      The layers, in their order.

    Raises:
      ValueError: if the name is unknown, or if `uniforms` have another shape.
    """
    uniforms = _check_draws(uniforms, draws(name, num_layers))
    shared = uniforms[:, 1:] if name == "ra_aa" else uniforms
    results = []
    if name != "autoaug":
        results.append(
            _rand_augment_layers(
                shared[:, : rand_augment_draws(num_layers)],
                magnitude,
                num_layers,
                cutout_const,
                translate_const,
            )
        )
    if name != "randaug":
        results.append(_auto_augment_layers(shared[:, : auto_augment_draws()]))
    batch = tf.shape(uniforms)[0]
    nothing = Layer(
        tf.fill([batch], len(RAND_AUGMENT_OPS)),
        tf.zeros([batch]),
        tf.zeros([batch, 2]),
    )
    result = results[0]
    if name == "ra_aa":
        member = uniforms[:, 0] < 0.5
        result = [
            _where(member, autoaug, randaug)
            for randaug, autoaug in itertools.zip_longest(
                *results, fillvalue=nothing
            )
        ]
    if chosen is not None:
        result = [_where(chosen, layer, nothing) for layer in result]
    return result


def _where(condition: tf.Tensor, on: Layer, off: Layer) -> Layer:
    return Layer(
        tf.where(condition, on.operation, off.operation),
        tf.where(condition, on.argument, off.argument),
        tf.where(condition[:, tf.newaxis], on.centre, off.centre),
    )


def parameters(layers: Sequence[Layer], height, width) -> dict[str, tf.Tensor]:
    """What `device.apply` takes besides images of that size.

    Args:
      layers: at least one.
      height, width: of the images.
    """
    columns = {
        "operation": [layer.operation for layer in layers],
        "argument": [layer.argument for layer in layers],
        "centre": [centres(layer, height, width) for layer in layers],
        "sources": [sources(layer, height, width) for layer in layers],
    }
    return {key: tf.stack(each, axis=1) for key, each in columns.items()}


@tf.autograph.experimental.do_not_convert
def apply(images: tf.Tensor, layers: Sequence[Layer]) -> tf.Tensor:
    """Applies layers to a batch; `device.apply` does it on an accelerator.

    Args:
      images: uint8 [batch, height, width, 3], as of `rand_augment`.
      layers: of the same batch.

    Returns:
      uint8 [batch, height, width, 3].

    Raises:
      ValueError: if `images` have another dtype or shape.
    """
    images = _check(images)
    for layer in layers:
        images = _apply(images, layer)
    return images


def distort(
    images: tf.Tensor, uniforms: tf.Tensor, name: str, *args, **kwargs
) -> tf.Tensor:
    """Augments a batch by the policy of that name, see `layers` and `apply`."""
    return apply(images, layers(uniforms, name, *args, **kwargs))
