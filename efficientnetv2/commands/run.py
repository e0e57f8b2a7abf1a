"""The commands that train a run, or work on one."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from efficientnetv2 import backend, cli, progressive
from efficientnetv2 import config as config_lib
from efficientnetv2.cli import Flag
from efficientnetv2.data import fingerprint
from efficientnetv2.errors import UserError
from efficientnetv2.options import MIN_IMAGE_SIZE
from efficientnetv2.serving import formats

TRAINING_MODES = ("train_and_eval", "train_and_test", "train")
MODES = (*TRAINING_MODES, "eval", "report", "export")
_RUN = "dataset model_name recipe hparam_str data_dir"
_TRAINING = (
    f"{_RUN} model_dir epochs batch_size lr image_size seed strategy backend"
)
_SWITCHES = " ".join([*cli.SWITCHES, "adaptive_regularization"])
_DRY_RUN = Flag(
    "dry_run",
    "Train nothing; estimate time and memory. Prints data, model and stages, "
    "times a few steps of each, and writes nothing.",
    bool,
    default=False,
)
_MODE = Flag(
    "mode",
    "train_and_test skips report and SavedModel, train also skips the final "
    "evaluation.",
    default="train_and_eval",
    choices=TRAINING_MODES,
)
_EXPORT = (
    Flag(
        "formats",
        f"{', '.join(formats.FORMATS)}; default: the first.",
        list,
    ),
    Flag(
        "allow_disagreement",
        "Also write formats that differ too much from Keras.",
        bool,
        default=False,
    ),
)
_NO_MODEL_DIR = "Set --model_dir, for example --model_dir=runs/fashion_mnist."


# --- Configurations ---------------------------------------------------------


def load_config(
    given: flags.FlagValues, saved: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Returns the configuration from the flags.

    Args:
        given: the flags.
        saved: the content of a run's config.yaml, for what works on a run.

    Raises:
        ConfigError: see `config.load`.
    """
    names = ("dataset", "model_name", "recipe")
    arguments = {name: cli.value_of(given, name) for name in names}
    text = cli.value_of(given, "hparam_str") or ""
    arguments |= {"hparam_str": text, "saved": saved}
    found = cli.overrides(given)
    size = cli.value_of(given, "image_size")
    if size is not None:
        found |= {"eval.isize": size, "train.isize": size}
        by_hand = config_lib.parse_hparam_str(text).get("data", {})
        if "ibase" not in by_hand:
            before = config_lib.load(**arguments)
            last = progressive.resolve_image_size(before)
            scaled = round(before.data.ibase * size / last)
            found["data.ibase"] = max(MIN_IMAGE_SIZE, scaled)
    return config_lib.load(**arguments, flags=found)


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


