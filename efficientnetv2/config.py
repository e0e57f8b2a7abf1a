"""Configuration: base < model < dataset < recipe < --hparam_str < flags.

`load` merges YAML files and the command line into one locked, typed
`ml_collections.ConfigDict`; `check` finds the mistakes that only show in the
combination. A configuration is data: nothing here is ever executed.
"""

import ast
import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import yaml

from efficientnetv2.data import fingerprint, registry
from efficientnetv2.declarative import (
    ConfigError,
    declarative_dir,
    named_or_path,
    read_yaml,
    suggest,
)
from efficientnetv2.errors import nearest
from efficientnetv2.models.block_strings import (
    BlockArgs,
    expand_blocks,
    round_filters,
)
from efficientnetv2.normalizations import AUGNAMES

# Of a run, in its folder.
FILE = "config.yaml"

# Options that may be null, and the type of their other values.
_NULLABLE = {
    "model.num_classes": int,
    "model.fused_stages": int,
    "model.round_limit": float,
    "model.bn_type": str,
    "model.survival_prob": float,
    "model.conv_dropout": float,
    "model.dropout_rate": float,
    "model.dropout_base": float,
    "model.headbias": float,
    "train.ft_init_ckpt": str,
    "train.varsexp": str,
    "train.class_weights": list,
    "eval.val_split": str,
    "data.data_dir": str,
    "data.num_classes": int,
    "data.augname": str,
    "data.augment_on": str,
    "data.eval_transformations": list,
    "runtime.mixed_precision": str,
    "runtime.jit_compile": bool,
}
_CHOICES = {
    "model.act_fn": (
        "silu swish relu relu6 hswish mish elu selu leaky_relu".split()
    ),
    "model.bn_type": ["bn", "sync_bn", "gn"],
    "train.isize_rule": ["code", "paper"],
    "train.stage_order": ["ascending", "random"],
    "train.optimizer": [
        *("rmsprop", "momentum", "nesterov", "sgd"),
        *("adam", "adamw", "lion"),
    ],
    "runtime.strategy": [
        "auto",
        "cpu",
        "gpu",
        "mirrored",
        "multi_worker",
    ],
    "train.on_nan": ["stop", "rollback"],
    "data.augment_on": ["host", "device"],
    "data.on_corrupt": ["error", "skip"],
    "data.cutmix_labels": ["image", "batch"],
    "train.loss_type": ["softmax", "sigmoid", "sigmoid_sum"],
    "train.lr_sched": ["exponential", "cosine", "linear", "constant"],
    "runtime.mixed_precision": [
        *("mixed_bfloat16", "mixed_float16", "float32"),
        "bfloat16_products",
    ],
}
_CHOICES["data.augname"] = list(AUGNAMES)
_REGULAR_EXPRESSIONS = ("train.varsexp", "train.weight_decay_exclude")
_TRANSFORMATIONS = ["crop", "shift", "flip"]
# Beyond it no memory holds the activations.
_LARGEST_IMAGE = 8192
# Inclusive ranges of numbers; None: no limit.
_RANGES = {
    "model.fused_stages": (0, None),
    "model.round_limit": (0, 1),
    "model.width_coefficient": (1e-3, None),
    "model.depth_coefficient": (1e-3, None),
    "model.depth_divisor": (1, None),
    "model.feature_size": (1, None),
    "model.survival_prob": (0, 1),
    "model.dropout_rate": (0, 0.999),
    "model.dropout_base": (0, 0.999),
    "model.conv_dropout": (0, 0.999),
    "model.bn_momentum": (0, 1),
    "model.bn_epsilon": (0, None),
    "model.gn_groups": (1, None),
    "model.min_depth": (0, None),
    "model.num_classes": (1, None),
    "train.epochs": (1e-6, 1e9),
    "train.min_steps": (0, None),
    "train.batch_size": (1, None),
    "train.micro_batch_size": (0, None),
    "train.batch_parts": (1, 64),
    "train.stages": (1, None),
    "train.lr_base": (0, None),
    "train.lr_min": (0, None),
    "train.lr_decay_epoch": (1e-9, None),
    "train.lr_decay_factor": (0, None),
    "train.lr_warmup_epoch": (0, None),
    "train.ema_decay": (0, 0.9999999),
    "train.weight_decay": (0, None),
    "train.weight_decay_inc": (-1, None),
    "train.label_smoothing": (0, 0.999),
    "train.gclip": (0, None),
    "train.momentum": (0, 0.999999),
    "train.rmsprop_decay": (0, 0.999999),
    "train.rmsprop_epsilon": (0, None),
    "train.seed": (0, 2**31 - 1),
    "train.decoupled_weight_decay": (0, 1),
    "train.layer_decay": (1e-3, 1),
    "train.unfreeze_epochs": (0, None),
    "train.isize": (None, _LARGEST_IMAGE),
    "eval.isize": (None, _LARGEST_IMAGE),
    "eval.batch_size": (1, None),
    "eval.patience": (0, None),
    "eval.every_epochs": (1e-3, None),
    "data.shuffle_buffer": (1, None),
    "data.aug_prob": (0, 1),
    "data.ra_num_layers": (0, 8),
    "data.ibase": (None, _LARGEST_IMAGE),
    "data.num_classes": (1, None),
    "data.ram": (0, 100),
    "data.ram_base": (0, 100),
    "data.mixup_alpha": (0, 100),
    "data.mixup_alpha_base": (0, 100),
    "data.cutmix_alpha": (0, 100),
    "data.cutmix_alpha_base": (0, 100),
    "data.crop_area_min": (1e-3, 1),
    "data.shift": (0, 1),
    "data.cutout_const": (0, None),
    "data.translate_const": (0, None),
    "checkpoint.keep": (1, None),
    "checkpoint.every_minutes": (0.01, None),
    "checkpoint.every_steps": (0, None),
    "runtime.threads": (0, None),
}
# Options of earlier versions: the option and its values of today.
_RENAMED = {
    "data.mix_on_device": ("data.augment_on", {True: "device", False: "host"})
}
# Options for one command, which a run does not keep.
ONE_TIME_OPTIONS = ("data.allow_changes", "train.extend")
NOT_SET = "(not set)"
# Of whole numbers without a limit of their own.
_LARGEST = 2**31 - 1
MIN_IMAGE_SIZE = 8
# Options of a model that decide what its weights are called and how large they
# are, or what they mean.
_SHAPING = (
    *("model_name", "blocks", "fused_stages", "width_coefficient"),
    *("depth_coefficient", "depth_divisor", "min_depth", "round_limit"),
    *("feature_size", "act_fn", "bn_type", "gn_groups"),
)
# Options that may change between the parts of one run: they change neither
# the data nor the numbers. A name that ends with a dot is a section.
FREE_OPTIONS = (
    "data.data_dir",
    "data.allow_changes",
    "data.augment_on",
    "eval.batch_size",
    "checkpoint.",
    "runtime.threads",
    "runtime.strategy",
    "train.callbacks",
    "train.extend",
)


