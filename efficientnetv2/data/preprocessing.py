"""From decoded images to what the network sees.

Four conventions, chosen by `data.normalization`, whose numbers
`normalizations` has. 'v2', 'ft' and 'lite' resize bilinearly, 'v1' bicubically.
"""

import tensorflow as tf

from efficientnetv2 import normalizations
from efficientnetv2.data import decoding
from efficientnetv2.normalizations import (  # noqa: F401
    MODES,
    NORMALIZATIONS,
)

_CROP_PADDING = 32
# Modes that crop at every size, with the margin rounded up.
_V1_CROPS = ("v1", "lite")


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

    Args:
        height, width: of the image, integers.
        size: side of the image after resizing, in pixels.
        rounding: added before halving the margin: 1 in V1 and Lite.

    Returns:
        int32 [4]: top, left, height, width.
    """
    size = tf.cast(size, tf.float32)
    side = tf.cast(
        size
        / (size + _CROP_PADDING)
        * tf.cast(tf.minimum(height, width), tf.float32),
        tf.int32,
    )
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
    single = images.shape.rank == 3
    images = images[tf.newaxis] if single else images
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

    if antialias:
        larger = tf.reduce_max(tf.shape(images)[1:3]) > size
        resized = tf.cond(larger, average, sample)
    else:
        resized = sample()
    return resized[0] if single else resized


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
        size: side of the result in pixels, Python or tensor integer.
        mode: one of `MODES`.
        transformations: ['crop'] or []; None for the released code's rule,
            which crops below 320 pixels ('ft' never, 'v1' and 'lite' always).
        antialias: see `resize`.

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
    changes the colours at the edges a little.

    Args:
        data: string scalar, see `decoding.decode`.
        size, mode, transformations, antialias: see `preprocess_for_eval`.
        portable: see `decoding.decode`.

    Returns:
        float32 [size, size, 3].
    """

    def decode_all():
        return preprocess_for_eval(
            decoding.decode(data, portable),
            size,
            mode,
            transformations,
            antialias,
        )

    def decode_crop():
        turned = decoding.orientation(data, decoding.JPEG)
        height, width = tf.unstack(decoding.upright_shape(data, turned))
        window = central_window(height, width, size, 1)
        image = decoding.decode_window(data, window, turned)
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
    uniforms: tf.Tensor,
    height,
    width,
    area_min: float,
    aspect_ratio_range: tuple[float, float] = (0.75, 1.33),
) -> tf.Tensor:
    """Draws the boxes of a random resized crop.

    The distribution is that of TensorFlow's `sample_distorted_bounding_box`,
    which the released code uses: a uniform aspect ratio, then a uniform
    height among those whose area lies in [area_min, 1] and that fit, by one
    pixel more or less where rounding misses the area, then a uniform place.
    A box smaller than the image never touches its lower or right edge. Boxes
    that still miss the area are drawn again, and the whole image is used
    where all tries fail: 10 here, 100 in TensorFlow.

    Args:
        uniforms: float32 [batch, 4 * tries] in [0, 1).
        height, width: of the images.
        area_min: smallest part of the image's area.
        aspect_ratio_range: of width / height.

    Returns:
        float32 [batch, 4]: top, left, height, width, whole pixels.
    """
    height = tf.cast(height, tf.float32)
    width = tf.cast(width, tf.float32)
    area = height * width
    draws = tf.reshape(uniforms, [tf.shape(uniforms)[0], -1, 4])
    low, high = aspect_ratio_range
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
    valid = (
        (box_area >= area_min * area)
        & (box_area <= area)
        & (box_width <= width)
        & (box_height <= height)
        & (box_height > 0)
        & (box_width > 0)
    )
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
        size: side of the result, Python or tensor integer.
        antialias: whether boxes that are larger than `size` in either
            direction are averaged where they would otherwise be sampled.

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
        averaged = tf.where(
            flip[:, None, None, None], averaged[:, :, ::-1], averaged
        )
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

    part = tf.cond(
        tf.reduce_all((first >= 0) & (last <= shape)), inside, beyond
    )
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
    transforms = tf.stack(
        [
            tf.where(flip, -scale_x, scale_x),
            zeros,
            0.5 * scale_x - 0.5 + left + tf.where(flip, last * scale_x, 0.0),
            zeros,
            scale_y,
            0.5 * scale_y - 0.5 + top,
            zeros,
            zeros,
        ],
        axis=1,
    )
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


def random_cutout(
    images: tf.Tensor, uniforms: tf.Tensor, noise_seed: tf.Tensor
) -> tf.Tensor:
    """Fine-tuning's cutout: a random square becomes noise in [0, 1).

    Args:
        images: float32 [batch, size, size, 3], normalized.
        uniforms: float32 [batch, 2] in [0, 1): centre of the square, whose
            side is half of the image's, cut off at the border.
        noise_seed: int32 [2].
    """
    size = tf.shape(images)[1]
    pad = size // 4
    centre = tf.cast(uniforms * tf.cast(size, tf.float32), tf.int32)
    line = tf.range(size)[tf.newaxis]

    def inside(middle):
        middle = middle[:, tf.newaxis]
        return (line >= middle - pad) & (line < middle + pad)

    rows, columns = inside(centre[:, 0]), inside(centre[:, 1])
    mask = rows[:, :, tf.newaxis, tf.newaxis] & columns[:, None, :, None]
    noise = tf.random.stateless_uniform(tf.shape(images), noise_seed)
    return tf.where(mask, noise, images)
