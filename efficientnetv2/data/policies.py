"""RandAugment and AutoAugment on batches, as pure functions of uniform draws.

Images are uint8 [batch, height, width, 3] with sides of at least 3, draws
float32 [batch, `draws(name)`] in [0, 1). All randomness is in the draws: equal
rows give equal images, whatever else is in the batch, which may be empty.

Within a layer the images that drew the same operation are gathered,
transformed by one call and put back, so that an image costs only the operation
that it drew, and a layer costs a fixed number of TensorFlow operations.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from efficientnetv2.data import ops
from efficientnetv2.data.device import POLICIES, RAND_AUGMENT_OPS

# The magnitude at which an operation reaches its nominal full strength.
_MAX_LEVEL = 10.0
# AutoAugment's are those that its policy was found with.
_AUTO_CONSTANTS = {"cutout_const": 100, "translate_const": 250}

# The released EfficientNetV2 code's policy for ImageNet. It is not the one
# printed in the paper (arXiv 1805.09501, table 9).
AUTO_AUGMENT = (
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
)
"""AutoAugment's sub-policies, each of (operation, probability, level)."""

_FUNCTIONS = {
    "AutoContrast": ops.autocontrast,
    "Equalize": ops.equalize,
    "Invert": ops.invert,
    "Rotate": ops.rotate,
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "Color": ops.color,
    "Contrast": ops.contrast,
    "Brightness": ops.brightness,
    "Sharpness": ops.sharpness,
    "ShearX": ops.shear_x,
    "ShearY": ops.shear_y,
    "TranslateX": ops.translate_x,
    "TranslateY": ops.translate_y,
    "Cutout": ops.cutout,
    "SolarizeAdd": ops.solarize_add,
}
# At full strength, where the argument is a whole number.
_WHOLE = {"Posterize": 4.0, "Solarize": 256.0, "SolarizeAdd": 110.0}
# What full strength adds to the least argument, and that.
_STRENGTHS = {
    "Rotate": (30.0, 0.0),
    **dict.fromkeys("Color Contrast Brightness Sharpness".split(), (1.8, 0.1)),
    **dict.fromkeys(("ShearX", "ShearY"), (0.3, 0.0)),
}
_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# Of an operation in a layer: which one or whether, its sign, and the centre
# (y, x) of its cutout.
_DRAWS = 4


def level_to_arg(
    name: str,
    magnitude: float | tf.Tensor,
    cutout_const: float = 40,
    translate_const: float = 100,
) -> int | float | tf.Tensor | None:
    """Returns the argument of an operation, without its random sign.

    Args:
        name: one of `RAND_AUGMENT_OPS`.
        magnitude: number or scalar tensor, at least 0; 10 is full strength,
            and more is allowed. Both are computed in double precision; where
            an integer hangs on more than seven digits, pass float64.
        cutout_const, translate_const: half the side of the cutout and the
            translation at magnitude 10, pixels.

    Returns:
        None for an operation without argument; int (int32) for Posterize
        (bits), Solarize (threshold), SolarizeAdd (addition) and Cutout
        (pixels); float (float64) for Rotate (degrees), shears (slope),
        translations (pixels) and all others (factor).

    Raises:
        ValueError: if the operation is unknown.
    """
    if name in ("AutoContrast", "Equalize", "Invert"):
        return None
    shift = (float(translate_const), 0.0)
    strengths = _STRENGTHS | {"TranslateX": shift, "TranslateY": shift}
    whole = _WHOLE | {"Cutout": float(cutout_const)}
    is_tensor = tf.is_tensor(magnitude)
    level = tf.cast(magnitude, tf.float64) if is_tensor else magnitude
    level = level / _MAX_LEVEL
    if name in whole:
        value = level * whole[name]
        return tf.cast(value, tf.int32) if is_tensor else int(value)
    if name not in strengths:
        raise ValueError(
            f"Unknown operation {name!r}; known: {', '.join(RAND_AUGMENT_OPS)}."
        )
    slope, least = strengths[name]
    return level * slope + least


def _index(uniform: tf.Tensor, count) -> tf.Tensor:
    """Maps [0, 1) to 0 .. count - 1, each equally likely; int32."""
    scaled = tf.cast(uniform * tf.cast(count, tf.float32), tf.int32)
    # The product of the largest float below 1 and `count` may round up.
    return tf.minimum(scaled, count - 1)


