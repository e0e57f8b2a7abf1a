"""The report of a run: one HTML file with all that a reader wants to see."""

import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image

from efficientnetv2 import config as config_lib
from efficientnetv2.data import preprocessing, preview, registry
from efficientnetv2.study import page
from efficientnetv2.training import checkpoints, loop, runs

NAME = "report.html"
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

    def __call__(self, images: tf.Tensor, labels, logits) -> None:
        """Takes a batch.

        Args:
            images: float32 [batch, size, size, 3], normalized.
            labels: float32 [batch, classes] of zeros and ones.
            logits: float32 [batch, classes].
        """
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float64)).numpy()
        labels = labels.numpy().argmax(axis=1)
        predicted = probabilities.argmax(axis=1)
        probability = probabilities.max(axis=1)
        self._batches.append((labels, predicted, probability))
        wrong = np.flatnonzero(labels != predicted)
        worst = wrong[np.argsort(-probability[wrong])][:_MISTAKES]
        self.mistakes += [
            (
                float(probability[k]),
                images[int(k)].numpy(),
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


def write(run: runs.Run, observer: Observer, result: dict) -> pathlib.Path:
    """Writes MODEL_DIR/report.html.

    Args:
        run: that was trained.
        observer: of the evaluation.
        result: of the evaluation, see `loop.evaluate_checkpoint`.

    Returns:
        The file.
    """
    config, metrics = run.config, run.read_metrics()
    info = registry.load_info(config.data.ds_name)
    parts = [_headline(run, metrics, result)]
    parts += [page.heading("Stages"), page.table(loop.stage_table(run))]
    if metrics.get("evaluations"):
        parts += [page.heading("Curves"), _curves(run, metrics)]
    if not config.data.multi_label:
        parts += _of_classes(observer, info.class_names)
        parts += _mistakes(observer, config, info.class_names)
    parts += _sheets(run)
    parts += [
        page.heading("How it was made"),
        page.table([("", ""), *_environment(metrics)]),
        page.folded("Configuration", page.code(config_lib.to_yaml(config))),
    ]
    title = f"{config.model.model_name} on {config.data.ds_name}"
    path = run.model_dir / NAME
    checkpoints.write_text(path, page.page(title, parts))
    return path


def _headline(run: runs.Run, metrics: dict, result: dict) -> str:
    pairs = [
        (f"top-1, {result['split']}", f"{result['top1']:.2%}"),
        ("top-5", f"{result['top5']:.2%}"),
        ("images", f"{result['images']:,}"),
        ("cross-entropy, nats", f"{result['cross_entropy']:.3f}"),
    ]
    if "pr_auc" in result:
        pairs.append(
            ("area under precision by recall", f"{result['pr_auc']:.3f}")
        )
    seconds = metrics.get("train_seconds")
    if seconds:
        shown = run.plan.total_steps * run.config.train.batch_size
        pairs += [
            ("minutes of training", f"{seconds / 60:.1f}"),
            ("images/s, evaluation included", f"{shown / seconds:,.0f}"),
        ]
    return page.figures(pairs)


def _curves(run: runs.Run, metrics: dict) -> str:
    evaluations = metrics["evaluations"]
    epochs = [each["epoch"] for each in evaluations]
    drawn = []
    for key, label, scale in (
        ("top1", "top-1, %", 100.0),
        ("cross_entropy", "cross-entropy, nats", 1.0),
    ):
        figure, plot = page.axes()
        values = [scale * each[key] for each in evaluations]
        plot.plot(epochs, values, "o-", color=page.COLOURS[0], markersize=4)
        plot.set_xlabel("epoch")
        plot.set_ylabel(f"{label}, {run.config.eval.val_split}")
        for stage in run.stages:
            start = stage.first_step / run.plan.steps_per_epoch
            if stage.first_step:
                plot.axvline(start, color="#999999", linestyle=":")
            plot.annotate(
                f"{stage.image_size} px",
                (start, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 2),
                textcoords="offset points",
                color="#666666",
                fontsize=9,
            )
        drawn.append(page.svg(figure))
    return page.plots(drawn)


def _of_classes(observer: Observer, names: list[str]) -> list[str]:
    labels, predicted = observer.labels, observer.predicted
    matrix = confusion_matrix(labels, predicted, len(names))
    parts = [page.heading("Classes")]
    if len(names) <= _MOST_IN_MATRIX:
        parts.append(_draw_matrix(matrix, names))
    parts.append(page.table(confused_pairs(matrix, names)))
    parts.append(page.table(class_rows(matrix, names)))
    right = labels == predicted
    bins, error = calibration(right, observer.probability)
    parts += [
        page.heading("Calibration"),
        page.paragraph(
            f"Expected calibration error: {error:.2%} ({_BINS} bins of equal "
            "width, over the probability of the predicted class)."
        ),
        _draw_calibration(bins),
    ]
    return parts


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


def _draw_matrix(matrix: np.ndarray, names: list[str]) -> str:
    size = 3.0 + 0.42 * len(names)
    figure, plot = page.axes(size, size)
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
    return page.svg(figure)


def _draw_calibration(bins: list[tuple[float, float, int]]) -> str:
    figure, plot = page.axes(5.0, 4.0)
    means, shares, counts = zip(*bins, strict=True)
    plot.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="perfect")
    plot.plot(means, shares, "o-", color=page.COLOURS[0], label="mean of a bin")
    second = plot.twinx()
    second.bar(means, counts, 0.02, color=page.COLOURS[4], alpha=0.5)
    second.set_ylabel("images (bars)")
    second.set_yscale("log")
    plot.set_xlabel("probability of the predicted class")
    plot.set_ylabel("share that is right")
    plot.set_xlim(0, 1)
    plot.set_ylim(0, 1)
    plot.legend(loc="upper left", frameon=False)
    return page.svg(figure)


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


def _mistakes(observer: Observer, config, names: list[str]) -> list[str]:
    if not observer.mistakes:
        return []
    mode, _ = preprocessing.parse_augname(config.data.augname)
    images, captions = [], []
    for probability, image, label, predicted in observer.mistakes:
        images.append(preprocessing.denormalize(image, mode).numpy())
        known = predicted < len(names)
        name = names[predicted] if known else f"output {predicted}"
        captions.append([names[label], f"{probability:.2f} {name}"])
    sheet = preview.draw(
        np.stack(images),
        captions,
        "The most confident mistakes",
        "label, then what it was taken for and with what probability",
    )
    return [
        page.heading("Mistakes"),
        page.picture(sheet, "The most confident mistakes"),
    ]


def _sheets(run: runs.Run) -> list[str]:
    folder = run.model_dir / preview.FOLDER
    return [
        page.heading("What the network saw"),
        *(
            page.picture(Image.open(path), path.stem.replace("_", " "))
            for path in sorted(folder.glob("stage_*.png"))
        ),
    ]


def _environment(metrics: dict) -> list[tuple[str, str]]:
    found = metrics.get("environment", {})
    return [
        (name.replace("_", " "), str(value)) for name, value in found.items()
    ]