def _parse_value(text: str) -> Any:
    text = text.strip()
    if "|" in text:
        return [_parse_value(part) for part in text.split("|")]
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered in ("null", "none", ""):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_hparam_str(text: str) -> dict:
    """Parses 'train.batch_size=64,data.ram=10' or reads a YAML path.

    Values: true, false, null, numbers, text, and lists as 'crop|flip' (where
    an option is a regular expression, '|' belongs to it). Of a key that is
    given twice the last value counts.

    Returns:
        A nested dict of the overrides.

    Raises:
        ConfigError: if a part is no 'key=value'.
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
    nested: dict = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(
                f"--hparam_str: {pair.strip()!r} is not of the form key=value."
                " Lists are written with '|', as in crop|flip."
            )
        section = nested
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"--hparam_str: {parent!r} in {key!r} is an option and "
                    "no section."
                )
        if key in _REGULAR_EXPRESSIONS and "|" in value:
            section[leaf] = value.strip()
        else:
            section[leaf] = _parse_value(value)
    return nested


def _flatten(nested: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, path + "."))
        else:
            flat[path] = value
    return flat


def _convert(key: str, value: Any, kind: type, source: str) -> Any:
    """Returns value as `kind`, or raises a ConfigError that names the key."""
    if kind is float and type(value) in (int, str):
        # YAML 1.1 reads 1e-5 as text.
        try:
            value = float(value)
        except (ValueError, OverflowError):
            pass
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if kind is list and isinstance(value, (str, tuple)):
        value = [value] if isinstance(value, str) else list(value)
    if kind is str and type(value) in (int, float):
        value = str(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        expected = {
            int: "a whole number",
            float: "a finite number",
            bool: "true or false",
            str: "text",
            list: "a list, such as crop|flip",
        }[kind]
        raise ConfigError(f"{source}: {key} must be {expected}, not {value!r}.")
    return value


def _of_today(key: str, value: Any) -> tuple[str, Any]:
    """Returns an option and its value as they are called now."""
    if key not in _RENAMED:
        return key, value
    name, values = _RENAMED[key]
    return name, values.get(value, value)


class _Merger:
    """Applies layers of overrides to the base configuration."""

    def __init__(self):
        base = read_yaml(declarative_dir("hparams") / "base.yaml")
        self.flat = _flatten(base)
        self.kinds = {
            key: _NULLABLE.get(key, type(value))
            for key, value in self.flat.items()
        }
        # A whole number of pixels, or a part of eval.isize.
        self.kinds["train.isize"] = float

    def apply(self, nested: Mapping, source: str) -> None:
        for key, value in _flatten(nested).items():
            key, value = _of_today(key, value)
            if key not in self.flat:
                raise ConfigError(self._unknown(key, source))
            if value is None and key in _NULLABLE:
                self.flat[key] = None
                continue
            if value is None and self.kinds[key] is list:
                value = []
            value = _convert(key, value, self.kinds[key], source)
            self._check_value(key, value, source)
            self.flat[key] = value

    def _unknown(self, key: str, source: str) -> str:
        sections = {name.split(".")[0] for name in self.flat}
        if key in sections:
            return f"{source}: {key!r} is a section; set {key}.OPTION."
        leaf = key.rpartition(".")[2]
        near = [name for name in self.flat if name.endswith(f".{leaf}")]
        near = near or [nearest(key, self.flat)]
        hint = " Did you mean " + " or ".join(map(repr, near)) + "?"
        hint = hint if near[0] else ""
        return (
            f"{source}: unknown option {key!r}.{hint} "
            "hparams/base.yaml lists all."
        )

    @staticmethod
    def _check_value(key: str, value: Any, source: str) -> None:
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ConfigError(
                f"{source}: {key}={value!r} is not valid."
                + suggest(str(value), _CHOICES[key])
            )
        if key in _REGULAR_EXPRESSIONS:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as error:
                raise ConfigError(
                    f"{source}: {key}={value!r} is no regular expression "
                    f"({error})."
                ) from None
        if key == "model.blocks":
            for text in value:
                try:
                    BlockArgs.from_string(text)
                except ValueError as error:
                    raise ConfigError(f"{source}: {key}: {error}") from None
        low, high = _RANGES.get(key, (None, None))
        if high is None and type(value) is int:
            high = _LARGEST
        if low is not None and value < low:
            raise ConfigError(
                f"{source}: {key}={value} is too small; at least {low:g}."
            )
        if high is not None and value > high:
            raise ConfigError(
                f"{source}: {key}={value} is too large; at most {high:g}."
            )
        if key == "train.callbacks":
            for item in value:
                if not re.fullmatch(r"\w+(\.\w+)*:\w+", str(item)):
                    raise ConfigError(
                        f"{source}: {key} has {item!r}; write module:Class, "
                        "such as my_callbacks:Tracker."
                    )
        if key.endswith("transformations"):
            for item in value:
                valid = (
                    _TRANSFORMATIONS
                    if key == "data.transformations"
                    else ["crop"]
                )
                if item not in valid:
                    raise ConfigError(
                        f"{source}: {key} has an unknown {item!r}."
                        + suggest(str(item), valid)
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
        saved: the content of a run's `config.yaml`, which takes the place of
            the recipe.

    Raises:
        ConfigError: for anything unknown, of a wrong type, out of range or
            impossible in combination.
    """
    overrides = parse_hparam_str(hparam_str)
    flat_overrides = {**_flatten(saved or {}), **_flatten(overrides)}
    merger = _Merger()
    dataset = (
        dataset
        or flat_overrides.get("data.ds_name")
        or merger.flat["data.ds_name"]
    )
    dataset = _convert("data.ds_name", dataset, str, "--hparam_str")
    dataset = registry.normalized(dataset)
    # Within one program, folders may have changed since the last time.
    registry.forget()
    info = registry.load_info(dataset)
    recipe = recipe or info.recipe
    recipe_content = named_or_path("recipes", recipe)
    recipe_model = _flatten(recipe_content).get("model.model_name")
    model_name = model_name or flat_overrides.get("model.model_name")
    of_weights = {}
    if model_name is None:
        # The weights to start from may be a run's, which knows its model.
        of_weights = model_of_run(
            flat_overrides.get("train.ft_init_ckpt")
            or _flatten(recipe_content).get("train.ft_init_ckpt")
        )
    model_name = (
        model_name
        or of_weights.pop("model_name", None)
        or recipe_model
        or merger.flat["model.model_name"]
    )
    model_content = named_or_path("models", str(model_name))
    merger.apply(model_content, f"model {model_name}")
    merger.apply(recipe_content, f"recipe {recipe}")
    merger.apply({"model": of_weights}, "the run of train.ft_init_ckpt")
    merger.apply(saved or {}, "config.yaml of the run")
    merger.apply(
        {
            "data": {
                "ds_name": dataset,
                "num_classes": info.num_classes,
                "multi_label": info.multi_label,
            }
            # A run has classes of its own, whatever it is evaluated on.
            if saved is None
            else {"ds_name": dataset}
        },
        f"dataset {dataset}",
    )
    merger.apply(overrides, "--hparam_str")
    merger.apply(
        {"model": {"model_name": model_name}, "data": {"ds_name": dataset}},
        "flags",
    )
    for key, value in (flags or {}).items():
        section, option = key.split(".")
        merger.apply({section: {option: value}}, f"flag for {key}")
    nested = _nest(merger.flat)
    if nested["data"]["num_classes"] is None:
        nested["data"]["num_classes"] = info.num_classes
    if nested["model"]["num_classes"] is None:
        nested["model"]["num_classes"] = nested["data"]["num_classes"]
    config = ml_collections.ConfigDict(nested)
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
            return {name: model[name] for name in _SHAPING if name in model}
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
    saved = read_yaml(path)
    name = saved.get("data", {}).get("ds_name")
    if isinstance(name, str):
        # Also by its absolute path, which `load` looks up.
        for each in {name, registry.normalized(name)}:
            fingerprint.remember(model_dir, each)
    return saved


