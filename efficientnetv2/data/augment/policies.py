"""RandAugment and AutoAugment on batches, as pure functions of uniform draws.

A policy takes uint8 images [batch, height, width, 3] and float32 uniforms
[batch, draws] in [0, 1), and returns images of the same shape. All randomness
is in the uniforms: equal rows give equal images, whatever else is in the batch.

Within a layer the images that drew the same operation are gathered,
transformed by one call and put back, so that an image costs only the operation
that it drew, and a layer costs a fixed number of TensorFlow operations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from efficientnetv2.data.augment import ops

MAX_LEVEL = 10.0
"""The magnitude at which an operation reaches its nominal full strength."""

RAND_AUGMENT_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
"""The operations RandAugment draws from, each with the same probability."""

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

POLICIES = ("randaug", "autoaug", "ra_aa")
"""The names that `distort` and `draws` know."""

# Called with images, argument and, for Cutout, the draws of its centre.
_FUNCTIONS = {
    "AutoContrast": lambda images, *_: ops.autocontrast(images),
    "Equalize": lambda images, *_: ops.equalize(images),
    "Invert": lambda images, *_: ops.invert(images),
    "Cutout": lambda images, *rest: _cutout(images, *rest),
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


def _check(images: tf.Tensor, uniforms: tf.Tensor, count: int):
    """Converts a policy's inputs to tensors, and checks what is static."""
    images = tf.convert_to_tensor(images)
    uniforms = tf.convert_to_tensor(uniforms)
    shape = images.shape
    if images.dtype != tf.uint8 or shape.rank != 4 or shape[3] != 3:
        raise ValueError(
            "images must be uint8 [batch, height, width, 3], got "
            f"{images.dtype.name} {shape}."
        )
    if uniforms.shape.rank != 2 or uniforms.shape[1] not in (None, count):
        raise ValueError(
            f"uniforms must be [batch, {count}], got {uniforms.shape}."
        )
    return images, uniforms


def _cutout(images: tf.Tensor, pad_size, draws: tf.Tensor) -> tf.Tensor:
    size = tf.unstack(tf.shape(images))[1:3]
    centres = tf.stack(
        [_index(draws[:, axis], size[axis]) for axis in range(2)], axis=1
    )
    return ops.cutout(images, pad_size, centres)


def _apply(
    images: tf.Tensor,
    names: Sequence[str],
    choice: tf.Tensor,
    arguments: Mapping[str, tf.Tensor] | tf.Tensor,
    uniforms: tf.Tensor,
) -> tf.Tensor:
    """Applies to each image the one operation chosen for it.

    Args:
      images: uint8 [batch, height, width, 3].
      names: the operations that can occur.
      choice: int32 [batch], index into `names`; len(names) leaves the image.
      arguments: of the operations, without sign, float32, whole where one
        wants an integer: scalars by name, which cost less, or [batch].
      uniforms: float32 [batch, 3]: sign, and centre (y, x) of a cutout.

    Returns:
      uint8, the shape of `images`.
    """
    shared = isinstance(arguments, Mapping)
    columns = [uniforms] if shared else [uniforms, arguments[:, tf.newaxis]]
    table = tf.concat(columns, axis=1)
    positions = tf.range(tf.size(choice))
    groups, tables, positions = (
        tf.dynamic_partition(values, choice, len(names) + 1)
        for values in (images, table, positions)
    )
    for index, name in enumerate(names):
        table = tables[index]
        argument = arguments[name] if shared else table[:, _OP_DRAWS]
        if name in _SIGNED:
            argument = tf.where(table[:, 0] < 0.5, -argument, argument)
        groups[index] = _FUNCTIONS[name](groups[index], argument, table[:, 1:3])
    stitched = tf.dynamic_stitch(positions, groups)
    return tf.ensure_shape(stitched, images.shape)


