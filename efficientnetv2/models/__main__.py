r"""Parameters and multiply-adds of a model, stage by stage.

    python -m efficientnetv2.models                # all models
    python -m efficientnetv2.models --model_name=efficientnetv2-s
    python -m efficientnetv2.models --model_name=efficientnet-b4 \
        --hparam_str=model.fused_stages=3
"""

from absl import flags

from efficientnetv2 import cli, declarative, tables
from efficientnetv2 import config as config_lib
from efficientnetv2.errors import UserError
from efficientnetv2.models import counting

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model_name",
    None,
    "Name in hparams/models/, or a YAML file; default: a table of all.",
)
flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the image in pixels; default: the model's own.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "num_classes", 1000, "Width of the classifier.", lower_bound=1
)
flags.DEFINE_string(
    "hparam_str",
    "",
    "Overrides of the section model, such as model.fused_stages=3.",
)


def _load(name: str) -> tuple[dict, int]:
    """Returns the section `model` and the image size in pixels."""
    overrides = config_lib.parse_hparam_str(FLAGS.hparam_str)
    other = sorted(overrides.keys() - {"model"})
    if other:
        raise UserError(
            f"--hparam_str: {other[0]!r} does not change a model; here are "
            "only options of the section 'model'."
        )
    options = {"num_classes": FLAGS.num_classes, **overrides.get("model", {})}
    config = config_lib.load_model(name, options)
    return config["model"], FLAGS.image_size or config["eval"]["isize"]


def _one(name: str) -> None:
    model, size = _load(name)
    print(
        f"{model['model_name']} at {size}x{size} pixels, "
        f"{model['num_classes']:,} classes"
    )
    rows = counting.count_stages(model, size)
    print(counting.format_table(rows))
    sums = counting.total(rows)
    print(
        f"{counting.format_count(sums.trainable)} trainable parameters, "
        f"{counting.format_count(sums.multiply_adds)} multiply-adds"
    )


def _all() -> None:
    lines = [("model", "image size", "blocks", "parameters", "multiply-adds")]
    for name in declarative.names("models"):
        model, size = _load(name)
        rows = counting.count_stages(model, size)
        sums = counting.total(rows)
        lines.append(
            (
                name,
                str(size),
                str(sums.layers - 3),
                counting.format_count(sums.trainable),
                counting.format_count(sums.multiply_adds),
            )
        )
    print(tables.align(lines, left=[0]))


def _run() -> None:
    if FLAGS.model_name:
        _one(FLAGS.model_name)
    else:
        _all()


if __name__ == "__main__":
    cli.start(cli.command(_run))