def as_begun(
    config: ml_collections.ConfigDict,
    model_dir: str | os.PathLike,
    log: Callable[[str], None],
) -> ml_collections.ConfigDict:
    """Returns the configuration for going on with a run of an older version.

    Options that its `config.yaml` does not know keep the values of
    hparams/base.yaml, which are those of the time before.

    Args:
        config: as it would be now.
        model_dir: of the run; if there is none, the result is `config`.
        log: prints one line, for options that are asked for and not taken.
    """
    path = pathlib.Path(model_dir) / FILE
    if not path.exists():
        return config
    saved = _flatten(read_yaml(path))
    config = config.copy_and_resolve_references().unlock()
    for key, value in _Merger().flat.items():
        section, option = key.split(".")
        if key in saved or config[section][option] == value:
            continue
        log(
            f"{path} is older than {key}: the run keeps {value!r}, not "
            f"{config[section][option]!r}."
        )
        config[section][option] = value
    return config.lock()


def load_model(name: str, options: Mapping[str, Any]) -> dict[str, dict]:
    """Returns the configuration of a model alone, section to options.

    Args:
        name: a name of `hparams/models/` or the path of a YAML file.
        options: overrides of the section `model`.

    Raises:
        ConfigError: as `load`.
    """
    merger = _Merger()
    merger.apply(named_or_path("models", name), f"model {name}")
    merger.apply({"model": dict(options)}, f"model {name}")
    config = _nest(merger.flat)
    _check_model(config["model"], name)
    return config


