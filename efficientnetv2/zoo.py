"""Builds every EfficientNet by name, with or without weights."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import ml_collections
from absl import logging

from efficientnetv2 import checkpoints
from efficientnetv2 import config as config_lib
from efficientnetv2.data import fingerprint, registry
from efficientnetv2.errors import WeightsError, nearest
from efficientnetv2.models import architecture, published, weights
from efficientnetv2.models.structure import expand_blocks

_V1_ROUND_LIMIT = 0.9

to_keras_applications = weights.to_keras_applications
to_reference_checkpoint = weights.to_reference_checkpoint


def build_model(
    model_name: str,
    num_classes: int | None = None,
    include_top: bool = True,
    weights: str | os.PathLike | keras.Model | None = None,
    input_shape: Sequence[int | None] = (None, None, 3),
    *,
    pooling: str | None = "avg",
    include_preprocessing: bool | str = False,
    ema: bool | None = None,
    skip_classifier: bool = False,
    name: str | None = None,
    **options: Any,
) -> keras.Model:
    """Builds an EfficientNet V1, Lite or V2.

    Example:

        model = efficientnetv2.build_model("efficientnetv2-s", num_classes=10)
        logits = model(images)  # float [batch, height, width, 3] in [-1, 1]

    Args:
        model_name: such as 'efficientnetv2-s', see `list_models`, or the path
            of a YAML file with a section `model`.
        num_classes: number of logits; by default the YAML file's, else 1000,
            and 21,843 with weights='imagenet21k'.
        include_top: if False, the model ends with the features of the head.
        weights: None for random ones; published ones by name, see
            `list_weights`, which are fetched into Keras' cache; or what
            `load_weights` reads.
        input_shape: (height, width, channels); None for a free height or
            width.
        pooling: without the top: 'avg' or 'max' for features [batch,
            channels], None for a map [batch, height, width, channels].
        include_preprocessing: if True the model takes images in [0, 255] and
            normalizes them as in its training; one of `normalizations.MODES`
            chooses by hand.
        ema, skip_classifier: see `load_weights`.
        name: of the Keras model, `model_name` by default. Two models inside a
            third one need different names.
        **options: of the section `model` in hparams/base.yaml: act_fn,
            bn_type, survival_prob, dropout_rate, fused_stages, blocks, ...

    The released code and the original one of V1 round the channels of
    'efficientnet-b3' differently. With weights, the rounding that fits them is
    used; without, the released code's. `round_limit=0.9` selects the original
    one, as in `keras.applications`.

    Returns:
        A functional `keras.Model` that ends with float32 logits [batch,
        num_classes]. Its layers 'reduction_1' to 'reduction_5' are where a
        feature pyramid is cut; see `feature_pyramid`.

    Raises:
        ValueError: for an unknown name, option or value; the nearest valid
            one is named.
        WeightsError: see `load_weights`. It is a ValueError, too.
    """
    if num_classes is not None:
        options = {**options, "num_classes": num_classes}
    config = config_lib.load_model(model_name, options)
    model_config = config["model"]
    if model_config["num_classes"] is None:
        is_21k = weights == "imagenet21k"
        model_config["num_classes"] = published.CLASSES_21K if is_21k else 1000
    preprocessing = include_preprocessing or None
    if preprocessing is True:
        preprocessing = config["data"]["normalization"]

    build = functools.partial(
        architecture.build_network,
        include_top=include_top,
        input_shape=input_shape,
        name=name,
        pooling=pooling,
        preprocessing=preprocessing,
    )

    def load(model):
        load_weights(model, weights, ema=ema, skip_classifier=skip_classifier)
        return model

    model = build(model_config)
    if weights is None:
        return model
    try:
        return load(model)
    except WeightsError:
        wider = {**model_config, "round_limit": _V1_ROUND_LIMIT}
        same = expand_blocks(wider) == expand_blocks(model_config)
        if same or "round_limit" in options:
            raise
        with contextlib.suppress(WeightsError):
            return load(build(wider))
        raise


def load_weights(
    model: keras.Model,
    source: str | os.PathLike | keras.Model,
    ema: bool | None = None,
    skip_classifier: bool = False,
) -> weights.LoadReport:
    """Sets every weight of a model by name, or none.

    Args:
        model: from `build_model`.
        source: one of

            - the name of published weights, see `list_weights`;
            - a checkpoint of the released code, name-based or object-based:
              its prefix, its .index file, or the folder with it;
            - a .h5 file or a model of `keras.applications`;
            - a .safetensors or .pth file of PyTorch Image Models or of the
              PyTorch port of V1;
            - a run's model_dir (its best checkpoint) or a checkpoint (.npz);
            - a .keras or .weights.h5 file or a model of this package.
        ema: take the moving averages (True), the raw weights (False), or the
            averages where there are some (None).
        skip_classifier: leave the classifier as it is if the source has none,
            or one of another number of classes.

    Returns:
        What was loaded, skipped and not used, which is also logged.

    Raises:
        WeightsError: if the source is missing, cannot be read or does not
            fit; the message names the file, the weight and both shapes. The
            model is then as it was.
    """
    if isinstance(source, (str, os.PathLike)):
        source = resolve_source(model, source)
    report = weights.load_into(model, source, ema, skip_classifier)
    log = logging.warning if report.surprises else logging.info
    log("%s", report)
    return report


def initialize(network: keras.Model, config: ml_collections.ConfigDict) -> str:
    """Loads `train.ft_init_ckpt` into a network; returns a line for the log.

    A classifier of as many classes is loaded too, but not that of a run on
    classes of other names.

    Raises:
        UserError: for weights that cannot be obtained or do not fit.
    """
    classifier = network.get_layer("logits")
    fresh = classifier.get_weights()
    path = resolve_source(network, config.train.ft_init_ckpt)
    try:
        text = str(weights.load_into(network, path, skip_classifier=True))
    except WeightsError as error:
        name = config_lib.model_of_run(str(path)).get("model_name")
        if name in (None, config.model.model_name):
            raise
        raise WeightsError(
            f"{error}\nThey are weights of {name}: --model_name={name}."
        ) from None
    names = registry.load_info(config.data.ds_name).class_names
    # A checkpoint lies in a folder of the run.
    if fingerprint.class_names(path.parent.parent) not in (None, names):
        classifier.set_weights(fresh)
        text += (
            " Its classes have other names: the classifier starts from scratch."
        )
    return text


def resolve_source(
    model: keras.Model, source: str | os.PathLike
) -> pathlib.Path:
    """Returns the file or prefix for a published name, a run or a path.

    Raises:
        WeightsError: see `load_weights`.
    """
    if source in published.NAMES:
        name = getattr(model, "architecture_name", model.name)
        return published.fetch(name, str(source))
    path = pathlib.Path(source).expanduser()
    if checkpoints.folder(path).is_dir():
        return checkpoints.find_checkpoint(path, None)
    near = nearest(str(source), published.NAMES)
    bare = os.sep not in str(source) and "." not in str(source)
    exists = path.exists() or pathlib.Path(f"{path}.index").exists()
    if bare and near and not exists:
        raise WeightsError(
            f"Unknown weights {str(source)!r}. Did you mean {near!r}? Known: "
            f"{', '.join(published.NAMES)}, or a path."
        )
    return path


def feature_pyramid(
    model: keras.Model, levels: Sequence[int] | None = None
) -> keras.Model:
    """Returns a model from images to a dict of features at several strides.

    Those of 'reduction_K' are [batch, height / 2**K, width / 2**K, channels].

    Args:
        model: from `build_model`.
        levels: such as (3, 4, 5) for strides 8, 16, 32; None for all.

    Raises:
        ValueError: for a level that the model does not have.
    """
    outputs = {
        layer.name: layer.output
        for layer in model.layers
        if layer.name.startswith("reduction_")
    }
    if levels is not None:
        wanted = [f"reduction_{level}" for level in levels]
        if missing := [name for name in wanted if name not in outputs]:
            raise ValueError(
                f"{model.name} has no {missing[0]}; it has "
                f"{', '.join(outputs)}."
            )
        outputs = {name: outputs[name] for name in wanted}
    return keras.Model(model.input, outputs, name=model.name)
