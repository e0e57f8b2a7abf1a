"""From decoded images to what the network sees.

Three conventions of the released code, chosen by `data.augname`:

    default  bilinear, (x - 128) / 128
    ft       fine-tuning: bilinear, (x / 255 - 0.5) / 0.5
    v1       EfficientNet V1 (prefix 'effnetv1_'): bicubic, ImageNet's mean
             and standard deviation
"""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from efficientnetv2.data import normalization

MODES = ("default", "ft", "v1")
_CROP_PADDING = 32
# By which a JPEG can be decoded smaller.
_RATIOS = (1, 2, 4, 8)
# Pixels that are decoded around what is read: at the edge of what is decoded
# colours, which a JPEG has at half the resolution, are interpolated otherwise.
_MARGIN = 4


def parse_augname(augname: str | None) -> tuple[str, str | None]:
    """Splits 'effnetv1_autoaug' into the mode 'v1' and the policy 'autoaug'.

    Returns:
        (mode, policy): one of `MODES`; None, 'randaug', 'autoaug', 'ra_aa' or
        'cutout', the latter for 'ft' alone.

    Raises:
        ValueError: for any other name.
    """
    policies = ("randaug", "autoaug", "ra_aa")
    if not augname:
        return "default", None
    if augname in policies:
        return "default", augname
    if augname == "ft":
        return "ft", "cutout"
    for prefix, mode in (("effnetv1_", "v1"), ("ft_", "ft")):
        policy = augname.removeprefix(prefix)
        if policy != augname and policy in policies:
            return mode, policy
    raise ValueError(
        f"Unknown data.augname {augname!r}: use null, ft, or one of "
        f"{', '.join(policies)}, alone or behind effnetv1_ or ft_."
    )


def normalize(images: tf.Tensor, mode: str) -> tf.Tensor:
    """Maps pixel values in [0, 255] to the range that a mode trains on.

    Args:
        images: [..., 3], any numeric type.
        mode: one of `MODES`.

    Returns:
        float32 images, in [-1, 1] but for 'v1' (about [-2.2, 2.7]).
    """
    return normalization.normalize(tf.cast(images, tf.float32), mode)


def to_pixels(images: tf.Tensor, mode: str) -> tf.Tensor:
    """Undoes `normalize`: float32 pixel values, not rounded."""
    if mode == "v1":
        return images * normalization.V1_STD + normalization.V1_MEAN
    if mode == "ft":
        return (images * 0.5 + 0.5) * 255.0
    return images * 128.0 + 128.0


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
        rounding: added before halving the margin: 1 in V1.

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


def _crops(size, mode: str, transformations: list[str] | None) -> bool:
    if transformations is not None:
        return "crop" in transformations
    return mode == "v1" or (mode == "default" and size < 320)


def resize(images: tf.Tensor, size, mode: str) -> tf.Tensor:
    """Resizes to [..., size, size, channels], float32, without antialiasing.

    Bilinear with pixel centres at one half; 'v1' is bicubic with pixel
    centres at zero, TensorFlow 1's `resize_bicubic`.
    """
    images = tf.convert_to_tensor(images)
    single = images.shape.rank == 3
    images = images[tf.newaxis] if single else images
    size = tf.stack([size, size])
    if mode == "v1":
        images = tf.raw_ops.ResizeBicubic(images=images, size=size)
    else:
        images = tf.image.resize(images, size)
    return images[0] if single else images


def preprocess_for_eval(
    images: tf.Tensor,
    size,
    mode: str = "default",
    transformations: list[str] | None = None,
) -> tf.Tensor:
    """Evaluation preprocessing: central crop, resize, normalize.

    Args:
        images: uint8 [height, width, 3] or [batch, height, width, 3].
        size: side of the result in pixels, Python or tensor integer.
        mode: one of `MODES`.
        transformations: ['crop'] or []; None for the released code's rule,
            which crops below 320 pixels ('ft' never, 'v1' always).

    Returns:
        float32 [..., size, size, 3].
    """
    images = tf.convert_to_tensor(images)
    if mode == "ft":
        # The released code normalizes before it resizes.
        images = normalize(images, mode)
    if _crops(size, mode, transformations):
        shape = tf.shape(images)
        top, left, height, width = tf.unstack(
            central_window(shape[-3], shape[-2], size, int(mode == "v1"))
        )
        images = images[..., top : top + height, left : left + width, :]
    images = resize(images, size, mode)
    return images if mode == "ft" else normalize(images, mode)


