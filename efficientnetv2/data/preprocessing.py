"""From decoded images to what the network sees.

Four conventions, chosen by `data.normalization`; see `normalizations` for their
numbers. 'v2', 'ft' and 'lite' resize bilinearly, 'v1' bicubically.
"""

import tensorflow as tf

from efficientnetv2 import normalizations
from efficientnetv2.data import decoding
from efficientnetv2.normalizations import MODES, NORMALIZATIONS  # noqa: F401

_CROP_PADDING = 32
# Width / height of random crops.
_ASPECT_RATIOS = (0.75, 1.33)
# Modes that crop at every size, with the margin rounded up.
_V1_CROPS = ("v1", "lite")
# By which a JPEG can be decoded smaller.
_RATIOS = (1, 2, 4, 8)
# Pixels that are decoded around what is read: at the edge of what is decoded
# colours, which a JPEG has at half the resolution, are interpolated otherwise.
_MARGIN = 4


def normalize(images: tf.Tensor, mode: str) -> tf.Tensor:
    """Maps pixel values in [0, 255] to the range that a mode trains on.

    Args:
        images: [..., 3], any numeric type.
        mode: one of `MODES`.

    Returns:
        float32 images, in [-1, 1] but for 'v1' (about [-2.2, 2.7]).
    """
    return normalizations.normalize(tf.cast(images, tf.float32), mode)


def to_pixels(images: tf.Tensor, mode: str) -> tf.Tensor:
    """Undoes `normalize`: float32 pixel values, not rounded."""
    mean, deviation = NORMALIZATIONS[mode]
    return images * deviation + mean


def denormalize(images: tf.Tensor, mode: str) -> tf.Tensor:
    """Undoes `normalize`: uint8 pixel values."""
    pixels = tf.clip_by_value(to_pixels(images, mode), 0.0, 255.0)
    return tf.cast(tf.round(pixels), tf.uint8)


def central_window(height, width, size, rounding: int = 0) -> tf.Tensor:
    """Returns the central square that becomes `size` after resizing.

    Its side is size / (size + 32) of the image's shorter side, at least 1.
    `rounding` is added before halving the margin: 1 in V1 and Lite.

    Returns:
        int32 [4]: top, left, height, width.
    """
    size = tf.cast(size, tf.float32)
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.cast(size / (size + _CROP_PADDING) * shorter, tf.int32)
    side = tf.maximum(side, 1)
    top = (height - side + rounding) // 2
    left = (width - side + rounding) // 2
    return tf.stack([top, left, side, side])


def crops(size, mode: str, transformations: list[str] | None) -> bool:
    """Returns whether evaluation takes the central part of an image."""
    if transformations is not None:
        return "crop" in transformations
    return mode in _V1_CROPS or (mode == "v2" and size < 320)


def resize(
    images: tf.Tensor, size, mode: str, antialias: bool = False
) -> tf.Tensor:
    """Resizes to [..., size, size, channels], float32.

    Bilinear with pixel centres at one half; 'v1' is bicubic and 'lite'
    bilinear with pixel centres at zero, as TensorFlow 1 had them, but for what
    is antialiased.

    Args:
        images: [..., height, width, channels], any numeric type.
        size: side of the result in pixels, Python or tensor integer.
        mode: one of `MODES`.
        antialias: whether images that are larger in either direction are
            averaged where they would otherwise be sampled.
    """
    images = tf.convert_to_tensor(images)
    if images.shape.rank == 3:
        return resize(images[tf.newaxis], size, mode, antialias)[0]
    sides = tf.stack([size, size])

    def sample():
        if mode == "v1":
            return tf.raw_ops.ResizeBicubic(images=images, size=sides)
        if mode == "lite":
            return tf.raw_ops.ResizeBilinear(images=images, size=sides)
        return tf.image.resize(images, sides)

    def average():
        method = "bicubic" if mode == "v1" else "bilinear"
        return tf.image.resize(images, sides, method, antialias=True)

    if not antialias:
        return sample()
    larger = tf.reduce_max(tf.shape(images)[1:3]) > size
    return tf.cond(larger, average, sample)


