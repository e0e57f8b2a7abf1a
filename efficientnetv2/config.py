"""Configuration: base < model < dataset < recipe < --hparam_str < flags.

`load` merges YAML files and the command line into one locked, typed
`ml_collections.ConfigDict`; `check` finds conflicts between options. The
options themselves are in `options`. A configuration is data: nothing here is
ever executed.
"""

import ast
import copy
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import yaml

from efficientnetv2 import combinations, progressive
from efficientnetv2.data import fingerprint, registry
from efficientnetv2.declarative import (
    ConfigError,
    named_or_path,
    read_yaml,
)
from efficientnetv2.errors import nearest
from efficientnetv2.normalizations import PACKED_NAMES
from efficientnetv2.options import (
    FREE_OPTIONS,
    ONE_TIME_OPTIONS,
    OPTIONS,
    REGULAR_EXPRESSIONS,
    SECTIONS,
    SHAPING_OPTIONS,
)

# Of a run, in its folder.
FILE = "config.yaml"
NOT_SET = "(not set)"


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
    an option is a regular expression, '|' belongs to it). If a key is given
    twice, the last value counts.

    Returns:
        A nested dict of the overrides.

    Raises:
        ConfigError: if a part is not 'key=value'.
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
                    "not a section."
                )
        if key in REGULAR_EXPRESSIONS and "|" in value:
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
    for key, value in _of_today(_flatten(nested)).items():
        if key not in OPTIONS:
            raise ConfigError(_unknown(key, source))
        flat[key] = OPTIONS[key].convert(value, source)


def _unknown(key: str, source: str) -> str:
    if key in SECTIONS:
        return f"{source}: {key!r} is a section; set {key}.OPTION."
    leaf = key.rpartition(".")[2]
    near = [name for name in OPTIONS if name.endswith(f".{leaf}")]
    near = near or [nearest(key, OPTIONS)]
    hint = " Did you mean " + " or ".join(map(repr, near)) + "?"
    hint = hint if near[0] else ""
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
        saved: the content of a run's `config.yaml`, which takes the place of
            the recipe.

    Raises:
        ConfigError: for anything unknown, of the wrong type, out of range or in
            conflict.
    """
    overrides = parse_hparam_str(hparam_str)
    known = {**_flatten(saved or {}), **_flatten(overrides)}
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
    flat_recipe = _flatten(of_recipe)
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
    config = ml_collections.ConfigDict(_nest(flat))
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
    saved = _nest(_of_today(_flatten(read_yaml(path))))
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
    """Returns the configuration to resume a run of an older version with.

    Options missing from its `config.yaml` get their values in
    hparams/base.yaml, which match how that version behaved.

    Args:
        config: as it would be now.
        model_dir: of the run; if there is none, the result is `config`.
        log: prints one line, for options that are requested but ignored.
    """
    path = pathlib.Path(model_dir) / FILE
    if not path.exists():
        return config
    raw = _flatten(read_yaml(path))
    saved = {**defaults(), **_of_today(raw)}
    config = config.copy_and_resolve_references().unlock()
    for key in OPTIONS:
        section, option = key.split(".")
        value = saved[key]
        if (
            key in raw
            or config[section][option] == value
            or key in FREE_OPTIONS
        ):
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
    flat = defaults()
    _apply(flat, named_or_path("models", name), f"model {name}")
    _apply(flat, {"model": dict(options)}, f"model {name}")
    config = _nest(flat)
    combinations.check_model(config["model"], name)
    return config


def _nest(flat: Mapping[str, Any]) -> dict[str, dict]:
    nested: dict = {}
    for key, value in flat.items():
        section, _, option = key.rpartition(".")
        place = nested.setdefault(section, {}) if section else nested
        place[option] = value
    return nested


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError for conflicts between options."""
    combinations.check_model(config.model, config.model.model_name)
    combinations.check_image_sizes(
        config, progressive.resolve_image_size(config)
    )
    combinations.check_data(config, registry.load_info(config.data.ds_name))
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
    old, new = (_of_today(_flatten(each)) for each in (old, new))
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
