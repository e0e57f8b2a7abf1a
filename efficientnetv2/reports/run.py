"""The report of a run: one HTML file with all that a reader wants to see."""

import pathlib

import matplotlib
import numpy as np
import scipy.special
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sklearn_metrics

from efficientnetv2 import config as config_lib
from efficientnetv2 import files, progressive, runs
from efficientnetv2.data import fingerprint, preprocessing, preview, registry
from efficientnetv2.engines import schedules
from efficientnetv2.formatting import format_seconds
from efficientnetv2.models import counting
from efficientnetv2.reports import document, plots

NAME = "report.html"
PLOTS = "plots"
_MISTAKES = 24
_BINS = 15
# A larger matrix cannot be read; a table of pairs takes its place.
_MOST_IN_MATRIX = 40
_MOST_ROWS = 100
_PAIRS = 10
# Images of a bin that says little.
_FEW = 20
# Of a stage, and the side of the largest on the page in pixels.
_SEEN, _SIDE = 6, 76
_POINTS = 200
_BLUES = LinearSegmentedColormap.from_list(
    "blues", [(0.0, 0.45, 0.7, 0.0), (0.0, 0.45, 0.7, 1.0)]
)


class Observer:
    """Keeps what a report needs of an evaluation while it goes on.

    Attributes:
        labels, predicted: int64 [images].
        probability: float64 [images], that of the predicted class.
        mistakes: the most confident ones, first the worst: (probability,
            image, label, predicted).
    """

    def __init__(self):
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.mistakes: list[tuple[float, np.ndarray, int, int]] = []

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, logits: np.ndarray
    ) -> None:
        """Takes a batch.

        Args:
            images: float32 [batch, size, size, 3], normalized.
            labels: float32 [batch, classes] of zeros and ones.
            logits: float32 [batch, classes].
        """
        probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
        labels = labels.argmax(axis=1)
        predicted = probabilities.argmax(axis=1)
        probability = probabilities.max(axis=1)
        self._batches.append((labels, predicted, probability))
        wrong = np.flatnonzero(labels != predicted)
        worst = wrong[np.argsort(-probability[wrong])][:_MISTAKES]
        self.mistakes += [
            (
                float(probability[k]),
                images[k],
                int(labels[k]),
                int(predicted[k]),
            )
            for k in worst
        ]
        self.mistakes.sort(key=lambda mistake: -mistake[0])
        del self.mistakes[_MISTAKES:]

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([batch[0] for batch in self._batches])

    @property
    def predicted(self) -> np.ndarray:
        return np.concatenate([batch[1] for batch in self._batches])

    @property
    def probability(self) -> np.ndarray:
        return np.concatenate([batch[2] for batch in self._batches])


def write(
    run: runs.Run, observer: Observer | None, result: dict
) -> pathlib.Path:
    """Writes MODEL_DIR/report.html, and its plots into MODEL_DIR/plots.

    Args:
        run: that was trained.
        observer: of the evaluation; None where only its result is known:
            nothing is then said of single classes and images.
        result: of the evaluation, see `evaluation.evaluate_checkpoint`.

    Returns:
        The file.
    """
    config, metrics = run.config, run.read_metrics()
    dataset = registry.title(config.data.ds_name)
    header, *rows = progressive.table(config, run.plan, run.stages)
    values = {
        "title": f"{config.model.model_name} on {dataset}",
        "result": result,
        "split": config.eval.split,
        "cards": _cards(run, metrics, result),
        "stages": [
            _stage(run, header, row, stage)
            for row, stage in zip(rows, run.stages, strict=True)
        ],
        "table": (header, rows),
        "curves": None,
        "classes": None,
        "environment": [
            (name.replace("_", " "), str(value))
            for name, value in metrics.get("environment", {}).items()
        ],
        "options": config_lib.to_yaml(config),
    }
    if metrics.get("evaluations"):
        values["curves"] = _save(run, _draw_curves(run, metrics), "curves")
    if observer is not None and not config.data.multi_label:
        names = fingerprint.names_of_run(config, run.model_dir)
        values["classes"] = _classes(run, observer, names)
    path = run.model_dir / NAME
    files.write_text(path, document.render("run.html.j2", **values))
    return path


