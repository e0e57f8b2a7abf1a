r"""Draws the pictures of README and docs from results/ alone.

    make figures

`python docs/figures.py --examples` first renews results/examples.npz, what the
network sees of a few images in each stage; only that needs the data.
"""

import pathlib
import sys

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from efficientnetv2.reports import plots, study
from efficientnetv2.study import analysis

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
EXAMPLES = ROOT / "results" / "examples.npz"
# What the picture on the right compares, and how the arms are called there.
STUDIES, STUDY = ROOT / "results" / "ablation", "regularization"
ARMS = {
    "everything_on": "progressive",
    "image_size_off": "fixed size",
}
RECIPE, SHOWN, SEED = "fashion_mnist", 3, 0


def make_examples() -> None:
    """Keeps what the network sees of the same images in each stage."""
    from efficientnetv2 import config as config_lib
    from efficientnetv2 import progressive, quiet

    with quiet.importing_tensorflow("tensorflow"):
        from efficientnetv2.data import (
            loading,
            pipeline,
            preprocessing,
            preview,
            registry,
            sources,
        )
    info = registry.load_info("fashion_mnist")
    config = preview.with_batch_size(
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
    stages = progressive.build_stages(config, plan)
    plan = config_lib.RunPlan(SHOWN, 1, plan.total_steps)
    mode = config.data.normalization
    kept = {}
    for number, stage in enumerate(stages, 1):
        dataset = pipeline.training_dataset(
            source, config, plan, stages, stage.first_step
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
    [found] = [each for each in study.load(STUDIES) if each.study.name == STUDY]
    for number, (arm, name) in enumerate(ARMS.items()):
        curves = [analysis.curve(r) for r in found.of_arm(arm).values()]
        seconds, top1 = (
            np.mean([curve[k] for curve in curves], axis=0) for k in (0, 1)
        )
        colour = plots.COLOURS[number]
        for each in curves:
            axes.plot(
                np.array(each[0]) / 60,
                each[1],
                color=colour,
                alpha=0.3,
                linewidth=0.8,
            )
        axes.plot(
            seconds / 60, top1, "os"[number] + "-", color=colour, label=name
        )
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("validation top-1 (%)")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right")
    axes.set_title("Accuracy over time", fontsize=12)


def main() -> None:
    """Draws everything; with --examples what the network sees is renewed."""
    if "--examples" in sys.argv[1:]:
        make_examples()
    path = plots.save(progressive_picture(), IMAGES / "progressive.svg")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
