r"""Draws the pictures of README and docs from results/ alone.

    make figures

Those of the studies are copies of the ones beside their results.

`python docs/figures.py --examples` first renews results/examples.npz, what the
network sees of a few images in each stage; only that needs the data.
"""

import dataclasses
import pathlib
import shutil
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from efficientnetv2 import config as config_lib
from efficientnetv2.reports import plots
from efficientnetv2.study import analysis

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
EXAMPLES = ROOT / "results" / "examples.npz"
STUDIES, STUDY = ROOT / "results" / "study", "regularization"
RECIPE, SHOWN, SEED = "fashion_mnist", 3, 0


def make_examples() -> None:
    """Keeps what the network sees of the same images in each stage."""
    from efficientnetv2 import backend

    with backend.importing_tensorflow("tensorflow"):
        from efficientnetv2.data import (
            loading,
            output,
            pipeline,
            preprocessing,
            registry,
            sources,
        )
    info = registry.load_info("fashion_mnist")
    config = output.with_batch_size(
        config_lib.load(info.name, recipe=RECIPE, flags={"train.seed": SEED}),
        SHOWN,
    )
    source = loading.load_from(
        info, config.train.split, registry.data_dir(None)
    )
    # Of different classes, by which they are found again in a batch.
    rows = [int(np.flatnonzero(source.labels == k)[1]) for k in (9, 3, 8)]
    source = sources.ArraySource(
        source.images[rows], source.labels[rows], source.class_names
    )
    plan = config_lib.run_plan(config)
    plan = dataclasses.replace(plan, num_images=SHOWN, steps_per_epoch=1)
    mode = config.data.normalization
    kept = {}
    for number, stage in enumerate(plan.stages, 1):
        dataset = pipeline.training_dataset(
            source, config, plan, stage.first_step
        )
        images, labels = next(iter(dataset))
        order = np.argsort(labels.numpy().argmax(axis=1), kind="stable")
        pixels = preprocessing.denormalize(images, mode).numpy()[order]
        kept[f"stage_{number}"] = pixels[..., 0]
        kept[f"magnitude_{number}"] = stage.randaugment_magnitude
    np.savez_compressed(EXAMPLES, **kept)


@matplotlib.rc_context(plots.STYLE | {"figure.facecolor": "white"})
def progressive_picture() -> Figure:
    """Draws what the network sees, and accuracy over time."""
    figure = Figure((11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_examples(left)
    _draw_accuracy(right)
    return figure


def _draw_examples(axes) -> None:
    with np.load(EXAMPLES) as file:
        kept = dict(file)
    count = sum(name.startswith("stage_") for name in kept)
    largest = kept[f"stage_{count}"].shape[1]
    cell = 1.08 * largest
    for stage in range(count):
        images = kept[f"stage_{stage + 1}"]
        size, centre = images.shape[1], (stage + 0.5) * cell
        for row, image in enumerate(images):
            middle = (row + 0.5) * cell
            axes.imshow(
                image,
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="none",
                extent=(
                    centre - size / 2,
                    centre + size / 2,
                    middle + size / 2,
                    middle - size / 2,
                ),
            )
        axes.text(
            centre,
            -0.06 * largest,
            f"stage {stage + 1}: {size} px\n"
            f"magnitude {kept[f'magnitude_{stage + 1}']:.1f}",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axes.set_xlim(0, count * cell)
    axes.set_ylim(len(images) * cell, 0)
    axes.set_axis_off()
    axes.set_title(
        "What the network sees: larger images, stronger RandAugment",
        fontsize=12,
        pad=34,
    )


def _draw_accuracy(axes) -> None:
    """Draws how accurate progressive learning and a fixed size are by time."""
    plots.draw_accuracy_by_time(axes, analysis.load_results(STUDIES / STUDY))
    axes.set_ylim(bottom=20)  # room for the legend
    axes.legend(loc="lower right")
    axes.set_title("Accuracy after equally long trainings", fontsize=12)


def main() -> None:
    """Draws everything; with --examples what the network sees is renewed."""
    if "--examples" in sys.argv[1:]:
        make_examples()
    drawn = [
        plots.save_figure(progressive_picture(), IMAGES / "progressive.svg")
    ]
    for path in sorted(STUDIES.glob("*/plots/*.svg")):
        name = f"{path.parent.parent.name}_{path.name}"
        drawn.append(shutil.copy(path, IMAGES / name))
    for path in drawn:
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
