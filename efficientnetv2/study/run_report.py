"""The report of a run: one HTML file with all that a reader wants to see."""

import pathlib

import matplotlib
import numpy as np
import scipy.special
from matplotlib.figure import Figure

from efficientnetv2 import config as config_lib
from efficientnetv2 import files, progressive, runs
from efficientnetv2.data import fingerprint, preprocessing, preview, registry
from efficientnetv2.study import plots
from efficientnetv2.study.document import (
    Block,
    Code,
    Figures,
    Heading,
    Paragraph,
    Table,
    to_html,
)

NAME = "report.html"
PLOTS = "plots"
_MISTAKES = 24
_BINS = 15
# A larger matrix cannot be read; a table of pairs takes its place.
_MOST_IN_MATRIX = 40
_MOST_ROWS = 100
_PAIRS = 25


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
    names = fingerprint.names_of_run(config, run.model_dir)
    dataset = registry.title(config.data.ds_name)
    title = f"{config.model.model_name} on {dataset}"
    header, *stages = progressive.table(run.config, run.plan, run.stages)
    blocks = [
        Heading(1, title),
        _key_figures(run, metrics, result),
        Heading(2, "Stages"),
        Table(header, stages),
    ]
    if metrics.get("evaluations"):
        blocks += [Heading(2, "Curves"), Figures(_curves(run, metrics))]
    if observer is not None and not config.data.multi_label:
        blocks += _of_classes(run, observer, names)
        blocks += _mistakes(run, observer, names)
    sheets = sorted((run.model_dir / preview.FOLDER).glob("stage_*.png"))
    if sheets:
        blocks.append(Heading(2, "What the network saw"))
        blocks += [Figures([(path, "")]) for path in sheets]
    blocks += [
        Heading(2, "How it was made"),
        Table(("", ""), _environment(metrics), text_columns=2),
        Code(config_lib.to_yaml(config), "All options"),
    ]
    path = run.model_dir / NAME
    files.write_text(path, to_html(blocks, title))
    return path


def _key_figures(run: runs.Run, metrics: dict, result: dict) -> Table:
    rows = [
        (f"top-1, {result['split']}", f"{result['top1']:.2%}"),
        ("top-5", f"{result['top5']:.2%}"),
        ("images", f"{result['images']:,}"),
        ("cross-entropy (nats)", f"{result['cross_entropy']:.3f}"),
    ]
    if "pr_auc" in result:
        rows.append(
            ("area under precision by recall", f"{result['pr_auc']:.3f}")
        )
    seconds = metrics.get("train_seconds")
    if seconds:
        shown = run.plan.total_steps * run.config.train.batch_size
        steps = seconds - metrics["evaluation_seconds"]
        rows += [
            ("training (minutes)", f"{seconds / 60:.1f}"),
            (
                "of these on evaluation (minutes)",
                f"{(seconds - steps) / 60:.1f}",
            ),
            ("images/s, without evaluation", f"{shown / steps:,.0f}"),
            ("waiting for data", f"{metrics['waiting_share']:.1%}"),
        ]
    return Table(("", result["checkpoint"]), rows)


@matplotlib.rc_context(plots.STYLE)
def _axes(width: float, height: float):
    """Returns a figure and its axes; sizes in inches."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def _save(run: runs.Run, figure: Figure, name: str) -> pathlib.Path:
    return plots.save(figure, run.model_dir / PLOTS / f"{name}.png")


def _curves(run: runs.Run, metrics: dict) -> list[tuple[pathlib.Path, str]]:
    evaluations = metrics["evaluations"]
    epochs = [each["epoch"] for each in evaluations]
    drawn = []
    for key, label, scale in (
        ("top1", "top-1 (%)", 100.0),
        ("cross_entropy", "cross-entropy (nats)", 1.0),
    ):
        figure, axes = _axes(5.6, 3.9)
        values = [scale * each[key] for each in evaluations]
        axes.plot(epochs, values, "o-", color=plots.COLOURS[0], markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{run.config.eval.val_split} {label}")
        axes.set_xlim(left=0)
        if run.config.train.stage_order == "ascending":
            _mark_stages(run, axes)
        drawn.append((_save(run, figure, key), f"{label} while training"))
    return drawn


def _mark_stages(run: runs.Run, axes) -> None:
    for stage in run.stages:
        start = stage.first_step / run.plan.steps_per_epoch
        if stage.first_step:
            axes.axvline(start, color="#999999", linestyle=":")
        axes.annotate(
            f"{stage.image_size} px",
            (start, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 2),
            textcoords="offset points",
            color="#555555",
            fontsize=9,
        )


def _of_classes(
    run: runs.Run, observer: Observer, names: list[str]
) -> list[Block]:
    labels, predicted = observer.labels, observer.predicted
    matrix = confusion_matrix(labels, predicted, len(names))
    blocks = [Heading(2, "Classes")]
    if len(names) <= _MOST_IN_MATRIX:
        path = _save(run, _draw_matrix(matrix, names), "confusion_matrix")
        blocks.append(Figures([(path, "Images by label and prediction")]))
    header, *rows = confused_pairs(matrix, names)
    blocks.append(Table(header, rows, text_columns=2))
    header, *rows = class_rows(matrix, names)
    blocks.append(Table(header, rows))
    bins, error = calibration(labels == predicted, observer.probability)
    path = _save(run, _draw_calibration(bins), "calibration")
    return blocks + [
        Heading(2, "Calibration"),
        Paragraph(
            f"Expected calibration error: {error:.2%}, over {_BINS} bins of "
            "equal width of the probability of the predicted class."
        ),
        Figures([(path, "Share that is right by probability; bars: images")]),
    ]


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Returns counts: int64 [classes, classes], label by prediction."""
    matrix = np.zeros((classes, classes), np.int64)
    # The network may have more outputs than there are classes.
    known = predicted < classes
    np.add.at(matrix, (labels[known], predicted[known]), 1)
    return matrix


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