def _nest(flat: Mapping[str, Any]) -> dict[str, dict]:
    nested: dict = {}
    for key, value in flat.items():
        section, option = key.split(".")
        nested.setdefault(section, {})[option] = value
    return nested


def _check_model(model: Mapping, source: str) -> None:
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


def resolve_image_size(config: ml_collections.ConfigDict) -> int:
    """Returns the training image size of the last stage in pixels.

    A value of at most 2 is a part of `eval.isize`, rounded down to a multiple
    of 16, as in the released code.
    """
    size = config.train.isize
    if size <= 2:
        return int(config.eval.isize * size) // 16 * 16
    return int(size)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for what only shows in the combination."""
    _check_model(config.model, config.model.model_name)
    sizes = {
        "train.isize": resolve_image_size(config),
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
    info = registry.load_info(config.data.ds_name)
    for key in ("num_classes", "multi_label"):
        found, right = config.data[key], getattr(info, key)
        if found != right:
            raise ConfigError(
                f"data.{key}={found} is not what {config.data.ds_name} has, "
                f"{right}. Leave it out; model.num_classes may be larger."
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
    images = splits[config.train.split].num_images
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
    plan = run_plan(config)
    if config.train.stages > plan.total_steps:
        raise ConfigError(
            f"train.stages={config.train.stages} is more than the "
            f"{plan.total_steps} steps of the run; at most "
            f"{plan.total_steps}."
        )


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """How many steps a run has.

    Attributes:
        num_images: images of the training split.
        steps_per_epoch: whole batches of an epoch.
        total_steps: optimizer steps of the run.
    """

    num_images: int
    steps_per_epoch: int
    total_steps: int


def run_plan(config: ml_collections.ConfigDict) -> RunPlan:
    """Returns the run's number of steps; `train.epochs` may be fractional."""
    splits = registry.load_info(config.data.ds_name).splits
    images = splits[config.train.split].num_images
    steps_per_epoch = images // config.train.batch_size
    total = max(
        config.train.min_steps,
        int(round(config.train.epochs * steps_per_epoch)),
        1,
    )
    return RunPlan(images, steps_per_epoch, total)


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
    """Returns (option, old value, new value) of what differs.

    Args:
        old, new: nested mappings, such as two loaded `config.yaml`.
        free: beginnings of options that may differ, see `FREE_OPTIONS`.
        only_common: pass over options that only one of them has.
    """
    old, new = (
        dict(itertools.starmap(_of_today, _flatten(each).items()))
        for each in (old, new)
    )
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
