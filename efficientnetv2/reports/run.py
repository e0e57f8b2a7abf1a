"""The report of a run: one HTML file with all that a reader wants to see."""

import pathlib

import matplotlib
import ml_collections
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from efficientnetv2 import config as config_lib
from efficientnetv2 import files, progressive, reports, runs
from efficientnetv2.data import fingerprint, output, preprocessing, registry
from efficientnetv2.engines import optimizers
from efficientnetv2.formatting import format_count, format_seconds
from efficientnetv2.models import structure
from efficientnetv2.progressive import RunPlan
from efficientnetv2.reports import classes, plots
from efficientnetv2.reports.classes import Observer

NAME = "report.html"
PLOTS = "plots"
# A larger matrix cannot be read; a table of pairs takes its place.
_MOST_IN_MATRIX = 40
# Of a stage, and the side of the largest on the page in pixels.
_SEEN, _SIDE = 6, 76
_POINTS = 200


def write_report(
    config: ml_collections.ConfigDict,
    run: runs.Run,
    observer: Observer | None,
    result: dict,
) -> pathlib.Path:
    """Writes MODEL_DIR/report.html, and its plots into MODEL_DIR/plots.

    Args:
        config, run: what was trained, and where.
        observer: of the evaluation; None where only its result is known:
            nothing is then said of single classes and images.
        result: of the evaluation, see `evaluation.evaluate_checkpoint`.
    """
    plan, metrics = config_lib.run_plan(config), run.read_metrics()
    dataset = registry.title(config.data.ds_name)
    header, *rows = progressive.table(config, plan)
    curves = of_classes = None
    if metrics.get("evaluations"):
        curves = _save(run, _draw_curves(config, plan, metrics), "curves")
    if observer is not None and not config.data.multi_label:
        names = fingerprint.names_of_run(config, run.model_dir)
        of_classes = _classes(config, run, observer, names)
    page = reports.render(
        "run.html.j2",
        title=f"{config.model.model_name} on {dataset}",
        result=result,
        split=config.eval.split,
        cards=_cards(config, plan, metrics, result),
        stages=[
            _stage(plan, run, dict(zip(header, row, strict=True)), stage)
            for row, stage in zip(rows, plan.stages, strict=True)
        ],
        table=(header, rows),
        curves=curves,
        classes=of_classes,
        environment=[
            (name.replace("_", " "), str(value))
            for name, value in metrics.get("environment", {}).items()
        ],
        options=config_lib.to_yaml(config),
    )
    path = run.model_dir / NAME
    files.write_text(path, page)
    return path


def _cards(
    config, plan: RunPlan, metrics: dict, result: dict
) -> list[tuple[str, str]]:
    """Returns (number, what it is) of the key figures."""
    cards = [
        (f"{result['top1']:.2%}", f"top-1 ({result['split']})"),
        (f"{result['top5']:.2%}", "top-5"),
        (f"{result['cross_entropy']:.3f}", "cross-entropy (nats)"),
    ]
    if "pr_auc" in result:
        cards.append((f"{result['pr_auc']:.3f}", "area under precision-recall"))
    if seconds := metrics.get("train_seconds"):
        validation = metrics["evaluation_seconds"]
        steps = seconds - validation
        speed = plan.total_steps * config.train.batch_size / steps
        cards += [
            (format_seconds(steps), "training time"),
            (format_seconds(validation), "validation time"),
            (f"{speed:,.0f}", "images/s of training"),
            (f"{metrics['waiting_share']:.1%}", "of it spent waiting for data"),
        ]
    size = progressive.resolve_image_size(config)
    cost = structure.count_model(config.model.to_dict(), size)
    multiply_adds = f"multiply-adds at {size} px"
    return [
        *cards,
        (format_count(cost.parameters), "parameters"),
        (format_count(cost.multiply_adds), multiply_adds),
    ]


def _stage(plan, run, facts: dict[str, str], stage: progressive.Stage) -> dict:
    """Returns what the strip on top shows of a stage."""
    sheet = run.model_dir / output.PREVIEW / f"stage_{facts['stage']}.png"
    images = []
    if sheet.exists():
        images = output.cut(sheet, min(_SEEN, plan.num_images))
    size = min(stage.image_size, output.CELL)
    largest = max(each.image_size for each in plan.stages)
    return {
        "title": f"Stage {facts['stage']}: {stage.image_size} px",
        "facts": ", ".join(
            f"{name} {facts[name]}"
            for name in ("epochs", "RandAugment", "Mixup", "CutMix", "dropout")
            if facts[name] not in ("-", "0")
        ),
        "side": max(16, round(_SIDE * stage.image_size / largest)),
        "images": [
            reports.data_uri(
                image.resize((size, size), Image.Resampling.NEAREST)
            )
            for image in images
        ],
    }


def _save(run: runs.Run, figure: Figure, name: str) -> str:
    """Keeps a plot as PNG; returns it as SVG."""
    plots.save_figure(figure, run.model_dir / PLOTS / f"{name}.png")
    return plots.to_svg(figure)


# --- Curves -----------------------------------------------------------------