def preprocess_for_eval(
    images: tf.Tensor,
    size,
    mode: str = "v2",
    transformations: list[str] | None = None,
    antialias: bool = False,
) -> tf.Tensor:
    """Evaluation preprocessing: central crop, resize, normalize.

    Args:
        images: uint8 [height, width, 3] or [batch, height, width, 3].
        size, mode, antialias: see `resize`.
        transformations: ['crop'] or []; None for the released code's rule,
            which crops below 320 pixels ('ft' never, 'v1' and 'lite' always).

    Returns:
        float32 [..., size, size, 3].
    """
    images = tf.convert_to_tensor(images)
    if mode == "ft":
        # The released code normalizes before it resizes.
        images = normalize(images, mode)
    if crops(size, mode, transformations):
        shape = tf.shape(images)
        top, left, height, width = tf.unstack(
            central_window(shape[-3], shape[-2], size, int(mode in _V1_CROPS))
        )
        images = images[..., top : top + height, left : left + width, :]
    images = resize(images, size, mode, antialias)
    return images if mode == "ft" else normalize(images, mode)


def _mirror(box, height, width, turned):
    """Mirrors a box as `turn` does the upright image around it."""
    rows, columns = tf.unstack(tf.constant(decoding.REVERSED)[turned][:2])
    top, left, high, wide = tf.unstack(box)
    top = tf.where(rows, tf.cast(height, box.dtype) - top - high, top)
    left = tf.where(columns, tf.cast(width, box.dtype) - left - wide, left)
    return tf.stack([top, left, high, wide])


def _swap(box, turned):
    """Swaps rows and columns of a box, or of a height and width, if need be."""
    order = [1, 0, 3, 2][: box.shape[0]]
    swapped = tf.constant(decoding.SWAPPED)[turned]
    return tf.where(swapped, tf.gather(box, order), box)


def upright_shape(data: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
    """Returns height and width of a JPEG once it is upright: int32 [2]."""
    return _swap(tf.io.extract_jpeg_shape(data)[:2], turned)


def can_decode_part(data: tf.Tensor) -> tf.Tensor:
    """Returns whether an encoded image is a JPEG other than CMYK."""
    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.io.extract_jpeg_shape(data)[2] <= 3,
        lambda: False,
    )


