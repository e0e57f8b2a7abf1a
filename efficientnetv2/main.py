r"""Train, evaluate and export EfficientNet models.

    python -m efficientnetv2.main --dataset=fashion_mnist \
        --model_dir=runs/fashion_mnist

Rerun the command to resume an interrupted run.
"""

import os
import sys

from absl import flags

from efficientnetv2 import backend, cli
from efficientnetv2 import config as config_lib
from efficientnetv2.errors import UserError
from efficientnetv2.serving import formats

MODES = (
    "train_and_eval",
    "train_and_test",
    "train",
    "eval",
    "report",
    "export",
)
_DEFAULT_FORMATS = ("saved_model",)
# Flag to the option that it sets.
_SWITCHES = {
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
_REGULARIZATION = [
    key for name, (key, _) in _SWITCHES.items() if name.startswith("adaptive")
]

FLAGS = flags.FLAGS
cli.define_run_flags()
flags.DEFINE_string(
    "model_dir", None, "Folder of the run: checkpoints, curves, SavedModel."
)
flags.DEFINE_enum("mode", "train_and_eval", MODES, "What to do.")
flags.DEFINE_enum(
    "strategy",
    None,
    ["auto", "cpu", "gpu", "mirrored", "multi_worker"],
    "Devices and machines (runtime.strategy); default: what there is.",
)
flags.DEFINE_enum(
    "backend",
    None,
    backend.NAMES,
    "What trains and evaluates; default: KERAS_BACKEND, else jax where there "
    "is a TPU, else tensorflow.",
)
flags.DEFINE_integer("seed", None, "Seed of everything random (train.seed).")
flags.DEFINE_string(
    "checkpoint",
    None,
    "For eval, report and export: best, last, a step or a file; default: best.",
)
flags.DEFINE_list(
    "formats",
    None,
    f"For export: {', '.join(formats.FORMATS)}; default: saved_model.",
)
flags.DEFINE_boolean(
    "allow_disagreement",
    False,
    "For export: write also what differs too much from Keras.",
)
for _name, (_key, _help) in _SWITCHES.items():
    flags.DEFINE_boolean(_name, None, _help)
flags.DEFINE_boolean(
    "adaptive_regularization",
    None,
    "All four adaptive_ switches at once; each can still be given.",
)


def _flag_overrides() -> dict:
    """Returns the options that flags set, 'section.option' to value."""
    overrides = {}
    if FLAGS.adaptive_regularization is not None:
        overrides.update(
            dict.fromkeys(_REGULARIZATION, FLAGS.adaptive_regularization)
        )
    values = {key: FLAGS[name].value for name, (key, _) in _SWITCHES.items()}
    values |= {
        "train.seed": FLAGS.seed,
        "data.data_dir": FLAGS.data_dir,
        "runtime.strategy": FLAGS.strategy,
    }
    overrides.update((k, v) for k, v in values.items() if v is not None)
    return overrides


def _load_config():
    saved = None
    if not FLAGS.mode.startswith("train"):
        # A run knows its own configuration.
        saved = config_lib.read_saved(FLAGS.model_dir)
        of_run = saved.get("data", {}).get("ds_name")
        if FLAGS.dataset not in (None, of_run) and FLAGS.mode != "eval":
            raise UserError(
                f"--dataset={FLAGS.dataset}: {FLAGS.model_dir} is a run on "
                f"{of_run}, and only --mode=eval takes other images."
            )
    return config_lib.load(
        dataset=FLAGS.dataset,
        model_name=FLAGS.model_name,
        recipe=FLAGS.recipe,
        hparam_str=FLAGS.hparam_str,
        saved=saved,
        flags=_flag_overrides(),
    )


def _run() -> None:
    if not FLAGS.model_dir:
        raise UserError("--model_dir is missing, such as runs/fashion_mnist.")
    if FLAGS.mode == "export":
        formats.check(FLAGS.formats or _DEFAULT_FORMATS)
    elif FLAGS.formats is not None:
        raise UserError(
            "--formats is for --mode=export; training ends with a SavedModel."
        )
    keras_backend = FLAGS.backend
    if FLAGS.mode == "export":
        if keras_backend not in (None, "tensorflow"):
            raise UserError(
                f"--backend={keras_backend}: TensorFlow exports the models of "
                "both backends. Leave --backend out."
            )
        keras_backend = "tensorflow"
    config = _load_config()
    # TensorFlow is imported only now: mistakes above are shown at once.
    with cli.importing_tensorflow(keras_backend):
        from efficientnetv2 import api

    try:
        api.execute(
            config,
            FLAGS.model_dir,
            FLAGS.mode,
            FLAGS.checkpoint,
            formats=FLAGS.formats or _DEFAULT_FORMATS,
            allow_disagreement=FLAGS.allow_disagreement,
        )
    except api.WorkerLost as error:
        # TensorFlow wants a new process to meet the others in.
        print(f"{error} Starting again from the last checkpoint.", flush=True)
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    cli.start(cli.command(_run))