def _cards(run: runs.Run, metrics: dict, result: dict) -> list[tuple[str, str]]:
    """Returns (number, what it is) of the key figures."""
    cards = [
        (f"{result['top1']:.2%}", f"top-1 ({result['split']})"),
        (f"{result['top5']:.2%}", "top-5"),
        (f"{result['cross_entropy']:.3f}", "cross-entropy (nats)"),
    ]
    if "pr_auc" in result:
        cards.append((f"{result['pr_auc']:.3f}", "area under precision-recall"))
    seconds = metrics.get("train_seconds")
    if seconds:
        steps = seconds - metrics["evaluation_seconds"]
        shown = run.plan.total_steps * run.config.train.batch_size
        cards += [
            (format_seconds(steps), "training time"),
            (
                format_seconds(metrics["evaluation_seconds"]),
                "validation time",
            ),
            (f"{shown / steps:,.0f}", "images/s of training"),
            (f"{metrics['waiting_share']:.1%}", "of it spent waiting for data"),
        ]
    size = config_lib.resolve_image_size(run.config)
    counts = counting.total(
        counting.count_stages(run.config.model.to_dict(), size)
    )
    cards += [
        (counting.format_count(counts.parameters), "parameters"),
        (
            counting.format_count(counts.multiply_adds),
            f"multiply-adds at {size} px",
        ),
    ]
    return cards


def _stage(run: runs.Run, header, row, stage: progressive.Stage) -> dict:
    """Returns what the strip on top shows of a stage."""
    facts = dict(zip(header, row, strict=True))
    number = int(facts["stage"])
    sheet = run.model_dir / preview.FOLDER / f"stage_{number}.png"
    largest = max(each.image_size for each in run.stages)
    images = []
    if sheet.exists():
        images = preview.cut(sheet, min(_SEEN, run.plan.num_images))
    size = min(stage.image_size, preview.CELL)
    return {
        "title": f"Stage {number}: {stage.image_size} px",
        "facts": ", ".join(
            f"{name} {facts[name]}"
            for name in ("epochs", "RandAugment", "Mixup", "CutMix", "dropout")
            if facts[name] not in ("-", "0")
        ),
        "side": max(16, round(_SIDE * stage.image_size / largest)),
        "images": [
            document.data_uri(
                image.resize((size, size), Image.Resampling.NEAREST)
            )
            for image in images
        ],
    }


def _save(run: runs.Run, figure: Figure, name: str) -> str:
    """Keeps a plot as PNG; returns it as SVG."""
    plots.save(figure, run.model_dir / PLOTS / f"{name}.png")
    return plots.to_svg(figure)


# --- Curves -----------------------------------------------------------------