def decode_part(
    data: tf.Tensor,
    box: tf.Tensor,
    size,
    antialias: bool = False,
    turned: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the part of a JPEG that a crop reads, upright.

    A box of at least 2, 4 or 8 times `size` is decoded smaller by that factor:
    the decoder averages pixels, where resizing would skip them. With
    antialiasing the decoded box is still at least twice `size`, so that
    resizing, which averages too, gives what it would give for the whole image.
    What lies below the crop is not read, so an image truncated there is no
    error.

    Args:
        data: string scalar, an image that `can_decode_part` accepts.
        box: float32 [4]: top, left, height, width in pixels of the whole
            image, upright, beyond which it may reach.
        size, antialias: of resizing, see `resize`.
        turned: its EXIF orientation if it is known.

    Returns:
        uint8 [height, width, 3], and the box in its pixels, float32 [4].
        `crop_resize_flip` gives the same result for both as for the whole image
        and its box, except where the box was decoded smaller.
    """
    turned = (
        decoding.orientation(data, decoding.JPEG) if turned is None else turned
    )
    shape = upright_shape(data, turned)
    box = tf.convert_to_tensor(box)
    box = _swap(_mirror(box, shape[0], shape[1], turned), turned)
    ratios = tf.constant(_RATIOS)
    wanted = size * ratios * (2 if antialias else 1)
    fitting = tf.reduce_min(box[2:]) >= tf.cast(wanted, tf.float32)
    chosen = tf.maximum(tf.reduce_sum(tf.cast(fitting, tf.int32)) - 1, 0)
    box /= tf.cast(ratios[chosen], tf.float32)
    extent = -(-_swap(shape, turned) // ratios[chosen])
    first = tf.cast(tf.floor(box[:2]), tf.int32) - _MARGIN
    last = tf.cast(tf.math.ceil(box[:2] + box[2:]), tf.int32) + _MARGIN
    first = tf.clip_by_value(first, 0, extent - 1)
    last = tf.clip_by_value(last, first + 1, extent)
    window = tf.concat([first, last - first], 0)

    def decode_by(ratio):
        return lambda: tf.io.decode_and_crop_jpeg(
            data, window, channels=3, ratio=ratio
        )

    image = tf.switch_case(chosen, [decode_by(ratio) for ratio in _RATIOS])
    box -= tf.pad(tf.cast(first, tf.float32), [[0, 2]])
    height, width = tf.unstack(_swap(last - first, turned))
    box = _mirror(_swap(box, turned), height, width, turned)
    return decoding.turn(image, turned), box


def decode_for_eval(
    data: tf.Tensor,
    size,
    mode: str = "v2",
    transformations: list[str] | None = None,
    antialias: bool = False,
    portable: bool = False,
) -> tf.Tensor:
    """Decodes an encoded image and preprocesses it for evaluation.

    As in the released code, 'v1' decodes only the crop of a JPEG, which
    changes the colours at the edges a little. For the arguments see
    `decoding.decode` and `preprocess_for_eval`.

    Returns:
        float32 [size, size, 3].
    """

    def decode_all():
        image = decoding.decode(data, portable)
        return preprocess_for_eval(
            image, size, mode, transformations, antialias
        )

    def decode_crop():
        turned = decoding.orientation(data, decoding.JPEG)
        height, width = tf.unstack(upright_shape(data, turned))
        window = central_window(height, width, size, 1)
        window = _swap(_mirror(window, height, width, turned), turned)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = decoding.turn(image, turned)
        return preprocess_for_eval(image, size, mode, [], antialias)

    if mode in _V1_CROPS and crops(size, mode, transformations):
        return tf.cond(tf.io.is_jpeg(data), decode_crop, decode_all)
    return decode_all()


def to_rgb(images: tf.Tensor) -> tf.Tensor:
    """Repeats the single channel of grayscale images three times."""
    if images.shape[-1] == 3:
        return images
    return tf.repeat(images, 3, axis=-1)


def random_crop_boxes(
    uniforms: tf.Tensor, height, width, area_min: float
) -> tf.Tensor:
    """Draws the boxes of a random resized crop.

    The distribution is that of TensorFlow's `sample_distorted_bounding_box`,
    which the released code uses: a uniform aspect ratio in [0.75, 1.33], then
    a uniform height among those whose part of the area lies in [area_min, 1]
    and that fit, by one pixel more or less where rounding misses the area,
    then a uniform place. A box smaller than the image never touches its lower
    or right edge. Boxes that still miss the area are drawn again, and the
    whole image is used where all tries fail: 10 here, 100 in TensorFlow.

    Args:
        uniforms: float32 [batch, 4 * tries] in [0, 1).

    Returns:
        float32 [batch, 4]: top, left, height, width, whole pixels.
    """
    height = tf.cast(height, tf.float32)
    width = tf.cast(width, tf.float32)
    area = height * width
    draws = tf.reshape(uniforms, [tf.shape(uniforms)[0], -1, 4])
    low, high = _ASPECT_RATIOS
    aspect = low + (high - low) * draws[..., 0]
    tallest = tf.round(tf.sqrt(area / aspect))
    widest = tf.floor((width + 0.5) / aspect)
    widest -= tf.cast(tf.round(widest * aspect) > width, tf.float32)
    tallest = tf.where(tf.round(tallest * aspect) > width, widest, tallest)
    tallest = tf.minimum(tallest, height)
    shortest = tf.minimum(tf.round(tf.sqrt(area_min * area / aspect)), tallest)
    box_height = shortest + tf.floor(draws[..., 1] * (tallest - shortest + 1.0))
    box_area = box_height * tf.round(box_height * aspect)
    box_height += tf.cast(box_area < area_min * area, tf.float32)
    box_area = box_height * tf.round(box_height * aspect)
    box_height -= tf.cast(box_area > area, tf.float32)
    box_width = tf.round(box_height * aspect)
    box_area = box_height * box_width
    valid = (box_area >= area_min * area) & (box_area <= area)
    valid &= (box_width <= width) & (box_height <= height)
    valid &= (box_height > 0) & (box_width > 0)
    top = tf.floor(draws[..., 2] * (height - box_height))
    left = tf.floor(draws[..., 3] * (width - box_width))
    boxes = tf.stack([top, left, box_height, box_width], axis=-1)
    first = tf.argmax(tf.cast(valid, tf.int32), axis=1)
    chosen = tf.gather(boxes, first, batch_dims=1)
    whole = tf.stack([0.0, 0.0, height, width])
    return tf.where(tf.reduce_any(valid, axis=1)[:, None], chosen, whole)


def crop_resize_flip(
    images: tf.Tensor,
    boxes: tf.Tensor,
    flip: tf.Tensor,
    size,
    antialias: bool = False,
) -> tf.Tensor:
    """Crops, resizes bilinearly and flips a batch in one resampling.

    Equal to slicing each box and calling `tf.image.resize`, where the box
    lies inside; beyond the image its border pixels are repeated.

    Args:
        images: [batch, height, width, channels], any numeric type.
        boxes: float32 [batch, 4]: top, left, height, width in pixels.
        flip: bool [batch].
        size, antialias: see `resize`.

    Returns:
        float32 [batch, size, size, channels].
    """
    boxes, flip = tf.convert_to_tensor(boxes), tf.convert_to_tensor(flip)

    def sample():
        return _sample(images, boxes, flip, size)

    def average():
        if images.shape[0] == 1:
            averaged = _average(images[0], boxes[0], size)[tf.newaxis]
        else:
            averaged = tf.map_fn(
                lambda pair: _average(*pair, size),
                (images, boxes),
                fn_output_signature=tf.float32,
            )
        flipped = flip[:, None, None, None]
        averaged = tf.where(flipped, averaged[:, :, ::-1], averaged)
        if images.shape[0] == 1:
            return averaged
        # What becomes of an image does not depend on the others.
        return tf.where(larger[:, None, None, None], averaged, sample())

    if not antialias:
        return sample()
    larger = tf.reduce_max(boxes[:, 2:], axis=1) > tf.cast(size, tf.float32)
    result = tf.cond(tf.reduce_any(larger), average, sample)
    return tf.reshape(
        result, [tf.shape(images)[0], size, size, images.shape[-1]]
    )


def _average(image: tf.Tensor, box: tf.Tensor, size) -> tf.Tensor:
    """Crops and resizes an image with antialiasing, see `crop_resize_flip`."""
    first = tf.cast(tf.floor(box[:2]), tf.int32)
    last = tf.cast(tf.math.ceil(box[:2] + box[2:]), tf.int32)
    last = tf.maximum(last, first + 1)
    shape = tf.shape(image)[:2]

    def inside():
        return image[first[0] : last[0], first[1] : last[1]]

    def beyond():
        part = image
        for axis in (0, 1):
            places = tf.range(first[axis], last[axis])
            places = tf.clip_by_value(places, 0, shape[axis] - 1)
            part = tf.gather(part, places, axis=axis)
        return part

    is_inside = tf.reduce_all((first >= 0) & (last <= shape))
    part = tf.cond(is_inside, inside, beyond)
    scale = tf.cast(size, tf.float32) / box[2:]
    return tf.raw_ops.ScaleAndTranslate(
        images=part[tf.newaxis],
        size=tf.stack([size, size]),
        scale=scale,
        translation=(tf.cast(first, tf.float32) - box[:2]) * scale,
        kernel_type="triangle",
        antialias=True,
    )[0]


def _sample(images, boxes, flip, size) -> tf.Tensor:
    """Crops, resizes and flips without antialiasing."""
    top, left, height, width = tf.unstack(boxes, axis=1)
    sizef = tf.cast(size, tf.float32)
    scale_y, scale_x = height / sizef, width / sizef
    zeros = tf.zeros_like(top)
    last = sizef - 1.0
    flipped = tf.where(flip, last * scale_x, 0.0)
    offset_x = 0.5 * scale_x - 0.5 + left + flipped
    row_x = [tf.where(flip, -scale_x, scale_x), zeros, offset_x]
    row_y = [zeros, scale_y, 0.5 * scale_y - 0.5 + top]
    transforms = tf.stack([*row_x, *row_y, zeros, zeros], axis=1)
    shape = tf.shape(images)
    # The kernel's clamp is per tap, while tf.image.resize clamps the sampling
    # position: equal for bilinear, as both taps are then the border pixel.
    result = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=tf.stack([size, size]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    return tf.reshape(result, [shape[0], size, size, images.shape[-1]])
