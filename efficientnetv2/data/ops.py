"""The sixteen image operations of AutoAugment and RandAugment, batched.

Every operation takes `images`, uint8 [batch, height, width, 3], and returns
the same shape and dtype. An argument is a scalar or a [batch] tensor, so that
one call transforms each image by its own strength. Batch, height and width may
be unknown while tracing, and the batch may be empty; sides are at least 3.

The operations are those of AutoAugment (arXiv 1805.09501, table 6), most of
them after PIL, and Cutout (arXiv 1708.04552). The values equal those of the
released EfficientNetV2 code to the last bit, also where it departs from PIL:
models were trained, and magnitudes tuned, on what the code computes.
"""

import math

import numpy as np
import tensorflow as tf

from efficientnetv2.data.device import BELOW_HALF, FILL, LUMA


def _size(images: tf.Tensor) -> tuple:
    """Height and width: ints where known, scalar tensors elsewhere."""
    static = images.shape[1:3].as_list()
    if None not in static:
        return tuple(static)
    dynamic = tf.unstack(tf.shape(images))[1:3]
    return tuple(
        d if s is None else s for s, d in zip(static, dynamic, strict=True)
    )


def _rows(images: tf.Tensor) -> tf.Tensor:
    """[batch, height, width * 3]; a long last axis is what Eigen is fast on."""
    height, width = _size(images)
    return tf.reshape(images, [-1, height, width * 3])


