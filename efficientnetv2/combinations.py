"""What only shows in the combination of options: each function raises.

The error is a ConfigError that names the options and their values.
"""

from collections.abc import Mapping

import ml_collections

from efficientnetv2.data import registry
from efficientnetv2.data.registry import DatasetInfo
from efficientnetv2.declarative import ConfigError, suggest
from efficientnetv2.models.structure import expand_blocks, round_filters
from efficientnetv2.options import MIN_IMAGE_SIZE


def check_model(model: Mapping, source: str) -> None:
    """Checks the section `model`, which `source` names."""
    if not model["blocks"]:
        raise ConfigError(f"{source} has no model.blocks.")
    fused, stages = model["fused_stages"], len(model["blocks"])
    if model["bn_type"] == "gn":
        _check_groups(model, source)
    if fused is not None and fused > stages:
        raise ConfigError(
            f"model.fused_stages={fused} is more than the {stages} stages of "
            f"{source}."
        )


def _check_groups(model: Mapping, source: str) -> None:
    """Raises a ConfigError if groups do not divide what they normalize."""
    channels = [round_filters(model["feature_size"], model)]
    for block in expand_blocks({**model, "fused_stages": None}):
        channels += [
            block.input_filters,
            block.expanded_filters,
            block.output_filters,
        ]
    groups = model["gn_groups"]
    bad = next((count for count in channels if count % groups), None)
    if bad is not None:
        raise ConfigError(
            f"model.gn_groups={groups} does not divide the {bad} channels of "
            f"a layer of {source}."
        )


def check_image_sizes(config: ml_collections.ConfigDict, last: int) -> None:
    """Checks that no image is too small; `last` is that of the last stage."""
    sizes = {
        "train.isize": last,
        "eval.isize": config.eval.isize,
    }
    if config.train.stages > 1 and config.train.progressive_image_size:
        sizes["data.ibase"] = config.data.ibase
    for key, size in sizes.items():
        if size < MIN_IMAGE_SIZE:
            raise ConfigError(
                f"{key}: an image size of {size} pixels is too small; at least "
                f"{MIN_IMAGE_SIZE}."
            )


def _check_images_per_class(
    config: ml_collections.ConfigDict, info: DatasetInfo, images: int
) -> None:
    option = f"data.images_per_class={config.data.images_per_class}"
    if info.multi_label:
        raise ConfigError(
            f"{option}: images of {config.data.ds_name} have several classes, "
            "so that no number of images per class is exact. Leave it out."
        )
    there = info.splits[config.train.split].num_images
    if images > there:
        raise ConfigError(
            f"{option} needs {images:,} images for {info.num_classes:,} "
            f"classes, but the split {config.train.split!r} of "
            f"{config.data.ds_name} has {there:,}; at most "
            f"{there // info.num_classes:,}."
        )


def check_data(config: ml_collections.ConfigDict, info: DatasetInfo) -> None:
    """Checks classes, splits and batches against the dataset."""
    for key in ("num_classes", "multi_label"):
        found, right = config.data[key], getattr(info, key)
        if found != right:
            raise ConfigError(
                f"data.{key}={found} does not match {config.data.ds_name}, "
                f"which has {right}. Leave it out; model.num_classes may be "
                "larger."
            )
    if config.model.num_classes < config.data.num_classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes} is less than the "
            f"{config.data.num_classes} classes of {config.data.ds_name}."
        )
    splits = info.splits
    for key in ("train.split", "eval.split", "eval.val_split"):
        section, option = key.split(".")
        split = config[section][option]
        if split is not None and split not in splits:
            raise ConfigError(
                f"{key}: {config.data.ds_name} has no split {split!r}."
                + suggest(split, sorted(splits))
            )
    images = registry.num_images(info, config.train.split, config)
    if config.data.images_per_class:
        _check_images_per_class(config, info, images)
    if config.train.batch_size > images:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is more than the "
            f"{images} images of the split {config.train.split!r}."
        )
    if config.train.batch_size % config.train.batch_parts:
        raise ConfigError(
            f"train.batch_parts={config.train.batch_parts} does not divide "
            f"train.batch_size={config.train.batch_size}."
        )
    micro = config.train.micro_batch_size
    if micro and (
        config.train.batch_size % micro or micro % config.train.batch_parts
    ):
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide train.batch_size="
            f"{config.train.batch_size} and be a multiple of "
            f"train.batch_parts={config.train.batch_parts}."
        )
