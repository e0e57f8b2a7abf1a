"""The operations of `ops` on an accelerator, as the host drew them.

Written in `keras.ops`, for XLA on either backend: shapes are static, nothing
branches on an image, and nothing calls back to the host. Each operation runs
on the whole batch, and each image keeps the result of the one that it drew;
on an accelerator, wasted results cost less than sorting the images.

The values equal those of `ops` to the last bit. A compiler may contract a * b
+ c into one operation that rounds once, where `ops` rounds twice; `_product`
keeps it from doing so.
"""

import functools
import math
from collections.abc import Callable, Mapping

import keras
import ml_collections
import numpy as np
from keras import ops

from efficientnetv2 import normalizations
from efficientnetv2.progressive import resolve_image_size

RAND_AUGMENT_OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY", "Cutout", "SolarizeAdd"),
)
"""The operations RandAugment draws from, each with the same probability."""
POLICIES = ("randaug", "autoaug", "ra_aa")
"""The policies of `policies.layers` that have a name."""

# Grey level of the pixels that an operation uncovers or cuts out.
FILL = 128
LUMA = (0.2989, 0.587, 0.114)
# The largest float32 below 0.5, which rounds ties away from zero.
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0.0))
# Pixels from which on an accelerator augments.
_SMALLEST = 96

# What `apply_layers` takes besides images.
_LAYERS = ("operation", "argument", "centre", "sources")

# Of autocontrast, by the distance of the darkest and the brightest value. A
# division on an accelerator may be off by a bit.
_SCALES = np.divide(
    np.float32(255), np.maximum(np.arange(256, dtype=np.float32), 1)
)
_SCALES[0] = 1.0


def _product(first, second):
    """first * second, rounded, whatever is added to it."""
    return ops.maximum(first * second, -1e30)


def _multiply_add(values, weight: float, total):
    """values * weight + total, rounded once, as the host's convolution does.

    values: whole numbers up to 255; weight in (0, 1); total: of such products.
    """
    # 8 bits times 12 are exact, and so is the sum of what is left over.
    mantissa, exponent = math.frexp(weight)
    high = math.ldexp(math.floor(mantissa * 4096), exponent - 12)
    most = values * high
    result = total + most
    added = result - total
    error = (total - (result - added)) + (most - added)
    return result + (error + values * (weight - high))


def _to_uint8(values):
    """Clips float32 to 0..255 and truncates; stays float32."""
    return ops.floor(ops.clip(values, 0.0, 255.0))


def _per_image(values):
    return ops.reshape(values, [-1, 1, 1, 1])


def _drew(operation, name: str):
    return _per_image(operation == RAND_AUGMENT_OPS.index(name))


def _lines(images):
    """Positions of rows [height, 1, 1] and columns [width, 1], int32."""
    _, height, width, _ = ops.shape(images)
    rows, columns = ops.arange(height), ops.arange(width)
    return rows[:, None, None], columns[:, None]


