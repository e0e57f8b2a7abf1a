"""Configuration: base < model < dataset < recipe < --hparam_str < flags.

`load` merges YAML files and the command line into one locked, typed
`ml_collections.ConfigDict` and checks it. The options themselves are in
`options`. A configuration is data: nothing here is ever executed.
"""

import copy
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import yaml

from efficientnetv2 import progressive, schema
from efficientnetv2.data import fingerprint, registry
from efficientnetv2.declarative import (
    ConfigError,
    named_or_path,
    read_yaml,
    suggest,
)
from efficientnetv2.errors import did_you_mean
from efficientnetv2.models.structure import expand_blocks, round_filters
from efficientnetv2.normalizations import PACKED_NAMES
from efficientnetv2.options import (
    FREE_OPTIONS,
    MIN_IMAGE_SIZE,
    ONE_TIME_OPTIONS,
    OPTIONS,
    REGULAR_EXPRESSIONS,
    SECTIONS,
    SHAPING_OPTIONS,
)
from efficientnetv2.schema import flatten, nest

# Of a run, in its folder.
FILE = "config.yaml"
NOT_SET = "(not set)"


def parse_hparam_str(text: str) -> dict:
    """Reads a YAML path, or 'train.batch_size=64,data.ram=10'.

    For the form and the errors see `schema.parse_pairs`; in a regular
    expression '|' belongs to the value.
    """
    text = text.strip()
    if not text:
        return {}
    if "=" not in text:
        if text.endswith((".yaml", ".yml")):
            return read_yaml(text)
        raise ConfigError(
            f"--hparam_str={text!r}: expected key=value pairs, such as "
            "'train.batch_size=64,data.ram=10', or the path of a .yaml file."
        )
    return schema.parse_pairs(text, "--hparam_str", REGULAR_EXPRESSIONS)


