"""What the commands share that train a run, or work on one."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from efficientnetv2 import backend, cli, quiet
from efficientnetv2 import config as config_lib
from efficientnetv2.data import fingerprint
from efficientnetv2.errors import UserError
from efficientnetv2.options import MIN_IMAGE_SIZE
from efficientnetv2.serving import formats

TRAINING_MODES = ("train_and_eval", "train_and_test", "train")
STRATEGIES = ("auto", "cpu", "gpu", "mirrored", "multi_worker")
# Flag to the option that it sets.
SWITCHES = {
    "progressive_image_size": (
        "train.progressive_image_size",
        "Grow the images from stage to stage; off: the final size throughout.",
    ),
    "adaptive_randaugment": (
        "train.adaptive_randaugment",
        "Ramp the RandAugment magnitude; off: the final one throughout.",
    ),
    "adaptive_mixing": (
        "train.adaptive_mixing",
        "Ramp Mixup and CutMix alpha; off: the final ones throughout.",
    ),
    "adaptive_dropout": (
        "train.adaptive_dropout",
        "Ramp the dropout rate; off: the final one throughout.",
    ),
    "adaptive_weight_decay": (
        "train.adaptive_weight_decay",
        "Ramp the weight decay; off: train.weight_decay throughout (about "
        "1e-5; a coefficient near 1 destroys training).",
    ),
}
_ADAPTIVE = [
    key for name, (key, _) in SWITCHES.items() if name.startswith("adaptive")
]
# Flag to the option that it sets, of those that need no further thought.
_OPTIONS = {
    "seed": "train.seed",
    "epochs": "train.epochs",
    "lr": "train.lr_base",
    "data_dir": "data.data_dir",
    "strategy": "runtime.strategy",
} | {name: key for name, (key, _) in SWITCHES.items()}


def define_model_dir(values: flags.FlagValues) -> None:
    """Defines --model_dir."""
    flags.DEFINE_string(
        "model_dir",
        None,
        "Folder of the run.",
        flag_values=values,
    )


def define_short_flags(values: flags.FlagValues) -> None:
    """Defines the flags for what everybody sets."""
    flags.DEFINE_float(
        "epochs", None, "Length of the run (train.epochs).", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images per step, over all devices (train.batch_size).",
        flag_values=values,
    )
    flags.DEFINE_float(
        "lr",
        None,
        "Learning rate per 256 images of a batch (train.lr_base).",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side of the images in pixels (eval.isize, train.isize). An image size "
        "that grows starts lower in proportion (data.ibase).",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", None, "Seed of everything random (train.seed).",
        flag_values=values,
    )  # fmt: skip


def define_backend(values: flags.FlagValues) -> None:
    """Defines --backend."""
    flags.DEFINE_enum(
        "backend",
        None,
        backend.NAMES,
        "What trains and evaluates: tensorflow or jax. Default: "
        "KERAS_BACKEND, else jax where there is a TPU, else tensorflow.",
        flag_values=values,
    )


def define_strategy(values: flags.FlagValues) -> None:
    """Defines --strategy."""
    flags.DEFINE_enum(
        "strategy",
        None,
        STRATEGIES,
        "Devices: cpu, gpu, mirrored, multi_worker (runtime.strategy). "
        "Default: what there is.",
        flag_values=values,
    )


def define_switches(values: flags.FlagValues) -> None:
    """Defines the flags that switch the ramps."""
    for name, (_, text) in SWITCHES.items():
        flags.DEFINE_boolean(name, None, text, flag_values=values)
    flags.DEFINE_boolean(
        "adaptive_regularization",
        None,
        "All four adaptive_ switches at once; each can still be given.",
        flag_values=values,
    )


def define_checkpoint(values: flags.FlagValues) -> None:
    """Defines --checkpoint."""
    flags.DEFINE_string(
        "checkpoint",
        None,
        "best (default), last, a step or a file.",
        flag_values=values,
    )


def define_weights(values: flags.FlagValues) -> None:
    """Defines --weights."""
    flags.DEFINE_string(
        "weights",
        None,
        "Evaluate these instead of a run: imagenet, or a path.",
        flag_values=values,
    )


def define_export(values: flags.FlagValues) -> None:
    """Defines the flags of an export."""
    flags.DEFINE_list(
        "formats",
        None,
        f"{', '.join(formats.FORMATS)}; default: the first.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "allow_disagreement",
        False,
        "Write also what differs too much from Keras.",
        flag_values=values,
    )


def overrides(given: flags.FlagValues) -> dict[str, Any]:
    """Returns the options that flags set, 'section.option' to value."""
    found = {}
    all_ramps = cli.value_of(given, "adaptive_regularization")
    if all_ramps is not None:
        found.update(dict.fromkeys(_ADAPTIVE, all_ramps))
    for name, key in _OPTIONS.items():
        value = cli.value_of(given, name)
        if value is not None:
            found[key] = value
    return found


def load_config(
    given: flags.FlagValues, saved: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Returns the configuration that the flags give.

    Args:
        given: the flags.
        saved: the content of a run's config.yaml, for what works on a run.

    Raises:
        ConfigError: see `config.load`.
    """
    arguments = {
        "dataset": cli.value_of(given, "dataset"),
        "model_name": cli.value_of(given, "model_name"),
        "recipe": cli.value_of(given, "recipe"),
        "hparam_str": cli.value_of(given, "hparam_str") or "",
        "saved": saved,
    }
    found = overrides(given)
    size = cli.value_of(given, "image_size")
    if size is not None:
        text = arguments["hparam_str"]
        found |= _image_size(size, config_lib.load(**arguments), text)
    batch_size = cli.value_of(given, "batch_size")
    if batch_size is not None:
        found["train.batch_size"] = batch_size
    return config_lib.load(**arguments, flags=found)