def decode(data: tf.Tensor, portable: bool = False) -> tf.Tensor:
    """Decodes an encoded image to RGB.

    Grayscale is repeated, transparency left out, of 16 bits the upper eight
    are taken, CMYK is converted, and of an animation the first frame is
    taken.

    Args:
        data: string scalar: JPEG, PNG, BMP, GIF or WebP.
        portable: TensorFlow operations only, for a model that is exported;
            all but BMP with a palette is then right.

    Returns:
        uint8 [height, width, 3].
    """

    def by_tensorflow():
        return tf.io.decode_image(data, channels=3, expand_animations=False)

    def by_pillow():
        image = tf.numpy_function(_decode_with_pillow, [data], tf.uint8)
        return tf.ensure_shape(image, [None, None, 3])

    if portable:
        image = by_tensorflow()
        image.set_shape([None, None, 3])
        return image
    # As `to_portable`, for a tensor.
    head = tf.io.decode_raw(tf.strings.substr(data, 0, 29), tf.uint8)
    head = tf.pad(head, [[0, 29 - tf.size(head)]])
    palette = (tf.strings.substr(data, 0, 2) == "BM") & (head[28] <= 8)
    image = tf.cond(palette, by_pillow, by_tensorflow)
    image.set_shape([None, None, 3])
    return image


def to_portable(data: bytes) -> bytes:
    """Returns an encoded image that `decode(data, portable=True)` reads right.

    TensorFlow takes the numbers of a palette in a BMP for shades of gray;
    such an image becomes a PNG, any other stays as it is.

    Raises:
        tf.errors.OpError: if such an image cannot be decoded.
    """
    # Byte 28 is the number of bits of a pixel.
    if data[:2] != b"BM" or len(data) <= 28 or data[28] > 8:
        return data
    return tf.io.encode_png(decode(tf.constant(data))).numpy()


def can_decode_part(data: tf.Tensor) -> tf.Tensor:
    """Returns whether an image is a JPEG other than CMYK: bool scalar.

    Args:
        data: string scalar, see `decode`.
    """
    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.io.extract_jpeg_shape(data)[2] <= 3,
        lambda: False,
    )


def decode_part(
    data: tf.Tensor, box: tf.Tensor, size
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the part of a JPEG that a crop reads.

    A box of at least 2, 4 or 8 times `size` is decoded smaller by that
    factor: the decoder averages pixels, where resizing would skip them.
    What lies below the crop is not read: an image that is cut short there is
    no error.

    Args:
        data: string scalar, an image that `can_decode_part` accepts.
        box: float32 [4]: top, left, height, width in pixels of the whole
            image, beyond which it may reach.
        size: side to which the box will be resized, Python or tensor integer.

    Returns:
        uint8 [height, width, 3], and the box in its pixels, float32 [4].
        `crop_resize_flip` gives the same of both as of the whole image and
        its box, but for what is decoded smaller.
    """
    ratios = tf.constant(_RATIOS)
    fitting = tf.reduce_min(box[2:]) >= tf.cast(size * ratios, tf.float32)
    chosen = tf.maximum(tf.reduce_sum(tf.cast(fitting, tf.int32)) - 1, 0)
    box /= tf.cast(ratios[chosen], tf.float32)
    extent = -(-tf.io.extract_jpeg_shape(data)[:2] // ratios[chosen])
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
    return image, box - tf.pad(tf.cast(first, tf.float32), [[0, 2]])


def as_bytes(value: bytes | np.ndarray) -> bytes:
    """Returns a string that `tf.numpy_function` passed, in either form."""
    return np.asarray(value, dtype=object).item()


def _decode_with_pillow(data: bytes | np.ndarray) -> np.ndarray:
    with Image.open(io.BytesIO(as_bytes(data))) as image:
        return np.asarray(image.convert("RGB"))


def decode_for_eval(
    data: tf.Tensor,
    size,
    mode: str = "default",
    transformations: list[str] | None = None,
    portable: bool = False,
) -> tf.Tensor:
    """Decodes an encoded image and preprocesses it for evaluation.

    As in the released code, 'v1' decodes only the crop of a JPEG, which
    changes the colours at the edges a little.

    Args:
        data: string scalar, see `decode`.
        size, mode, transformations: see `preprocess_for_eval`.
        portable: see `decode`.

    Returns:
        float32 [size, size, 3].
    """

    def decode_all():
        return preprocess_for_eval(
            decode(data, portable), size, mode, transformations
        )

    def decode_crop():
        shape = tf.io.extract_jpeg_shape(data)
        window = central_window(shape[0], shape[1], size, 1)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        return preprocess_for_eval(image, size, mode, [])

    if mode == "v1" and _crops(size, mode, transformations):
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
    images: tf.Tensor, boxes: tf.Tensor, flip: tf.Tensor, size
) -> tf.Tensor:
    """Crops, resizes bilinearly and flips a batch in one resampling.

    Equal to slicing each box and calling `tf.image.resize`, where the box
    lies inside; beyond the image its border pixels are repeated.

    Args:
        images: [batch, height, width, channels], any numeric type.
        boxes: float32 [batch, 4]: top, left, height, width in pixels.
        flip: bool [batch].
        size: side of the result, Python or tensor integer.

    Returns:
        float32 [batch, size, size, channels].
    """
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