class Layer(NamedTuple):
    """What one layer of a policy does to each image of a batch.

    Attributes:
        operation: int32 [batch], index into `RAND_AUGMENT_OPS`; their number
            leaves the image.
        argument: float32 [batch], with its sign; whole where the operation
            wants an integer.
        y, x: float32 [batch] in [0, 1): where a cutout has its centre.
    """

    operation: tf.Tensor
    argument: tf.Tensor
    y: tf.Tensor
    x: tf.Tensor


def _layer(operation, argument, uniforms) -> Layer:
    """Gives the argument its sign; uniforms: float32 [batch, 3]."""
    signed = tf.constant(
        [name in _SIGNED for name in RAND_AUGMENT_OPS] + [False]
    )
    negative = tf.gather(signed, operation) & (uniforms[:, 0] < 0.5)
    argument = tf.where(negative, -argument, argument)
    return Layer(operation, argument, uniforms[:, 1], uniforms[:, 2])


def _where(condition: tf.Tensor, on: Layer, off: Layer) -> Layer:
    pairs = zip(on, off, strict=True)
    return Layer(*(tf.where(condition, *pair) for pair in pairs))


def _rand_augment(uniforms, magnitude, num_layers, *constants) -> list[Layer]:
    levels = [level_to_arg(n, magnitude, *constants) for n in RAND_AUGMENT_OPS]
    arguments = tf.stack(
        [tf.cast(0.0 if v is None else v, tf.float32) for v in levels]
    )
    layers = []
    for draws in tf.split(uniforms, num_layers, axis=1) if num_layers else ():
        choice = _index(draws[:, 0], len(RAND_AUGMENT_OPS))
        layers.append(
            _layer(choice, tf.gather(arguments, choice), draws[:, 1:])
        )
    return layers


def _auto_augment(uniforms, sub_policies: Sequence) -> list[Layer]:
    chosen = _index(uniforms[:, 0], len(sub_policies))
    layers = []
    for position in range(max(map(len, sub_policies))):
        # One row per sub-policy: operation, probability, argument.
        rows = np.zeros([len(sub_policies), 3], np.float32)
        for row, steps in zip(rows, sub_policies, strict=True):
            if position < len(steps):
                name, probability, level = steps[position]
                argument = level_to_arg(name, level, **_AUTO_CONSTANTS)
                index = RAND_AUGMENT_OPS.index(name)
                row[:] = index, probability, argument or 0.0
        first = 1 + position * _DRAWS
        draws = uniforms[:, first : first + _DRAWS]
        row = tf.gather(tf.constant(rows), chosen)
        operation = tf.where(
            draws[:, 0] < row[:, 1],
            tf.cast(row[:, 0], tf.int32),
            len(RAND_AUGMENT_OPS),
        )
        layers.append(_layer(operation, row[:, 2], draws[:, 1:]))
    return layers


def draws(policy: str | Sequence, num_layers: int = 2) -> int:
    """Returns how many uniforms an image needs, see `layers`."""
    if not isinstance(policy, str):
        return 1 + max(map(len, policy)) * _DRAWS
    rand, auto = num_layers * _DRAWS, 1 + 2 * _DRAWS
    counts = {"randaug": rand, "autoaug": auto, "ra_aa": 1 + max(rand, auto)}
    if policy not in counts:
        raise ValueError(
            f"Unknown augmentation {policy!r}; known: {', '.join(POLICIES)}."
        )
    return counts[policy]