def _sample(images, sources):
    """Reads pixels from where `policies.layer_arrays` says."""
    _, height, width, _ = ops.shape(images)
    rows, columns = (ops.cast(each, "float32") for each in _lines(images))
    a, b, c, d, e, f = (_per_image(sources[:, i]) for i in range(6))

    def nearest(by_x, by_y, offset, size):
        position = _product(by_x, columns) + _product(by_y, rows) + offset
        position = ops.clip(position, -1.0, ops.cast(size, "float32"))
        return ops.cast(ops.floor(position + BELOW_HALF), "int32")

    y = nearest(a, b, c, height)
    x = nearest(d, e, f, width)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = ops.clip(y, 0, height - 1) * width + ops.clip(x, 0, width - 1)
    # Three channels in one number: one read per pixel.
    red, green, blue = (ops.cast(images[..., i], "int32") for i in range(3))
    pixels = ops.reshape(red + 256 * green + 65536 * blue, [-1, height * width])
    sampled = ops.take_along_axis(
        pixels, ops.reshape(index, [-1, height * width]), axis=1
    )
    sampled = ops.reshape(sampled, [-1, height, width, 1])
    channels = (sampled % 256, sampled // 256 % 256, sampled // 65536)
    return ops.where(inside, ops.concatenate(channels, axis=-1), FILL)


def _autocontrast(values):
    low = ops.min(values, axis=(1, 2), keepdims=True)
    high = ops.max(values, axis=(1, 2), keepdims=True)
    scale = ops.take(_SCALES, ops.cast(high - low, "int32"))
    offset = ops.where(high > low, -_product(low, scale), 0.0)
    return _to_uint8(_product(values, scale) + offset)


def _equalize(values):
    _, height, width, _ = ops.shape(values)
    pixels = ops.cast(ops.reshape(values, [-1, height * width, 3]), "int32")
    levels = ops.arange(256)
    # Compared with each level and summed in one pass: a histogram would be
    # scattered, which accelerators are slow at.
    upto = ops.sum(
        ops.cast(pixels[..., None] <= levels, "int32"), axis=1
    )  # [batch, 3, 256]
    total = upto[..., -1:]
    darker_than_brightest = ops.max(
        ops.where(upto < total, upto, 0), axis=-1, keepdims=True
    )
    step = darker_than_brightest // 255
    below = ops.pad(upto[..., :-1], [[0, 0], [0, 0], [1, 0]])
    table = (below + step // 2) // ops.maximum(step, 1)
    table = ops.where(levels == 0, 0, ops.minimum(table, 255))
    table = ops.where(step > 0, table, levels)
    # Looked up by comparing, too: with a gather of three dimensions the
    # compiler for TPUs takes minutes and gigabytes.
    found = ops.where(pixels[..., None] == levels, table[:, None], 0)
    equalized = ops.sum(found, axis=-1)
    equalized = ops.reshape(equalized, [-1, height, width, 3])
    return ops.cast(equalized, "float32")


def _grey(values):
    red, green, blue = (
        _product(_product(values[..., i : i + 1], np.float32(1.0 / 255.0)), w)
        for i, w in enumerate(np.float32(LUMA))
    )
    return ops.floor((red + green + blue) * 255.5)


def _smooth(values):
    """Of the pixels that have eight neighbours, the 3x3 mean; else itself."""
    _, height, width, _ = ops.shape(values)
    weights = np.ones([3, 3], np.float32)
    weights[1, 1] = 5.0
    total = ops.zeros_like(values[:, 2:, 2:])
    for (row, column), weight in np.ndenumerate(weights / np.float32(13.0)):
        shifted = values[:, row : row + height - 2, column : column + width - 2]
        total = _multiply_add(shifted, float(weight), total)
    rows, columns = _lines(values)
    inner = (
        (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    )
    smooth = ops.pad(ops.floor(total), [[0, 0], [1, 1], [1, 1], [0, 0]])
    return ops.where(inner, smooth, values)


def _blend(values, operation, factor):
    """Color, Contrast, Brightness and Sharpness: a blend with another image."""
    _, height, width, _ = ops.shape(values)
    level = ops.cast(height * width, "float32") / 256.0
    other = ops.zeros_like(values)
    for name, image in {
        "Color": _grey(values),
        "Contrast": ops.floor(ops.minimum(level, 255.0)),
        "Sharpness": _smooth(values),
    }.items():
        other = ops.where(_drew(operation, name), image, other)
    return _to_uint8(other + _product(factor, values - other))


def _layer(images, operation, argument, centre, sources):
    """Applies one layer; images: float32 [batch, height, width, 3]."""
    images = ops.cast(_sample(images, sources), "float32")
    argument = _per_image(argument)
    rows, columns = (
        lines - _per_image(centre[:, axis])
        for axis, lines in enumerate(_lines(images))
    )
    pad = ops.cast(argument, "int32")
    covered = (
        (rows >= -pad) & (rows < pad) & (columns >= -pad) & (columns < pad)
    )
    # Bits that a posterized value keeps; out of range: one.
    kept = ops.where((argument >= 1) & (argument <= 8), argument, 1.0)
    bit = ops.take(
        np.float32(2.0) ** np.arange(8, -1, -1, dtype=np.float32),
        ops.cast(kept, "int32"),
    )
    reduced = ops.floor(images * (1.0 / bit)) * bit
    threshold = ops.cast(ops.cast(argument, "int32") % 256, "float32")
    threshold = ops.where(_drew(operation, "Invert"), 0.0, threshold)
    inverted = ops.where(images >= threshold, 255.0 - images, images)
    added = ops.where(images < 128, images + argument, images)
    blended = _blend(images, operation, argument)
    results = images
    for name, result in {
        "AutoContrast": _autocontrast(images),
        "Equalize": _equalize(images),
        "Invert": inverted,
        "Posterize": reduced,
        "Solarize": inverted,
        "Color": blended,
        "Contrast": blended,
        "Brightness": blended,
        "Sharpness": blended,
        "Cutout": ops.where(covered, float(FILL), images),
        "SolarizeAdd": _to_uint8(added),
    }.items():
        results = ops.where(_drew(operation, name), result, results)
    return results


def apply_layers(images, operation, argument, centre, sources):
    """Applies the layers of a policy, as `policies.apply_layers` on the host.

    Args:
      images: uint8 [batch, height, width, 3], sides at least 3.
      operation: int32 [batch, layers], index into `RAND_AUGMENT_OPS`; their
        number leaves the image.
      argument: float32 [batch, layers], with its sign.
      centre: int32 [batch, layers, 2], the centre (y, x) of a cutout.
      sources: float32 [batch, layers, 6], see `policies._sources`.

    Returns:
      float32 [batch, height, width, 3], whole numbers from 0 to 255.
    """

    def layer(index, images):
        parts = (operation, argument, centre, sources)
        return _layer(
            images, *(ops.take(each, index, axis=1) for each in parts)
        )

    # A loop, so that a layer is compiled once.
    return ops.fori_loop(
        0, operation.shape[1], layer, ops.cast(images, "float32")
    )


def blend(
    images, others, labels, other_labels, line, image_part, box, label_part, ops
):
    """Mixes images with their partners, on any backend.

    Args:
        images, others: floating point [batch, size, size, channels].
        labels, other_labels: float32 [batch, classes].
        line: int32 [size], from 0.
        image_part, box, label_part: see `mixing.draw_parts`.
        ops: a module with `cast` and `where`: TensorFlow or `keras.ops`.

    Returns:
        Mixed images and labels of the same shapes and types.
    """
    rows, columns = (
        (line >= box[:, axis, :1]) & (line < box[:, axis, 1:])
        for axis in range(2)
    )
    shown = rows[:, :, None, None] & columns[:, None, :, None]
    part = ops.where(shown, 1.0, image_part[:, None, None, None])
    images = images + (others - images) * ops.cast(part, images.dtype)
    labels = labels + (other_labels - labels) * label_part[:, None]
    return images, labels


def is_chosen(config: ml_collections.ConfigDict, accelerated: bool) -> bool:
    """Resolves `data.augment_on`; accelerated: on a GPU or TPU.

    Moving work from a CPU to itself gains nothing, and below 96 pixels two
    cores augment more images per second than an accelerator trains on.
    """
    if config.data.augment_on is not None:
        return config.data.augment_on == "device"
    policy = config.data.augname
    has_work = policy in POLICIES or bool(
        config.data.mixup_alpha or config.data.cutmix_alpha
    )
    large = resolve_image_size(config) >= _SMALLEST
    return accelerated and has_work and large


def batch_maker(config: ml_collections.ConfigDict) -> Callable:
    """Returns `finish` for the batches of a run, to be compiled."""
    return functools.partial(finish, mode=config.data.normalization)


def finish(batch: Mapping, mode: str) -> tuple:
    """Turns the output of `pipeline.training_dataset` into a training batch.

    Args:
      batch: 'images', uint8 [batch, size, size, 1 or 3], or float32, already
        normalized; 'labels', float32 [batch, classes]; and, as far as the run
        has them, what `apply_layers` and `blend` take.
      mode: of normalization, one of `normalizations.MODES`.

    Returns:
      Images, float32 [batch, size, size, 3], and labels, float32 [batch,
      classes].
    """
    batch = dict(batch)
    images, labels = batch.pop("images"), batch.pop("labels")
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        if images.shape[-1] == 1:
            images = ops.repeat(images, 3, axis=-1)
        layers = {key: batch.pop(key) for key in _LAYERS if key in batch}
        images = ops.cast(images, "float32")
        if layers:
            images = apply_layers(images, **layers)
        images = normalizations.normalize(images, mode)
    if "partner" in batch:
        partner = batch.pop("partner")
        images, labels = blend(
            images,
            ops.take(images, partner, axis=0),
            labels,
            ops.take(labels, partner, axis=0),
            ops.arange(ops.shape(images)[1]),
            **batch,
            ops=ops,
        )
    return images, labels
