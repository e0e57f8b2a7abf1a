"""What a run prints before its first step and after its last."""

import math
import os
import pathlib
from collections.abc import Callable, Sequence

import keras
import ml_collections
import numpy as np
from PIL import Image

from efficientnetv2 import formatting, progressive
from efficientnetv2.data import registry
from efficientnetv2.data.sources import ArraySource, EncodedSource, Source
from efficientnetv2.models import structure
from efficientnetv2.progressive import RunPlan

_MOST_CLASSES = 20
# Multiply-adds of a forward pass that a CPU core trains per second: those of
# efficientnetv2-b0 at 224 pixels at 17 images/s on two cores.
_PER_CORE = 0.5 * 17 * 718e6
# A run that takes longer is announced.
_SLOW = 3600.0


def announce(
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    engine,
    log: Callable[[str], None],
) -> None:
    """Logs the device, the model, the stage table, and a warning if slow."""
    network, trained = engine.network, engine.trained
    sizes = sorted({stage.image_size for stage in plan.stages})
    costs = (
        structure.count_model(config.model.to_dict(), size) for size in sizes
    )
    cost = ", ".join(
        f"{formatting.format_count(each.multiply_adds)} at {size} px"
        for size, each in zip(sizes, costs, strict=True)
    )
    log(engine.device)
    log(
        f"{network.name}: {network.count_params():,} parameters, "
        f"{sum(math.prod(variable.shape) for variable in trained):,} trained, "
        f"{config.model.num_classes} classes; multiply-adds per image: "
        f"{cost}"
    )
    log(progressive.describe(config, plan))
    warning = slow_warning(config, plan, expected_seconds(config, plan))
    if warning:
        log(warning)


def describe_data(config: ml_collections.ConfigDict, plan: RunPlan) -> str:
    """Returns how many classes, images and steps a run has."""
    info = registry.load_info(config.data.ds_name)
    parts = [
        f"{registry.num_images(info, split, config):,} images to {use} "
        f"({split})"
        for use, split in (
            ("train", config.train.split),
            ("validate", config.eval.val_split),
            ("test", config.eval.split),
        )
        if split
    ]
    return (
        f"{config.data.ds_name}: {info.num_classes:,} classes, "
        f"{', '.join(parts)}; {plan.steps_per_epoch:,} steps per epoch, "
        f"{plan.total_steps:,} in all"
    )


def expected_seconds(
    config: ml_collections.ConfigDict, plan: RunPlan, cores: int | None = None
) -> float:
    """Returns about how long a CPU trains a run, before anything is measured.

    Args:
        config, plan: of the run.
        cores: of the CPU; None: those of this machine.
    """
    cores = cores or len(os.sched_getaffinity(0))
    total = 0.0
    for stage in plan.stages:
        cost = structure.count_model(config.model.to_dict(), stage.image_size)
        images = (stage.last_step - stage.first_step) * stage.batch_size
        total += images * cost.multiply_adds
    return total / (_PER_CORE * cores)


def measured_seconds(
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    training: Sequence[float],
    evaluation: float,
    start_seconds: float,
) -> float:
    """Returns the seconds of a whole run, from start to report.

    Args:
        training: images/s in each stage, with its pipeline.
        evaluation: images/s.
        start_seconds: until the first step is done.
    """
    seconds = start_seconds
    for stage, rate in zip(plan.stages, training, strict=True):
        steps = stage.last_step - stage.first_step
        seconds += steps * stage.batch_size / rate
    info = registry.load_info(config.data.ds_name)
    images = registry.num_images(info, config.eval.split, config)
    if config.eval.val_split:
        times = sum(plan.evaluates(step) for step in range(1, plan.total_steps))
        validation = registry.num_images(info, config.eval.val_split, config)
        images += (times + 1) * validation
    return seconds + images / evaluation


def slow_warning(
    config: ml_collections.ConfigDict, plan: RunPlan, seconds: float
) -> str | None:
    """Returns a warning about a run that takes long on a CPU, else None.

    Args:
        config, plan: of the run.
        seconds: its expected duration.
    """
    if seconds < _SLOW or not lacks_accelerator():
        return None
    model = config.model.model_name
    ways = ["a smaller --image_size", "fewer --epochs"]
    if model != "efficientnetv2-pico":
        ways.insert(0, "--model_name=efficientnetv2-pico")
    if not config.train.ft_init_ckpt:
        ways.append("weights to start from (train.ft_init_ckpt)")
    largest = max(stage.image_size for stage in plan.stages)
    return (
        f"Warning: about {seconds / 3600:.1f} hours on this CPU, for {model} "
        f"with images of up to {largest} pixels. Faster: {', '.join(ways)}, or "
        "a GPU. --dry_run measures the time."
    )


def lacks_accelerator() -> bool:
    """Whether the backend sees no accelerator."""
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


# --- The end ---------------------------------------------------------------


def class_table(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> str:
    """Returns the accuracy of each class as lines, the weakest first.

    Args:
        labels: int64 [images].
        predicted: int64 [images].
        names: one per class; only the weakest of more than twenty are shown.
    """
    rows = []
    for label, name in enumerate(names):
        own = labels == label
        if own.any():
            right = int((predicted[own] == label).sum())
            rows.append((right / own.sum(), name, right, int(own.sum())))
    rows.sort(key=lambda row: row[0])
    lines = [("class", "top-1", "correct", "images")]
    for share, name, right, images in rows[:_MOST_CLASSES]:
        lines.append((name, f"{share:.1%}", f"{right:,}", f"{images:,}"))
    text = formatting.align_table(lines, left=[0])
    left = len(rows) - _MOST_CLASSES
    return text + (
        f"\nand {left:,} classes with a higher top-1" if left > 0 else ""
    )


def example_image(
    model_dir: pathlib.Path, source: Source
) -> pathlib.Path | str:
    """Returns the path of an image of a split.

    An image that has no file of its own is written to MODEL_DIR/example.png;
    where single images cannot be read, the word IMAGE stands for one.
    """
    if isinstance(source, EncodedSource) and source.in_files:
        return source.items[0]
    if not isinstance(source, ArraySource):
        return "IMAGE"
    path = model_dir / "example.png"
    Image.fromarray(np.asarray(source.images[0]).squeeze()).save(path)
    return path


def next_commands(model_dir: pathlib.Path, source: Source) -> str:
    """Returns what to type next: the report, a prediction, the curves."""
    quoted, program = formatting.quote, formatting.program
    image = example_image(model_dir, source)
    commands = [
        (program("python"), "-m webbrowser", quoted(model_dir / "report.html")),
        (
            f"{program()} predict",
            f"--model={quoted(model_dir)}",
            quoted(formatting.relative_path(image)),
        ),
        (program("tensorboard"), f"--logdir={quoted(model_dir)}"),
    ]
    return "\n".join(
        ["Next:", *(formatting.wrap_command(*words) for words in commands)]
    )