def _like(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Gives `values` back the shape of `images`."""
    values = tf.reshape(values, [-1, *_size(images), 3])
    values.set_shape(images.shape)
    return values


def _per_image(argument, dtype: tf.DType) -> tf.Tensor:
    """A scalar or [batch] argument, shaped to broadcast against `_rows`.

    Equal arguments, as RandAugment draws them, become a single one: Eigen
    handles a scalar operand several times as fast as one that broadcasts.
    """
    argument = tf.cast(tf.convert_to_tensor(argument), dtype)
    argument = tf.reshape(argument, [-1, 1, 1])
    alike = tf.reduce_all(argument == argument[:1])
    return argument[: tf.where(alike, 1, tf.size(argument))]


def _clip(values: tf.Tensor, low, high) -> tf.Tensor:
    """`tf.clip_by_value` in one pass; it takes two."""
    return tf.raw_ops.ClipByValue(
        t=values, clip_value_min=low, clip_value_max=high
    )


def _to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Clips float32 to 0..255 and truncates."""
    return tf.cast(_clip(values, 0.0, 255.0), tf.uint8)


def _blend(degenerate: tf.Tensor, images: tf.Tensor, factor) -> tf.Tensor:
    """Moves from `degenerate` (factor 0) through `images` (1) and beyond.

    Operands hold whole numbers, so the factors 0 and 1 return one of them
    unchanged, and between the two nothing is clipped.
    """
    return _to_uint8(degenerate + factor * (images - degenerate))


def _mask(condition: tf.Tensor) -> tf.Tensor:
    """255 where `condition` holds, else 0."""
    return tf.cast(condition, tf.uint8) * tf.constant(255, tf.uint8)


def _repeat_channels(per_channel: tf.Tensor, width) -> tf.Tensor:
    """[batch, 3] to [batch, 1, width * 3], to broadcast against `_rows`."""
    return tf.tile(per_channel, [1, width])[:, tf.newaxis]


def autocontrast(images: tf.Tensor) -> tf.Tensor:
    """Stretches each channel linearly until it spans 0 to 255.

    A channel of one single value is left as it is.
    """
    _, width = _size(images)
    values = tf.cast(_rows(images), tf.float32)

    def over_pixels(reduce):
        # Down the rows first: that pass runs along the long axis.
        columns = reduce(values, axis=1)
        return reduce(tf.reshape(columns, [-1, width, 3]), axis=1)

    low = over_pixels(tf.reduce_min)
    high = over_pixels(tf.reduce_max)
    spread = high > low
    scale = tf.where(spread, 255.0 / (high - low), 1.0)
    offset = tf.where(spread, -low * scale, 0.0)
    scale, offset = (_repeat_channels(each, width) for each in (scale, offset))
    return _like(_to_uint8(values * scale + offset), images)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Flattens the histogram of each channel.

    A channel is left as it is where its pixels, those of its brightest level
    set aside, number fewer than 255.
    """
    _, width = _size(images)
    channels = tf.shape(images)[0] * 3
    bins = tf.cast(_rows(images), tf.int32) + _repeat_channels(
        tf.reshape(tf.range(channels) * 256, [-1, 3]), width
    )
    bins = tf.reshape(bins, [-1])
    # All channels of all images in one histogram: several times as fast as the
    # two-dimensional form of the operation.
    histogram = tf.raw_ops.DenseBincount(
        input=bins, size=channels * 256, weights=tf.zeros([0], tf.int32)
    )
    histogram = tf.reshape(histogram, [channels, 256])
    upto = tf.cumsum(histogram, axis=1)
    total = upto[:, -1:]
    darker_than_brightest = tf.reduce_max(
        upto * tf.cast(upto < total, tf.int32), axis=1, keepdims=True
    )
    step = darker_than_brightest // 255
    table = (upto - histogram + step // 2) // tf.maximum(step, 1)
    # The level before the first has no count, and no half step either.
    table = tf.concat([tf.zeros_like(table[:, :1]), table[:, 1:]], axis=1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    table = tf.reshape(tf.cast(table, tf.uint8), [-1])
    return _like(tf.gather_nd(table, bins[:, tf.newaxis]), images)


def invert(images: tf.Tensor) -> tf.Tensor:
    """Replaces each value v by 255 - v."""
    return tf.bitwise.invert(images)


def posterize(images: tf.Tensor, bits) -> tf.Tensor:
    """Keeps the `bits` highest bits of each value.

    bits: integer scalar or [batch], 1 to 8. Anything else keeps one bit, as
    the shift of the released code does when asked for more than seven bits.
    """
    bits = _per_image(bits, tf.int32)
    bits = tf.where((bits >= 1) & (bits <= 8), bits, 1)
    mask = tf.cast(256 - tf.bitwise.left_shift(1, 8 - bits), tf.uint8)
    return _like(tf.bitwise.bitwise_and(_rows(images), mask), images)


def solarize(images: tf.Tensor, threshold) -> tf.Tensor:
    """Inverts the values that reach `threshold`.

    threshold: integer scalar or [batch], taken modulo 256, as in the released
    code: 256 inverts everything, where PIL would invert nothing.
    """
    threshold = tf.cast(_per_image(threshold, tf.int32) % 256, tf.uint8)
    rows = _rows(images)
    flipped = tf.bitwise.bitwise_xor(rows, _mask(rows >= threshold))
    return _like(flipped, images)


def solarize_add(
    images: tf.Tensor, addition, threshold: int = 128
) -> tf.Tensor:
    """Adds `addition` to the values below `threshold`, and clips to 0..255.

    addition: integer scalar or [batch], -255 to 255; threshold: 0 to 255.
    """
    values = tf.cast(_rows(images), tf.float32)
    below = _clip(threshold - values, 0.0, 1.0)
    added = values + below * _per_image(addition, tf.float32)
    return _like(_to_uint8(added), images)


def color(images: tf.Tensor, factor) -> tf.Tensor:
    """Changes the saturation: 0 is greyscale, 1 the image, more is vivid.

    factor: float scalar or [batch], at least 0.
    """
    values = tf.cast(images, tf.float32)
    red, green, blue = (
        channel * weight
        for channel, weight in zip(
            tf.unstack(values * (1.0 / 255.0), axis=-1), LUMA, strict=True
        )
    )
    grey = tf.floor(((red + green) + blue) * 255.5)
    # A matrix product copies a plane into three channels faster than any
    # operation that broadcasts along so short an axis.
    grey = tf.matmul(tf.reshape(grey, [-1, 1]), tf.ones([1, 3]))
    factor = _per_image(factor, tf.float32)
    blended = _blend(_rows(_like(grey, images)), _rows(values), factor)
    return _like(blended, images)


def contrast(images: tf.Tensor, factor) -> tf.Tensor:
    """Moves values away from a grey level, or towards it.

    PIL takes the mean brightness for it. The released code sums the counts of
    the histogram, not its levels: the number of pixels / 256, at most 255.

    factor: float scalar or [batch]: 0 is flat grey, 1 the image.
    """
    height, width = _size(images)
    level = tf.cast(height * width, tf.float32) / 256.0
    level = tf.floor(tf.minimum(level, 255.0))
    values = tf.cast(_rows(images), tf.float32)
    return _like(_blend(level, values, _per_image(factor, tf.float32)), images)


def brightness(images: tf.Tensor, factor) -> tf.Tensor:
    """Multiplies each value by `factor` and clips.

    factor: float scalar or [batch], at least 0: 0 is black, 1 the image.
    """
    values = tf.cast(_rows(images), tf.float32)
    return _like(_to_uint8(values * _per_image(factor, tf.float32)), images)


def sharpness(images: tf.Tensor, factor) -> tf.Tensor:
    """Sharpens (factor above 1) or smooths (below 1) by a 3x3 kernel.

    The outermost pixels, whose neighbourhood is incomplete, do not change.

    factor: float scalar or [batch]: 0 is the smoothed image, 1 the image.
    """
    height, width = _size(images)
    kernel = np.ones([3, 3, 3, 1], np.float32)
    kernel[1, 1] = 5.0
    values = tf.cast(images, tf.float32)
    smooth = tf.nn.depthwise_conv2d(
        values, kernel / np.float32(13.0), strides=[1] * 4, padding="VALID"
    )
    # On an empty batch the kernel gives its output the size of its input.
    smooth = tf.slice(smooth, [0] * 4, [-1, height - 2, width - 2, -1])
    inner = values[:, 1:-1, 1:-1]
    factor = _per_image(factor, tf.float32)
    inner = _like(_blend(_rows(tf.floor(smooth)), _rows(inner), factor), inner)
    middle = tf.concat([images[:, 1:-1, :1], inner, images[:, 1:-1, -1:]], 2)
    return tf.concat([images[:, :1], middle, images[:, -1:]], 1)


def cutout(images: tf.Tensor, pad_size, centres) -> tf.Tensor:
    """Covers a square of side 2 * `pad_size` with grey (arXiv 1708.04552).

    Rows y - pad_size to y + pad_size - 1 and the columns likewise are covered,
    as far as they lie in the image.

    pad_size: integer scalar or [batch], at least 0; centres: int32 [batch, 2],
    (y, x) of each square.
    """
    height, width = _size(images)
    pad_size = tf.reshape(tf.cast(pad_size, tf.int32), [-1, 1])

    def covered(positions, centre):
        offset = positions - centre
        return (offset >= -pad_size) & (offset < pad_size)

    rows = covered(tf.range(height), centres[:, :1])
    columns = _mask(covered(tf.range(width * 3) // 3, centres[:, 1:]))
    # Each row of the mask is one of two: copying is faster than broadcasting.
    square = tf.gather(
        tf.stack([tf.zeros_like(columns), columns], axis=1),
        tf.cast(rows, tf.int32),
        batch_dims=1,
    )
    # Several times as fast as `tf.where`, which does not vectorize on uint8.
    rows = _rows(images)
    change = tf.bitwise.bitwise_xor(rows, tf.constant(FILL, tf.uint8))
    change = tf.bitwise.bitwise_and(change, square)
    return _like(tf.bitwise.bitwise_xor(rows, change), images)


def _grid(size, axis: int) -> tf.Tensor:
    """Pixel positions along an axis, float32, with the rank of a batch."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return tf.reshape(tf.range(tf.cast(size, tf.float32)), shape)


def _nearest(position: tf.Tensor, size) -> tf.Tensor:
    """Rounds positions to pixels; those outside become -1 or `size`.

    Ties go away from zero, as in the kernel of ImageProjectiveTransformV3.
    """
    position = _clip(position, -1.0, tf.cast(size, tf.float32))
    # Adding 0.5 itself would round 0.49999997 up and bring -0.5 inside.
    return tf.cast(tf.floor(position + BELOW_HALF), tf.int32)


def _sample(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reads output pixels from rows `y` and columns `x`, grey at the borders.

    y, x: int32, -1 to height or width; broadcast to [batch, height, width].
    """
    height, width = _size(images)
    # One grey pixel outside stands for all that lie further out.
    bordered = tf.pad(
        images,
        [[0, 0], [1, 1], [1, 1], [0, 0]],
        constant_values=tf.constant(FILL, tf.uint8),
    )
    stride = width + 2
    first = tf.range(tf.shape(images)[0]) * ((height + 2) * stride) + (
        stride + 1
    )
    index = (y * stride + tf.reshape(first, [-1, 1, 1])) + x
    # gather_nd takes half the time of gather on slices this short.
    sampled = tf.gather_nd(
        tf.reshape(bordered, [-1, 3]), tf.reshape(index, [-1, 1])
    )
    return _like(sampled, images)


# The functions below give, bit for bit, what ImageProjectiveTransformV3 gives
# for NEAREST and CONSTANT, in a fraction of the time. That kernel evaluates the
# whole projective map again for each channel of each pixel.


def rotation(degrees, height, width) -> tuple[tf.Tensor, ...]:
    """Of a rotation about the image's centre: sin, cos, y and x offset.

    Output (x, y) is read from row sin * x + cos * y + y offset and column
    cos * x - sin * y + x offset; float32, of the shape of `degrees`.
    """
    radians = tf.cast(degrees, tf.float32) * np.float32(math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    right = tf.cast(width, tf.float32) - 1.0
    bottom = tf.cast(height, tf.float32) - 1.0
    y_offset = (bottom - (sin * right + cos * bottom)) / 2.0
    x_offset = (right - (cos * right - sin * bottom)) / 2.0
    return sin, cos, y_offset, x_offset


def rotate(images: tf.Tensor, degrees) -> tf.Tensor:
    """Rotates about the image's centre, counterclockwise for positive angles.

    degrees: float scalar or [batch].
    """
    height, width = _size(images)
    sin, cos, y_offset, x_offset = rotation(
        _per_image(degrees, tf.float32), height, width
    )
    x, y = _grid(width, 2), _grid(height, 1)

    def source(by_x, by_y, offset, size):
        # Keeps the graph optimizer from adding in another order: the last bit
        # of a sum decides ties between two pixels.
        position = tf.ensure_shape(by_x * x + by_y * y, [None] * 3)
        return _nearest(position + offset, size)

    return _sample(
        images,
        source(sin, cos, y_offset, height),
        source(cos, -sin, x_offset, width),
    )


def shear_x(images: tf.Tensor, level) -> tf.Tensor:
    """Shears along x: output (x, y) is read from (x + level * y, y).

    level: float scalar or [batch].
    """
    height, width = _size(images)
    y = _grid(height, 1)
    x = _grid(width, 2) + _per_image(level, tf.float32) * y
    return _sample(images, tf.cast(y, tf.int32), _nearest(x, width))


def shear_y(images: tf.Tensor, level) -> tf.Tensor:
    """Shears along y: output (x, y) is read from (x, y + level * x).

    level: float scalar or [batch].
    """
    height, width = _size(images)
    x = _grid(width, 2)
    y = _grid(height, 1) + _per_image(level, tf.float32) * x
    return _sample(images, _nearest(y, height), tf.cast(x, tf.int32))


def translate_x(images: tf.Tensor, pixels) -> tf.Tensor:
    """Moves the content to the left.

    pixels: float scalar or [batch]; negative moves to the right.
    """
    height, width = _size(images)
    x = _grid(width, 2) + _per_image(pixels, tf.float32)
    y = tf.reshape(tf.range(height), [1, -1, 1])
    return _sample(images, y, _nearest(x, width))


def translate_y(images: tf.Tensor, pixels) -> tf.Tensor:
    """Moves the content up.

    pixels: float scalar or [batch]; negative moves down.
    """
    height, width = _size(images)
    y = _grid(height, 1) + _per_image(pixels, tf.float32)
    # Whole rows move, so that one copy serves a row and not a pixel.
    bordered = tf.pad(
        _rows(images),
        [[0, 0], [1, 1], [0, 0]],
        constant_values=tf.constant(FILL, tf.uint8),
    )
    first = tf.range(tf.shape(images)[0]) * (height + 2) + 1
    index = _nearest(y, height) + tf.reshape(first, [-1, 1, 1])
    rows = tf.gather(
        tf.reshape(bordered, [-1, width * 3]), tf.reshape(index, [-1])
    )
    return _like(rows, images)
