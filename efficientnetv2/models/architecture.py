"""Builds a model from a configuration: EfficientNet V1 and V2."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from efficientnetv2.models import blocks
from efficientnetv2.models.structure import expand_blocks, head_filters
from efficientnetv2.normalizations import NORMALIZATIONS

# The layer of a model that takes pixel values.
NORMALIZE = "normalize"


def _moments(preprocessing: str) -> list[tuple[float, float]]:
    """Returns mean and deviation of red, green and blue, or of any channel."""
    pairs = list(zip(*NORMALIZATIONS[preprocessing], strict=True))
    return pairs[:1] if len(set(pairs)) == 1 else pairs


def _check_input_shape(shape, preprocessing: str | None) -> None:
    """Raises a ValueError for anything but (height, width, channels)."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "The models expect channels last: call "
            "keras.config.set_image_data_format('channels_last') first."
        )
    sizes = shape if isinstance(shape, (tuple, list)) else ()
    valid = [
        size is None or isinstance(size, int) and size > 0 for size in sizes
    ]
    if len(sizes) != 3 or not all(valid) or sizes[2] is None:
        raise ValueError(
            f"input_shape={shape!r} is not (height, width, channels), whole "
            "numbers above 0, of which height and width may be None."
        )
    first, _, channels = sizes
    if first is not None and first <= 4 < channels:
        raise ValueError(
            f"input_shape={tuple(sizes)} has its channels first; give "
            f"(height, width, channels), such as {(*sizes[1:], first)}, and "
            "images of that order."
        )
    moments = len(_moments(preprocessing)) if preprocessing else 1
    if moments not in (1, channels):
        raise ValueError(
            f"The preprocessing {preprocessing!r} has a mean and a deviation "
            "for red, green and blue, and cannot be used for "
            f"{channels} channels. Normalize the images beforehand, or use "
            "'v2'."
        )


def build_network(
    model_config: Mapping,
    include_top: bool = True,
    input_shape: Sequence[int | None] = (None, None, 3),
    name: str | None = None,
    pooling: str | None = "avg",
    preprocessing: str | None = None,
) -> keras.Model:
    """Builds a model from a configuration.

    Args:
        model_config: the section `model` of a configuration; `fused_stages`,
            `round_limit` and `fix_head_stem` may be left out.
        include_top, input_shape, name, pooling: see
            `efficientnetv2.build_model`.
        preprocessing: None for images that are normalized already; one of
            `normalizations.MODES` for images in [0, 255], which the model
            then normalizes so.

    Returns:
        A functional model from images, float [batch, height, width, 3], to
        float32 logits [batch, num_classes]. Its layers `reduction_1` to
        `reduction_5` (fewer where the stride is smaller) pass on the features
        before each halving of the size.

    Raises:
        ValueError: for an invalid block string, activation, normalization,
            pooling, preprocessing or input shape.
    """
    if preprocessing is not None and preprocessing not in NORMALIZATIONS:
        raise ValueError(
            f"Unknown preprocessing {preprocessing!r}: use True, False or one "
            f"of {', '.join(NORMALIZATIONS)}."
        )
    _check_input_shape(input_shape, preprocessing)
    if include_top and pooling != "avg":
        raise ValueError(
            f"pooling={pooling!r} is for include_top=False; the classifier "
            "takes the average."
        )
    common = {
        "act_fn": model_config["act_fn"],
        "norm_type": model_config["bn_type"],
        "norm_momentum": model_config["bn_momentum"],
        "norm_epsilon": model_config["bn_epsilon"],
        "norm_groups": model_config["gn_groups"],
    }
    block_args = expand_blocks(model_config)
    inputs = keras.Input(input_shape, name="image")
    x = inputs
    if preprocessing is not None:
        scales = [1 / deviation for _, deviation in _moments(preprocessing)]
        offsets = [-mean / each for mean, each in _moments(preprocessing)]
        x = keras.layers.Rescaling(scales, offsets, name=NORMALIZE)(x)
    x = blocks.Stem(block_args[0].input_filters, name="stem", **common)(x)
    reductions = 0
    drop = 1.0 - (model_config["survival_prob"] or 1.0)
    for index, args in enumerate(block_args):
        options = dataclasses.asdict(args)
        fused, _ = options.pop("conv_type"), options.pop("num_repeat")
        block = blocks.FusedMBConv if fused else blocks.MBConv
        x = block(
            **options,
            survival_probability=1.0 - drop * index / len(block_args),
            conv_dropout=model_config["conv_dropout"],
            name=f"blocks_{index}",
            **common,
        )(x)
        following = block_args[index + 1 : index + 2]
        if not following or following[0].strides > 1:
            reductions += 1
            x = keras.layers.Identity(name=f"reduction_{reductions}")(x)
    x = blocks.Head(
        head_filters(model_config),
        dropout_rate=model_config["dropout_rate"] or 0.0,
        pooling=pooling,
        name="head",
        **common,
    )(x)
    if include_top:
        classes, bias = model_config["num_classes"], model_config["headbias"]
        # The reference's limit, 1 / sqrt(classes), would give logits of
        # several units for ten, and the first epochs would unlearn them.
        limit = max(classes, 1000) ** -0.5
        # float32 whatever the policy: a softmax of half-precision logits
        # loses the small probabilities.
        x = keras.layers.Dense(
            classes,
            kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
            bias_initializer=keras.initializers.Constant(bias or 0.0),
            dtype="float32",
            name="logits",
        )(x)
    model = keras.Model(inputs, x, name=name or model_config["model_name"])
    # Published weights are found by it, whatever the model is called.
    model.architecture_name = model_config["model_name"]
    return model


def is_ours(model: keras.Model) -> bool:
    """Whether a model was built by this package."""
    return any(isinstance(layer, blocks.Stem) for layer in flat_layers(model))


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model, those of models within it included."""
    found = []
    for layer in model.layers:
        found += flat_layers(layer) if hasattr(layer, "layers") else [layer]
    return found