def _take_model_dir(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Sets --model_dir from the words, which may be one folder."""
    if len(words) == 1 and not given.model_dir and "=" not in words[0]:
        given.model_dir = words[0]
    else:
        cli.no_words(words)
    if not given.model_dir:
        raise UserError(_NO_MODEL_DIR)


# --- Commands ---------------------------------------------------------------


@cli.command(
    _TRAINING,
    _DRY_RUN,
    _MODE,
    _SWITCHES,
    rare=f"{_SWITCHES} mode",
)
def train(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""Train and evaluate a model; write the report and a SavedModel.

        efficientnetv2 train --dataset=fashion_mnist --model_dir=runs/fashion_mnist
        efficientnetv2 train --dataset=photos --model_dir=runs/photos \
            --model_name=efficientnetv2-s --hparam_str=train.ft_init_ckpt=imagenet

    Rerun the command to resume.
    """  # noqa: E501
    cli.no_words(words)
    if not given.dry_run and not given.model_dir:
        raise UserError(_NO_MODEL_DIR)
    config = load_config(given)
    if not given.dry_run:
        _execute(config, given, given.mode)
        return
    with backend.importing_tensorflow(given.backend):
        from efficientnetv2 import speed
    speed.dry_run(config)


@cli.command(
    "model_dir checkpoint",
    Flag("dataset", "Dataset to evaluate on; default: the run's."),
    Flag(
        "model_name",
        "With --weights: a name of hparams/models/, or a YAML file.",
    ),
    "weights hparam_str data_dir strategy backend",
)
def evaluate(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""Evaluate a run on every image of its test split, or on other images.

        efficientnetv2 eval runs/fashion_mnist
        efficientnetv2 eval runs/fashion_mnist --hparam_str=eval.split=minival
        efficientnetv2 eval --model_name=efficientnetv2-s --weights=imagenet \
            --dataset=photos

    The classes of another --dataset are matched to the model's by name.
    """
    if given.weights:
        cli.no_words(words)
        _evaluate_weights(given)
        return
    _take_model_dir(given, words)
    _execute(config_of_run(given, other_images=True), given, "eval")


def _evaluate_weights(given: flags.FlagValues) -> None:
    """Evaluates --weights of --model_name on --dataset."""
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
        flags=cli.overrides(given),
    )
    with backend.importing_tensorflow("tensorflow"):
        from efficientnetv2 import api
    api.evaluate_weights(config, given.model_name, given.weights)


@cli.command("model_dir checkpoint hparam_str data_dir backend")
def report(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Evaluate a run and rewrite its report, RUN/report.html.

        efficientnetv2 report runs/fashion_mnist

    `efficientnetv2 study --only=report` writes the report of studies.
    """
    _take_model_dir(given, words)
    _execute(config_of_run(given), given, "report")


@cli.command(
    "model_dir checkpoint", *_EXPORT, "data_dir", rare="allow_disagreement"
)
def export(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Write a run's model for other programs, and compare it with Keras.

        efficientnetv2 export runs/fashion_mnist --formats=keras,litert,onnx

    An export that differs too much from Keras is not written; the exit status
    is then 1.
    """
    _take_model_dir(given, words)
    formats.check_formats(given.formats or formats.DEFAULT)
    _backend_for(given, "export")
    _execute(config_of_run(given), given, "export")


@cli.command(
    _RUN,
    Flag("steps", "Training steps, at most.", int, default=100, low=20),
    Flag("output", "File of the plot.", default="learning_rate.png"),
    "strategy backend",
)
def find_lr(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Find a learning rate with a few training steps at rising rates.

        efficientnetv2 find_lr --dataset=photos
        efficientnetv2 find_lr --dataset=fashion_mnist --steps=200

    Prints the rate at which the loss falls fastest, for --lr, and plots the
    loss over the rate. Keeps no weights.
    """
    cli.no_words(words)
    config = load_config(given)
    with backend.importing_tensorflow(given.backend):
        from efficientnetv2 import lr_finder
    result = lr_finder.find_learning_rate(config, given.steps)
    lr_finder.draw_range_test(result, given.output)
    text = f"The loss falls fastest at --lr={result.suggestion:.2g}"
    done = len(result.losses)
    if done < given.steps:
        text += f", and diverged after {done:,} of {given.steps:,} steps"
    print(f"{text}. Plot: {given.output}")


@cli.command(
    _TRAINING,
    _DRY_RUN,
    _SWITCHES,
    "checkpoint weights",
    *_EXPORT,
    Flag(
        "mode",
        f"One of {', '.join(MODES)}.",
        default="train_and_eval",
        choices=MODES,
    ),
)
def by_mode(given: flags.FlagValues, words: Sequence[str]) -> None:
    r"""Train, evaluate and export EfficientNet models.

        python -m efficientnetv2.main --dataset=fashion_mnist \
            --model_dir=runs/fashion_mnist

    Rerun the command to resume. `efficientnetv2 train`, `eval`, `report` and
    `export` do the same with the flags of one mode each.
    """
    cli.no_words(words)
    if given.dry_run and given.mode not in TRAINING_MODES:
        raise UserError("--dry_run is for training.")
    if given.weights and given.mode != "eval":
        raise UserError("--weights is for --mode=eval.")
    if given.formats is not None and given.mode != "export":
        raise UserError(
            "--formats is for --mode=export; training ends with a SavedModel."
        )
    command = {"eval": evaluate, "report": report, "export": export}
    command.get(given.mode, train).run(given, words)


def _backend_for(given: flags.FlagValues, mode: str) -> str | None:
    """Returns the backend of Keras for a mode; None: what there is."""
    name = cli.value_of(given, "backend")
    if mode != "export":
        return name
    if name not in (None, "tensorflow"):
        raise UserError(
            f"--backend={name}: TensorFlow exports the models of both "
            "backends. Leave --backend out."
        )
    return "tensorflow"


def _execute(
    config: ml_collections.ConfigDict, given: flags.FlagValues, mode: str
) -> None:
    """Runs a mode; see `api.execute`."""
    # TensorFlow is imported only now: mistakes above are shown at once.
    with backend.importing_tensorflow(_backend_for(given, mode)):
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
        # TensorFlow needs a new process to rejoin the others.
        print(f"{error} Restarting from the last checkpoint.", flush=True)
        os.execv(sys.executable, sys.orig_argv)