def _image_size(
    size: int, config: ml_collections.ConfigDict, hparam_str: str
) -> dict[str, Any]:
    """Returns the options that --image_size sets."""
    found: dict[str, Any] = {"eval.isize": size, "train.isize": size}
    by_hand = config_lib.parse_hparam_str(hparam_str).get("data", {})
    if "ibase" not in by_hand:
        before = config_lib.resolve_image_size(config)
        scaled = round(config.data.ibase * size / before)
        found["data.ibase"] = max(MIN_IMAGE_SIZE, scaled)
    return found


def config_of_run(
    given: flags.FlagValues, other_images: bool = False
) -> ml_collections.ConfigDict:
    """Returns the configuration of the run in --model_dir.

    Args:
        given: the flags.
        other_images: whether --dataset may name another dataset.

    Raises:
        UserError: if there is no run, or it is on another dataset.
    """
    saved = config_lib.read_saved(given.model_dir)
    of_run = saved.get("data", {}).get("ds_name")
    dataset = cli.value_of(given, "dataset")
    if dataset and not other_images:
        fingerprint.check_is_of_run(dataset, of_run, given.model_dir)
    return load_config(given, saved)


def take_model_dir(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Sets --model_dir from the words, which may be one folder.

    Raises:
        UserError: if no folder is named, or more than one.
    """
    if len(words) == 1 and not given.model_dir and "=" not in words[0]:
        given.model_dir = words[0]
    else:
        cli.no_words(words)
    if not given.model_dir:
        raise UserError("--model_dir is missing, such as runs/fashion_mnist.")


def train(given: flags.FlagValues) -> None:
    """Trains a run, or says what that would cost, by `--dry_run`."""
    if not given.dry_run and not given.model_dir:
        raise UserError("--model_dir is missing, such as runs/fashion_mnist.")
    config = load_config(given)
    if not given.dry_run:
        execute(config, given, given.mode)
        return
    with quiet.importing_tensorflow(given.backend):
        from efficientnetv2 import dry_run
    dry_run.report(config)


def evaluate_weights(given: flags.FlagValues) -> None:
    """Evaluates --weights of --model_name on --dataset.

    Raises:
        UserError: if one of the three is missing, or a run is named as well.
    """
    missing = [
        f"--{name}"
        for name in ("model_name", "dataset")
        if not cli.value_of(given, name)
    ]
    if missing:
        raise UserError(
            f"--weights={given.weights} needs {' and '.join(missing)}, as in "
            "--model_name=efficientnetv2-s --weights=imagenet --dataset=photos."
        )
    if given.model_dir:
        raise UserError(
            "--weights evaluates weights without a run: leave out --model_dir."
        )
    config = config_lib.load(
        dataset=given.dataset,
        hparam_str=cli.value_of(given, "hparam_str") or "",
        flags=overrides(given),
    )
    with quiet.importing_tensorflow("tensorflow"):
        from efficientnetv2 import api
    api.evaluate_weights(config, given.model_name, given.weights)


def backend_for(given: flags.FlagValues, mode: str) -> str | None:
    """Returns the backend of Keras for a mode; None: what there is.

    Raises:
        UserError: for another one than TensorFlow where only it will do.
    """
    name = cli.value_of(given, "backend")
    if mode != "export":
        return name
    if name not in (None, "tensorflow"):
        raise UserError(
            f"--backend={name}: TensorFlow exports the models of both "
            "backends. Leave --backend out."
        )
    return "tensorflow"


def execute(
    config: ml_collections.ConfigDict,
    given: flags.FlagValues,
    mode: str,
) -> None:
    """Runs a mode; see `api.execute`."""
    keras_backend = backend_for(given, mode)
    # TensorFlow is imported only now: mistakes above are shown at once.
    with quiet.importing_tensorflow(keras_backend):
        from efficientnetv2 import api

    try:
        api.execute(
            config,
            given.model_dir,
            mode,
            cli.value_of(given, "checkpoint"),
            formats=cli.value_of(given, "formats") or formats.DEFAULT,
            allow_disagreement=bool(cli.value_of(given, "allow_disagreement")),
        )
    except api.WorkerLost as error:
        # TensorFlow wants a new process to meet the others in.
        print(f"{error} Starting again from the last checkpoint.", flush=True)
        os.execv(sys.executable, sys.orig_argv)