@matplotlib.rc_context(plots.STYLE)
def _draw_curves(config, plan: RunPlan, metrics: dict) -> Figure:
    """Draws accuracy and loss above, the schedules below, by epoch."""
    ordered = config.train.stage_order == "ascending"
    ratios = [3, 2, 1.2] + [1.2, 1.6] * ordered
    figure = Figure((11.0, 1.0 * sum(ratios)), layout="constrained")
    panels = figure.subplots(
        len(ratios), sharex=True, gridspec_kw={"height_ratios": ratios}
    )
    evaluations = metrics["evaluations"]
    epochs = [each["epoch"] for each in evaluations]
    shown = (("top1", 100.0), ("cross_entropy", 1.0))
    for axes, (key, scale) in zip(panels, shown, strict=False):
        values = [scale * each[key] for each in evaluations]
        axes.plot(epochs, values, "o-", color=plots.COLOURS[0], markersize=4)
    panels[0].set_title(
        f"Validation ({config.eval.val_split})", loc="left", fontsize=11, pad=16
    )
    steps = np.linspace(0, plan.total_steps - 1, _POINTS)
    rate = optimizers.learning_rate(config, plan)
    panels[2].plot(
        steps / plan.steps_per_epoch,
        [float(rate(int(step))) for step in steps],
        color=plots.COLOURS[1],
    )
    if ordered:
        _draw_stages(panels[3], plan, {"size": "image_size"}, scaled=False)
        has_magnitude = progressive.uses_magnitude(config.data.augname)
        fields = {
            "RandAugment": has_magnitude and "randaugment_magnitude",
            "Mixup": "mixup_alpha",
            "CutMix": "cutmix_alpha",
            "dropout": "dropout_rate",
        }
        _draw_stages(panels[4], plan, fields, scaled=True)
        if panels[4].patches:
            panels[4].legend(
                ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9
            )
        for number, stage in enumerate(plan.stages):
            first, last = (
                step / plan.steps_per_epoch
                for step in (stage.first_step, stage.last_step)
            )
            panels[0].annotate(
                f"{stage.image_size} px",
                (first, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=9,
            )
            for axes in panels if number % 2 else ():
                axes.axvspan(
                    first, last, color=plots.INK, alpha=0.06, linewidth=0
                )
    labels = ("top-1 (%)", "cross-entropy\n(nats)", "learning\nrate")
    labels += ("image\nsize (px)", "regularization\n(% of its end)")
    for number, (axes, label) in enumerate(zip(panels, labels, strict=False)):
        axes.set_ylabel(label)
        if number >= 2:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(0, plan.total_steps / plan.steps_per_epoch)
    figure.align_ylabels()
    return figure


def _draw_stages(axes, plan: RunPlan, fields: dict, scaled: bool) -> None:
    """Draws fields of the stages as steps; what is always 0 is left out."""
    ends = [0, *(stage.last_step for stage in plan.stages)]
    edges = [end / plan.steps_per_epoch for end in ends]
    for number, (label, field) in enumerate(fields.items()):
        if not field:
            continue
        values = [float(getattr(stage, field)) for stage in plan.stages]
        if not any(values):
            continue
        if scaled:
            values = [100 * each / max(values) for each in values]
        axes.stairs(
            values,
            edges,
            baseline=None,
            color=plots.COLOURS[number + scaled],
            # Lines upon each other stay visible.
            linewidth=4.5 - number if scaled else 2,
            label=label,
        )


# --- Classes ----------------------------------------------------------------


def _classes(
    config, run: runs.Run, observer: Observer, names: list[str]
) -> dict:
    """Returns what the page says of single classes and images."""
    labels, predicted = observer.labels, observer.predicted
    matrix = classes.confusion_matrix(labels, predicted, len(names))
    bins, error = classes.calibration_bins(
        labels == predicted, observer.probability
    )
    drawn = None
    if len(names) <= _MOST_IN_MATRIX:
        drawn = _save(
            run, classes.draw_matrix(matrix, names), "confusion_matrix"
        )
    return {
        "matrix": drawn,
        "pairs": classes.confused_pairs(matrix, names),
        "rows": classes.class_rows(labels, predicted, names),
        "left_out": max(0, len(names) - classes.MOST_ROWS),
        "calibration": _save(
            run, classes.draw_calibration(bins), "calibration"
        ),
        "calibration_error": error,
        "bins": classes.BINS,
        "mistakes": _mistakes(config, run, observer, names),
    }


def _mistakes(
    config, run: runs.Run, observer: Observer, names: list[str]
) -> list[tuple[str, list[str]]]:
    """Returns (picture, caption lines); keeps them as one PNG file, too."""
    images, captions = [], []
    for probability, image, label, predicted in observer.mistakes:
        mode = config.data.normalization
        images.append(preprocessing.denormalize(image, mode).numpy())
        known = predicted < len(names)
        name = names[predicted] if known else f"output {predicted}"
        captions.append([names[label], f"{probability:.2f} {name}"])
    if images:
        title = "The most confident mistakes"
        below = "label, then the prediction with its probability"
        sheet = output.draw(np.stack(images), captions, title, below)
        sheet.save(run.model_dir / PLOTS / "mistakes.png")
    pictures = [reports.data_uri(Image.fromarray(each)) for each in images]
    return list(zip(pictures, captions, strict=True))