@matplotlib.rc_context(plots.STYLE)
def _draw_curves(run: runs.Run, metrics: dict) -> Figure:
    """Draws accuracy and loss above, the schedules below, by epoch."""
    config, stages = run.config, run.stages
    ordered = config.train.stage_order == "ascending"
    ratios = [3, 2, 1.2] + [1.2, 1.6] * ordered
    figure = Figure((11.0, 1.0 * sum(ratios)), layout="constrained")
    panels = figure.subplots(
        len(ratios), sharex=True, gridspec_kw={"height_ratios": ratios}
    )
    evaluations = metrics["evaluations"]
    epochs = [each["epoch"] for each in evaluations]
    for axes, key, label, scale in (
        (panels[0], "top1", "top-1 (%)", 100.0),
        (panels[1], "cross_entropy", "cross-entropy\n(nats)", 1.0),
    ):
        values = [scale * each[key] for each in evaluations]
        axes.plot(epochs, values, "o-", color=plots.COLOURS[0], markersize=4)
        axes.set_ylabel(label)
    panels[0].set_title(
        f"Validation ({config.eval.val_split})", loc="left", fontsize=11, pad=16
    )
    steps = np.linspace(0, run.plan.total_steps - 1, _POINTS)
    rate = schedules.learning_rate(config, run.plan)
    panels[2].plot(
        steps / run.plan.steps_per_epoch,
        [float(rate(int(step))) for step in steps],
        color=plots.COLOURS[1],
    )
    panels[2].set_ylabel("learning\nrate")
    if ordered:
        _draw_stages(panels[3], run, {"size": "image_size"}, scaled=False)
        panels[3].set_ylabel("image\nsize (px)")
        _draw_stages(
            panels[4],
            run,
            {
                "RandAugment": "randaugment_magnitude",
                "Mixup": "mixup_alpha",
                "CutMix": "cutmix_alpha",
                "dropout": "dropout_rate",
            },
            scaled=True,
        )
        panels[4].set_ylabel("regularization\n(% of its end)")
        if panels[4].patches:
            panels[4].legend(
                ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9
            )
        for axes in panels:
            _shade_stages(axes, run)
        for stage in stages:
            panels[0].annotate(
                f"{stage.image_size} px",
                (stage.first_step / run.plan.steps_per_epoch, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=9,
            )
    for axes in panels:
        axes.set_ylim(
            bottom=min(0, axes.get_ylim()[0]) if axes in panels[2:] else None
        )
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(0, run.plan.total_steps / run.plan.steps_per_epoch)
    figure.align_ylabels()
    return figure


def _shade_stages(axes, run: runs.Run) -> None:
    for stage in run.stages[1::2]:
        axes.axvspan(
            stage.first_step / run.plan.steps_per_epoch,
            stage.last_step / run.plan.steps_per_epoch,
            color=plots.INK,
            alpha=0.06,
            linewidth=0,
        )


def _draw_stages(axes, run: runs.Run, fields: dict, scaled: bool) -> None:
    """Draws fields of the stages as steps; what is always 0 is left out."""
    ends = [0, *(stage.last_step for stage in run.stages)]
    edges = [end / run.plan.steps_per_epoch for end in ends]
    for number, (label, field) in enumerate(fields.items()):
        values = [float(getattr(stage, field)) for stage in run.stages]
        if field == "randaugment_magnitude" and not (
            progressive.uses_magnitude(run.config.data.augname)
        ):
            continue
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


def _classes(run: runs.Run, observer: Observer, names: list[str]) -> dict:
    """Returns what the page says of single classes and images."""
    labels, predicted = observer.labels, observer.predicted
    matrix = confusion_matrix(labels, predicted, len(names))
    bins, error = calibration(labels == predicted, observer.probability)
    drawn = None
    if len(names) <= _MOST_IN_MATRIX:
        drawn = _save(run, _draw_matrix(matrix, names), "confusion_matrix")
    return {
        "matrix": drawn,
        "pairs": confused_pairs(matrix, names),
        "rows": class_rows(labels, predicted, names),
        "left_out": max(0, len(names) - _MOST_ROWS),
        "calibration": _save(run, _draw_calibration(bins), "calibration"),
        "calibration_error": error,
        "bins": _BINS,
        "mistakes": _mistakes(run, observer, names),
    }


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Returns counts: int64 [classes, classes], label by prediction.

    The network may have more outputs than there are classes; such predictions
    are left out.
    """
    return sklearn_metrics.confusion_matrix(
        labels, predicted, labels=np.arange(classes)
    )


def calibration(
    right: np.ndarray, probability: np.ndarray
) -> tuple[list[tuple[float, float, int]], float]:
    """Returns the bins of a reliability diagram and their mean gap.

    Args:
        right: bool [images].
        probability: of the predicted class, [images] in [0, 1].

    Returns:
        (bins, error): (mean probability, share that is right, images) of each
        bin that is not empty; the expected calibration error in [0, 1].
        Source: Guo et al., arXiv 1706.04599.
    """
    index = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    bins, error = [], 0.0
    for number in range(_BINS):
        inside = index == number
        count = int(inside.sum())
        if count:
            mean, share = probability[inside].mean(), right[inside].mean()
            bins.append((float(mean), float(share), count))
            error += abs(mean - share) * count / len(right)
    return bins, float(error)


@matplotlib.rc_context(plots.STYLE | {"axes.grid": False})
def _draw_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    side = 0.36 if len(names) > 15 else 0.5
    size = 1.7 + side * len(names)
    figure = Figure((size, size), layout="constrained")
    plot = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The root brings out the few mistakes beside the many right answers.
    plot.pcolormesh(np.sqrt(shares), cmap=_BLUES, vmin=0.0, vmax=1.0)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        plot.text(
            column + 0.5,
            row + 0.5,
            f"{matrix[row, column]}",
            ha="center",
            va="center",
            fontsize=9 if len(names) <= 15 else 6,
            color="#fffffd" if shares[row, column] > 0.3 else plots.INK,
        )
    places = np.arange(len(names)) + 0.5
    plot.set_xticks(
        places, names, rotation=60, ha="right", rotation_mode="anchor"
    )
    plot.set_yticks(places, names)
    plot.tick_params(length=0)
    plot.invert_yaxis()
    plot.set_aspect("equal")
    plot.spines[:].set_visible(False)
    plot.set_xlabel("predicted")
    plot.set_ylabel("label")
    return figure


@matplotlib.rc_context(plots.STYLE)
def _draw_calibration(bins: list[tuple[float, float, int]]) -> Figure:
    figure = Figure((5.2, 4.8), layout="constrained")
    plot, counted = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    means, shares, counts = zip(*bins, strict=True)
    plot.plot(
        [0, 1], [0, 1], color=plots.INK, alpha=0.5, linestyle=":", label="ideal"
    )
    # Of a few images the share says little.
    plot.plot(means, shares, "o", color=plots.COLOURS[0], alpha=0.3)
    sure = np.array([bin for bin in bins if bin[2] >= _FEW]).reshape(-1, 3)
    plot.plot(*sure[:, :2].T, "o-", color=plots.COLOURS[0], label="this model")
    plot.set_ylabel("share that is right")
    plot.set_xlim(0, 1)
    plot.set_ylim(0, 1)
    plot.legend(loc="upper left")
    counted.bar(means, counts, 0.045, color=plots.COLOURS[0], alpha=0.6)
    counted.set_yscale("log")
    counted.set_ylabel("images")
    counted.set_xlabel("probability of the predicted class")
    figure.align_ylabels()
    return figure


def confused_pairs(
    matrix: np.ndarray, names: list[str]
) -> list[tuple[str, str, str]]:
    """Returns the most frequent mistakes: label, prediction, images."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
    pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
    return [
        (names[label], names[predicted], f"{errors[label, predicted]:,}")
        for label, predicted in pairs
        if errors[label, predicted]
    ]


def class_rows(
    labels: np.ndarray, predicted: np.ndarray, names: list[str]
) -> list[tuple[str, ...]]:
    """Returns images, recall, precision and F1 of classes, the weakest first.

    Args:
        labels, predicted: int64 [images].
        names: one per class.
    """
    precision, recall, f1, images = (
        sklearn_metrics.precision_recall_fscore_support(
            labels,
            predicted,
            labels=np.arange(len(names)),
            zero_division=0.0,
        )
    )
    return [
        (
            names[k],
            f"{images[k]:,}",
            f"{recall[k]:.1%}",
            f"{precision[k]:.1%}",
            f"{f1[k]:.1%}",
        )
        for k in np.argsort(f1, kind="stable")[:_MOST_ROWS]
    ]


def _mistakes(
    run: runs.Run, observer: Observer, names: list[str]
) -> list[tuple[str, list[str]]]:
    """Returns (picture, caption lines); keeps them as one PNG file, too."""
    if not observer.mistakes:
        return []
    mode, _ = preprocessing.parse_augname(run.config.data.augname)
    images, captions = [], []
    for probability, image, label, predicted in observer.mistakes:
        images.append(preprocessing.denormalize(image, mode).numpy())
        known = predicted < len(names)
        name = names[predicted] if known else f"output {predicted}"
        captions.append([names[label], f"{probability:.2f} {name}"])
    path = run.model_dir / PLOTS / "mistakes.png"
    preview.draw(
        np.stack(images),
        captions,
        "The most confident mistakes",
        "label, then the prediction with its probability",
    ).save(path)
    return [
        (document.data_uri(Image.fromarray(image)), lines)
        for image, lines in zip(images, captions, strict=True)
    ]