@tf.autograph.experimental.do_not_convert
def layers(
    uniforms: tf.Tensor,
    policy: str | Sequence,
    magnitude: float | tf.Tensor = 10,
    num_layers: int = 2,
    cutout_const: float = 40,
    translate_const: float = 100,
    chosen: tf.Tensor | None = None,
) -> list[Layer]:
    """Draws what a policy does to each image, number for number the old code.

    RandAugment (arXiv 1909.13719): in each layer an image draws one of the
    `RAND_AUGMENT_OPS`, all with equal probability. Rotations, shears and
    translations take either sign; a cutout is centred on any pixel.
    AutoAugment (arXiv 1805.09501): an image draws one sub-policy and applies
    its operations in order, each with its probability.

    Args:
        uniforms: float32 [batch, draws(policy, num_layers)] in [0, 1).
        policy: "randaug", "autoaug", "ra_aa" (for each image one of the two,
            with equal probability), or sub-policies like `AUTO_AUGMENT`.
        magnitude, num_layers: M and N of RandAugment.
        cutout_const, translate_const: of RandAugment, see `level_to_arg`.
        chosen: bool [batch], which images are changed; None: all.

    Returns:
        The layers, in their order.

    Raises:
        ValueError: if the policy or an operation is unknown, or if `uniforms`
            have another shape.
    """
    count = draws(policy, num_layers)
    uniforms = tf.convert_to_tensor(uniforms)
    if uniforms.shape.rank != 2 or uniforms.shape[1] not in (None, count):
        raise ValueError(
            f"uniforms must be [batch, {count}], got {uniforms.shape}."
        )
    shared = uniforms[:, 1:] if policy == "ra_aa" else uniforms
    rand, auto = [], []
    if policy in ("randaug", "ra_aa"):
        own = shared[:, : draws("randaug", num_layers)]
        constants = (cutout_const, translate_const)
        rand = _rand_augment(own, magnitude, num_layers, *constants)
    if policy != "randaug":
        is_named = isinstance(policy, str)
        auto = _auto_augment(shared, AUTO_AUGMENT if is_named else policy)
    zeros = tf.zeros([tf.shape(uniforms)[0]])
    nothing = Layer(
        tf.cast(zeros, tf.int32) + len(RAND_AUGMENT_OPS), zeros, zeros, zeros
    )
    result = rand or auto
    if policy == "ra_aa":
        result = [
            _where(uniforms[:, 0] < 0.5, *pair)
            for pair in itertools.zip_longest(auto, rand, fillvalue=nothing)
        ]
    if chosen is not None:
        result = [_where(chosen, layer, nothing) for layer in result]
    return result


def _centres(layer: Layer, height, width) -> tf.Tensor:
    """Returns the pixels on which cutouts are centred: int32 [batch, 2]."""
    return tf.stack([_index(layer.y, height), _index(layer.x, width)], axis=1)


def _sources(layer: Layer, height, width) -> tf.Tensor:
    """Returns where rotations, shears and translations read from.

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


def layer_arrays(
    layers: Sequence[Layer], height, width
) -> dict[str, tf.Tensor]:
    """Returns what `device.apply_layers` takes besides images of that size.

    Args:
        layers: at least one.
    """
    columns = {
        "operation": [layer.operation for layer in layers],
        "argument": [layer.argument for layer in layers],
        "centre": [_centres(layer, height, width) for layer in layers],
        "sources": [_sources(layer, height, width) for layer in layers],
    }
    return {key: tf.stack(each, axis=1) for key, each in columns.items()}


def operate(name: str, images: tf.Tensor, arguments, centres) -> tf.Tensor:
    """Applies one of `RAND_AUGMENT_OPS` to images.

    Args:
        name: of the operation.
        images: uint8 [batch, height, width, 3].
        arguments: float32 [batch], for operations that have one.
        centres: int32 [batch, 2], of cutouts.
    """
    takes = {"AutoContrast": 0, "Equalize": 0, "Invert": 0, "Cutout": 2}
    given = (arguments, centres)[: takes.get(name, 1)]
    return _FUNCTIONS[name](images, *given)


def _apply(images: tf.Tensor, layer: Layer) -> tf.Tensor:
    """Applies to each image the one operation chosen for it."""
    positions = tf.range(tf.size(layer.operation))
    size = tf.unstack(tf.shape(images))[1:3]
    parts = (images, layer.argument, _centres(layer, *size), positions)
    groups, arguments, centres, positions = (
        tf.dynamic_partition(values, layer.operation, len(RAND_AUGMENT_OPS) + 1)
        for values in parts
    )
    for index, name in enumerate(RAND_AUGMENT_OPS):
        parts = (groups[index], arguments[index], centres[index])
        groups[index] = operate(name, *parts)
    stitched = tf.dynamic_stitch(positions, groups)
    return tf.ensure_shape(stitched, images.shape)


@tf.autograph.experimental.do_not_convert
def apply_layers(images: tf.Tensor, layers: Sequence[Layer]) -> tf.Tensor:
    """Applies layers to a batch; on an accelerator: `device.apply_layers`.

    Raises:
        ValueError: if `images` have another dtype or rank.
    """
    images = tf.convert_to_tensor(images)
    shape = images.shape
    if images.dtype != tf.uint8 or shape.rank != 4 or shape[3] != 3:
        raise ValueError(
            "images must be uint8 [batch, height, width, 3], got "
            f"{images.dtype.name} {shape}."
        )
    for layer in layers:
        images = _apply(images, layer)
    return images


def distort(
    images: tf.Tensor, uniforms: tf.Tensor, policy: str | Sequence, *args
) -> tf.Tensor:
    """Augments a batch by a policy, see `layers` and `apply_layers`."""
    return apply_layers(images, layers(uniforms, policy, *args))