def _of_today(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Translates options of earlier versions to current names and values.

    Earlier versions, like the released code, name policy and normalization
    together by `data.augname`. In the complete configuration of a run a name
    without a prefix stands for V2's normalization; elsewhere it leaves the
    normalization to the model.
    """
    flat = dict(flat)
    if "data.mix_on_device" in flat:
        value = flat.pop("data.mix_on_device")
        if isinstance(value, bool):
            value = "device" if value else "host"
        flat["data.augment_on"] = value
    name = flat.get("data.augname")
    is_complete = {"data.augname", "data.ds_name", "model.blocks"} <= {*flat}
    if isinstance(name, str) and name in PACKED_NAMES:
        flat["data.augname"], mode = PACKED_NAMES[name]
        flat.setdefault("data.normalization", mode)
    elif is_complete:
        flat.setdefault("data.normalization", "v2")
    return flat


def defaults() -> dict[str, Any]:
    """Returns every option with its default."""
    return copy.deepcopy({key: each.default for key, each in OPTIONS.items()})


def _apply(flat: dict[str, Any], nested: Mapping, source: str) -> None:
    """Applies a layer of overrides to options.

    Raises:
        ConfigError: for an unknown option or an invalid value.
    """
    for key, value in _of_today(flatten(nested)).items():
        if key not in OPTIONS:
            raise ConfigError(_unknown(key, source))
        flat[key] = OPTIONS[key].convert(value, source)


def _unknown(key: str, source: str) -> str:
    if key in SECTIONS:
        return f"{source}: {key!r} is a section; set {key}.OPTION."
    leaf = key.rpartition(".")[2]
    near = [repr(name) for name in OPTIONS if name.endswith(f".{leaf}")]
    hint = f" Did you mean {' or '.join(near)}?"
    hint = hint if near else did_you_mean(key, OPTIONS)
    return (
        f"{source}: unknown option {key!r}.{hint} "
        "hparams/base.yaml lists all options."
    )


def load(
    dataset: str | None = None,
    model_name: str | None = None,
    recipe: str | None = None,
    hparam_str: str = "",
    flags: Mapping[str, Any] | None = None,
    saved: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """Merges all layers into one locked configuration and checks it.

    Args:
        dataset: a name of `datasets/`; None: that of `saved`, else the base
            configuration's.
        model_name: a name of `hparams/models/` or the path of a YAML file;
            None: the recipe's.
        recipe: a name of `hparams/recipes/` or the path of a YAML file; None:
            the recipe that the dataset names.
        hparam_str: overrides, see `parse_hparam_str`. A complete
            `config.yaml` of an earlier run is such an override.
        flags: overrides by flags, 'section.option' to value.
        saved: the content of a run's `config.yaml`, above the recipe.

    Raises:
        ConfigError: for anything unknown, of the wrong type, out of range or in
            conflict.
    """
    overrides = parse_hparam_str(hparam_str)
    known = {**flatten(saved or {}), **flatten(overrides)}
    flat = defaults()
    option = OPTIONS["data.ds_name"]
    dataset = registry.normalized(
        option.convert(
            dataset or known.get(option.name) or option.default, "--hparam_str"
        )
    )
    # Within one program, folders may have changed since the last time.
    registry.forget()
    info = registry.load_info(dataset)
    recipe = recipe or info.recipe
    of_recipe = named_or_path("recipes", recipe)
    flat_recipe = flatten(of_recipe)
    model_name = model_name or known.get("model.model_name")
    of_weights = {}
    if model_name is None:
        # The weights to start from may be a run's, which knows its model.
        of_weights = model_of_run(
            known.get("train.ft_init_ckpt")
            or flat_recipe.get("train.ft_init_ckpt")
        )
        model_name = (
            of_weights.pop("model_name", None)
            or flat_recipe.get("model.model_name")
            or flat["model.model_name"]
        )
    if flat_recipe.get("model.model_name") not in (None, model_name):
        # The width and depth that a recipe gives are for its own model.
        others = of_recipe["model"].items()
        others = {k: v for k, v in others if k not in SHAPING_OPTIONS}
        of_recipe = {**of_recipe, "model": others}
    of_dataset = {"ds_name": dataset}
    if saved is None:
        # A run keeps its own classes, whatever it is evaluated on.
        of_dataset["num_classes"] = info.num_classes
        of_dataset["multi_label"] = info.multi_label
    chosen = {"model.model_name": model_name, "data.ds_name": dataset}
    for source, layer in (
        (f"model {model_name}", named_or_path("models", str(model_name))),
        (f"dataset {dataset}", {"data": of_dataset}),
        (f"recipe {recipe}", of_recipe),
        ("the run of train.ft_init_ckpt", {"model": of_weights}),
        ("config.yaml of the run", saved or {}),
        ("--hparam_str", overrides),
        ("flags", chosen | dict(flags or {})),
    ):
        _apply(flat, layer, source)
    if flat["data.num_classes"] is None:
        flat["data.num_classes"] = info.num_classes
    if flat["model.num_classes"] is None:
        flat["model.num_classes"] = flat["data.num_classes"]
    config = ml_collections.ConfigDict(nest(flat))
    check(config)
    return config.lock()


def model_of_run(weights: Any) -> dict[str, Any]:
    """Returns the options of the model whose weights fine-tuning starts from.

    Args:
        weights: `train.ft_init_ckpt`; only the folder of a run, or one of its
            checkpoints, gives options.
    """
    if not isinstance(weights, str):
        return {}
    path = pathlib.Path(weights).expanduser()
    for folder in (path, path.parent.parent):
        if (folder / FILE).is_file() and (folder / "checkpoints").is_dir():
            model = read_yaml(folder / FILE).get("model", {})
            return {n: model[n] for n in SHAPING_OPTIONS if n in model}
    return {}


def read_saved(model_dir: str | os.PathLike) -> dict:
    """Returns the content of a run's `config.yaml`, for `load`.

    Raises:
        ConfigError: if there is none.
    """
    path = pathlib.Path(model_dir) / FILE
    if not path.exists():
        raise ConfigError(
            f"There is no run in {model_dir}: {path} is missing. Train first, "
            "or name another --model_dir."
        )
    saved = nest(_of_today(flatten(read_yaml(path))))
    name = saved.get("data", {}).get("ds_name")
    if isinstance(name, str):
        # Also by its absolute path, which `load` looks up.
        for each in {name, registry.normalized(name)}:
            fingerprint.remember_dataset(model_dir, each)
    return saved


def later_options(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run's `config.yaml` of an older version does not know.

    These options keep the values of hparams/base.yaml, which are those of the
    time before; `FREE_OPTIONS` are left out.
    """
    flat = flatten(saved)
    known = {**defaults(), **_of_today(flat)}
    later = OPTIONS.keys() - flat.keys() - set(FREE_OPTIONS)
    return {key: known[key] for key in OPTIONS if key in later}


def load_model(name: str, options: Mapping[str, Any]) -> dict[str, dict]:
    """Returns the configuration of a model alone, section to options.

    Args:
        name: a name of `hparams/models/` or the path of a YAML file.
        options: overrides of the section `model`.

    Raises:
        ConfigError: as `load`.
    """
    flat = defaults()
    _apply(flat, named_or_path("models", name), f"model {name}")
    _apply(flat, {"model": dict(options)}, f"model {name}")
    config = nest(flat)
    check_model(config["model"], name)
    return config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for what only shows in the combination."""
    info = registry.load_info(config.data.ds_name)
    check_model(config.model, config.model.model_name)
    _check_image_sizes(config)
    _check_data(config, info)
    _check_batches(
        config, registry.num_images(info, config.train.split, config)
    )
    steps = run_plan(config).total_steps
    if config.train.stages > steps:
        raise ConfigError(
            f"train.stages={config.train.stages} is more than the {steps} "
            f"steps of the run; at most {steps}."
        )


def run_plan(config: ml_collections.ConfigDict) -> progressive.RunPlan:
    """Returns the plan of a run; its data need not be present yet."""
    info = registry.load_info(config.data.ds_name)
    images = registry.num_images(info, config.train.split, config)
    return progressive.plan_run(config, images)


def to_yaml(config: ml_collections.ConfigDict) -> str:
    """Returns the configuration as YAML that `--hparam_str` reads back."""
    content = config.to_dict()
    for key in ONE_TIME_OPTIONS:
        section, option = key.split(".")
        content[section][option] = False
    return yaml.safe_dump(content, sort_keys=False)


def differences(
    old: Mapping,
    new: Mapping,
    free: tuple[str, ...] = (),
    only_common: bool = False,
) -> list[tuple[str, Any, Any]]:
    """Returns (option, old value, new value) for each difference.

    Args:
        old, new: nested mappings, such as two loaded `config.yaml`.
        free: beginnings of options that may differ, see `FREE_OPTIONS`.
        only_common: ignore options that only one of them has.
    """
    old, new = (_of_today(flatten(each)) for each in (old, new))
    keys = old.keys() & new.keys() if only_common else old.keys() | new.keys()
    return [
        (key, old.get(key, NOT_SET), new.get(key, NOT_SET))
        for key in sorted(keys)
        if old.get(key, NOT_SET) != new.get(key, NOT_SET)
        and not key.startswith(free)
    ]


def format_differences(
    changed: list[tuple[str, Any, Any]], new_is: str = "now"
) -> str:
    """Returns a line for each of `differences`, for an error."""
    return "\n".join(
        f"  {key}: {old!r} there, {new!r} {new_is}" for key, old, new in changed
    )


# --- Checks ------------------------------------------------------------------


def check_model(model: Mapping, source: str) -> None:
    """Raises a ConfigError for what only shows in the combination.

    Args:
        model: the section.
        source: what a message calls it.
    """
    if not model["blocks"]:
        raise ConfigError(f"{source} has no model.blocks.")
    fused, stages = model["fused_stages"], len(model["blocks"])
    if model["bn_type"] == "gn":
        channels = [round_filters(model["feature_size"], model)]
        for block in expand_blocks({**model, "fused_stages": None}):
            channels += [block.input_filters, block.expanded_filters]
            channels.append(block.output_filters)
        groups = model["gn_groups"]
        bad = next((count for count in channels if count % groups), None)
        if bad is not None:
            raise ConfigError(
                f"model.gn_groups={groups} does not divide the {bad} channels "
                f"of a layer of {source}."
            )
    if fused is not None and fused > stages:
        raise ConfigError(
            f"model.fused_stages={fused} is more than the {stages} stages of "
            f"{source}."
        )


def _check_image_sizes(config: ml_collections.ConfigDict) -> None:
    sizes = {
        "train.isize": progressive.resolve_image_size(config),
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


def _check_data(
    config: ml_collections.ConfigDict, info: registry.DatasetInfo
) -> None:
    name, data, classes = config.data.ds_name, config.data, info.num_classes
    for key in ("num_classes", "multi_label"):
        if data[key] != getattr(info, key):
            raise ConfigError(
                f"data.{key}={data[key]} does not match {name}, which has "
                f"{getattr(info, key)}. Leave it out; model.num_classes may be "
                "larger."
            )
    if config.model.num_classes < classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes} is less than the "
            f"{classes} classes of {name}."
        )
    for section, option in (
        ("train", "split"),
        ("eval", "split"),
        ("eval", "val_split"),
    ):
        split = config[section][option]
        if split is not None and split not in info.splits:
            raise ConfigError(
                f"{section}.{option}: {name} has no split {split!r}."
                + suggest(split, sorted(info.splits))
            )
    if not data.images_per_class:
        return
    given = f"data.images_per_class={data.images_per_class}"
    if info.multi_label:
        raise ConfigError(
            f"{given}: images of {name} have several labels, so an exact "
            "number of images per class is impossible. Leave it out."
        )
    there = info.splits[config.train.split].num_images
    if data.images_per_class * classes > there:
        raise ConfigError(
            f"{given} needs {data.images_per_class * classes:,} images for "
            f"{classes:,} classes, but the split {config.train.split!r} of "
            f"{name} has {there:,}; at most {there // classes:,}."
        )


def _check_batches(config: ml_collections.ConfigDict, images: int) -> None:
    batch, parts = config.train.batch_size, config.train.batch_parts
    micro = config.train.micro_batch_size
    if batch > images:
        raise ConfigError(
            f"train.batch_size={batch} is more than the {images} images of "
            f"the split {config.train.split!r}."
        )
    if batch % parts:
        raise ConfigError(
            f"train.batch_parts={parts} does not divide "
            f"train.batch_size={batch}."
        )
    if micro and (batch % micro or micro % parts):
        raise ConfigError(
            f"train.micro_batch_size={micro} must divide "
            f"train.batch_size={batch} and be a multiple of "
            f"train.batch_parts={parts}."
        )