def _draw_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    size = 2.5 + 0.5 * len(names)
    figure, plot = _axes(size, size)
    plot.grid(False)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The root brings out the few mistakes beside the many right answers.
    plot.imshow(np.sqrt(shares), cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        plot.text(
            column,
            row,
            f"{matrix[row, column]}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[row, column] > 0.3 else "black",
        )
    plot.set_xticks(range(len(names)), names, rotation=90)
    plot.set_yticks(range(len(names)), names)
    plot.set_xlabel("predicted")
    plot.set_ylabel("label")
    return figure


def _draw_calibration(bins: list[tuple[float, float, int]]) -> Figure:
    figure, plot = _axes(5.6, 3.9)
    means, shares, counts = zip(*bins, strict=True)
    plot.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="perfect")
    plot.plot(
        means, shares, "o-", color=plots.COLOURS[0], label="mean of a bin"
    )
    second = plot.twinx()
    second.bar(means, counts, 0.02, color=plots.COLOURS[5], alpha=0.5)
    second.set_ylabel("images (bars)")
    second.set_yscale("log")
    plot.set_xlabel("probability of the predicted class")
    plot.set_ylabel("share that is right")
    plot.set_xlim(0, 1)
    plot.set_ylim(0, 1)
    plot.legend(loc="upper left")
    return figure


def confused_pairs(
    matrix: np.ndarray, names: list[str]
) -> list[tuple[str, str, str]]:
    """Returns the most frequent mistakes, below a head."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
    rows = [("label", "taken for", "images")]
    for label, predicted in zip(
        *np.unravel_index(order, errors.shape), strict=True
    ):
        count = errors[label, predicted]
        if count:
            rows.append((names[label], names[predicted], f"{count:,}"))
    return rows


def class_rows(matrix: np.ndarray, names: list[str]) -> list[tuple[str, ...]]:
    """Returns recall, precision and F1 of the classes, below a head."""
    right = np.diag(matrix)
    recall = right / np.maximum(matrix.sum(axis=1), 1)
    precision = right / np.maximum(matrix.sum(axis=0), 1)
    f1 = 2 * right / np.maximum(matrix.sum(axis=0) + matrix.sum(axis=1), 1)
    rows = [("class", "images", "recall", "precision", "F1")]
    # The weakest come first.
    for k in np.argsort(f1, kind="stable")[:_MOST_ROWS]:
        rows.append(
            (
                names[k],
                f"{matrix[k].sum():,}",
                f"{recall[k]:.1%}",
                f"{precision[k]:.1%}",
                f"{f1[k]:.1%}",
            )
        )
    return rows


def _mistakes(
    run: runs.Run, observer: Observer, names: list[str]
) -> list[Block]:
    if not observer.mistakes:
        return []
    mode = run.config.data.normalization
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
        "label, then what it was taken for and with what probability",
    ).save(path)
    return [Heading(2, "Mistakes"), Figures([(path, "")])]


def _environment(metrics: dict) -> list[tuple[str, str]]:
    found = metrics.get("environment", {})
    return [
        (name.replace("_", " "), str(value)) for name, value in found.items()
    ]