def rand_augment_draws(num_layers: int = 2) -> int:
    """How many uniforms an image needs in `rand_augment`."""
    return num_layers * (1 + _OP_DRAWS)


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
    images, uniforms = _check(images, uniforms, rand_augment_draws(num_layers))
    arguments = {
        name: _as_float(
            level_to_arg(name, magnitude, cutout_const, translate_const)
        )
        for name in RAND_AUGMENT_OPS
    }
    for layer in tf.split(uniforms, num_layers, axis=1) if num_layers else ():
        choice = _index(layer[:, 0], len(RAND_AUGMENT_OPS))
        images = _apply(
            images, RAND_AUGMENT_OPS, choice, arguments, layer[:, 1:]
        )
    return images


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
    sub_policies = _sub_policies(policy)
    count = auto_augment_draws(policy)
    images, uniforms = _check(images, uniforms, count)
    chosen = _index(uniforms[:, 0], len(sub_policies))
    for position in range((count - 1) // (1 + _OP_DRAWS)):
        steps = [
            sub_policy[position] if position < len(sub_policy) else None
            for sub_policy in sub_policies
        ]
        names = sorted({step[0] for step in steps if step is not None})
        # One row a sub-policy: operation, probability, argument.
        rows = np.zeros([len(steps), 3], np.float32)
        for row, step in zip(rows, steps, strict=True):
            if step is not None:
                name, probability, level = step
                argument = level_to_arg(
                    name, level, cutout_const, translate_const
                )
                row[:] = names.index(name), probability, argument or 0.0
        first = 1 + position * (1 + _OP_DRAWS)
        layer = uniforms[:, first : first + 1 + _OP_DRAWS]
        row = tf.gather(tf.constant(rows), chosen)
        choice = tf.where(
            layer[:, 0] < row[:, 1], tf.cast(row[:, 0], tf.int32), len(names)
        )
        images = _apply(images, names, choice, row[:, 2], layer[:, 1:])
    return images


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
def distort(
    images: tf.Tensor,
    uniforms: tf.Tensor,
    name: str,
    magnitude: float | tf.Tensor = 10,
    num_layers: int = 2,
    cutout_const: float = 40,
    translate_const: float = 100,
) -> tf.Tensor:
    """Augments a batch by the policy of that name.

    Args:
      images: uint8 [batch, height, width, 3], as of `rand_augment`.
      uniforms: float32 [batch, draws(name, num_layers)] in [0, 1).
      name: "randaug" (`rand_augment`), "autoaug" (`auto_augment`, policy v0)
        or "ra_aa" (for each image one of the two, with equal probability).
      magnitude: number or scalar tensor, of RandAugment.
      num_layers: of RandAugment.
      cutout_const: of RandAugment. AutoAugment keeps the constants that its
        policy was found with.
      translate_const: of RandAugment, likewise.

    Returns:
      uint8 [batch, height, width, 3].

    Raises:
      ValueError: if the name is unknown, or if `images` or `uniforms` have
        another dtype or shape.
    """
    images, uniforms = _check(images, uniforms, draws(name, num_layers))

    def randaug(images, uniforms):
        uniforms = uniforms[:, : rand_augment_draws(num_layers)]
        return rand_augment(
            images,
            uniforms,
            magnitude,
            num_layers,
            cutout_const,
            translate_const,
        )

    def autoaug(images, uniforms):
        return auto_augment(images, uniforms[:, : auto_augment_draws()])

    if name == "randaug":
        return randaug(images, uniforms)
    if name == "autoaug":
        return autoaug(images, uniforms)
    member = tf.cast(uniforms[:, 0] < 0.5, tf.int32)
    image_parts = tf.dynamic_partition(images, member, 2)
    draw_parts = tf.dynamic_partition(uniforms[:, 1:], member, 2)
    positions = tf.dynamic_partition(tf.range(tf.size(member)), member, 2)
    results = [
        policy(*parts)
        for policy, *parts in zip(
            (randaug, autoaug), image_parts, draw_parts, strict=True
        )
    ]
    return tf.ensure_shape(tf.dynamic_stitch(positions, results), images.shape)
