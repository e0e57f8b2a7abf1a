r"""List models, or the stages of one, with parameters and multiply-adds.

    efficientnetv2 models
    efficientnetv2 models --model_name=efficientnetv2-s
    efficientnetv2 models --model_name=efficientnet-b4 \
        --hparam_str=model.fused_stages=3

Top-1 is that on ImageNet, as the authors publish it with their weights.
"""

from collections.abc import Sequence

from absl import flags

from efficientnetv2 import catalog, cli, declarative, formatting
from efficientnetv2 import config as config_lib
from efficientnetv2.errors import UserError
from efficientnetv2.models import counting


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "model_name",
        None,
        "Name in hparams/models/, or a YAML file; default: all.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side of the image in pixels; default: the model's own.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_classes",
        1000,
        "Width of the classifier.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "hparam_str",
        "",
        "Options of the section model: model.fused_stages=3.",
        flag_values=values,
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    cli.no_words(words)
    if given.model_name:
        _one(given)
    else:
        _all(given)


def _load(name: str, given: flags.FlagValues) -> tuple[dict, int]:
    """Returns the section `model` and the image size in pixels."""
    overrides = config_lib.parse_hparam_str(given.hparam_str)
    other = sorted(overrides.keys() - {"model"})
    if other:
        raise UserError(
            f"--hparam_str: {other[0]!r} does not change a model; here are "
            "only options of the section 'model'."
        )
    options = {"num_classes": given.num_classes, **overrides.get("model", {})}
    config = config_lib.load_model(name, options)
    return config["model"], given.image_size or config["eval"]["isize"]


def _one(given: flags.FlagValues) -> None:
    name = given.model_name
    model, size = _load(name, given)
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
    if name in declarative.names("models"):
        for entry in catalog.list_weights(name):
            top1 = f"top-1 {entry.top1:.1%}" if entry.top1 else "no top-1 given"
            print(f"published weights {entry.weights}: {top1}")


def _all(given: flags.FlagValues) -> None:
    lines = [
        (
            "model",
            "image size",
            "blocks",
            "parameters",
            "multiply-adds",
            "ImageNet top-1",
            "with more data",
        )
    ]
    for name in declarative.names("models"):
        model, size = _load(name, given)
        rows = counting.count_stages(model, size)
        sums = counting.total(rows)
        top1 = catalog.describe_model(name).top1
        further = [value for key, value in top1.items() if key != "imagenet"]
        lines.append(
            (
                name,
                str(size),
                str(sums.layers - 3),
                counting.format_count(sums.trainable),
                counting.format_count(sums.multiply_adds),
                _percent(top1.get("imagenet")),
                _percent(max(further, default=None)),
            )
        )
    print(formatting.table(lines, left=[0]))
    print(
        "\nTop-1 as published with the weights; more data: pretrained on "
        "ImageNet-21k (V2) or JFT (V1)."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
