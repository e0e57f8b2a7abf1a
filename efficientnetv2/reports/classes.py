"""How single classes fared: confusions, precision and recall, calibration."""

import matplotlib
import numpy as np
import scipy.special
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from sklearn import metrics

from efficientnetv2.reports import plots

BINS = 15
MOST_ROWS = 100
_MISTAKES = 24
_PAIRS = 10
# Images of a bin that says little.
_FEW = 20
_BLUES = LinearSegmentedColormap.from_list(
    "blues", [(0.0, 0.45, 0.7, 0.0), (0.0, 0.45, 0.7, 1.0)]
)


class Observer:
    """Keeps what a report needs while an evaluation is running.

    Attributes:
        labels, predicted: int64 [images].
        probability: float64 [images], that of the predicted class.
        mistakes: the most confident ones, first the worst: (probability,
            image, label, predicted).
    """

    def __init__(self):
        self.labels = self.predicted = np.zeros(0, np.int64)
        self.probability = np.zeros(0)
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
        self.labels = np.append(self.labels, labels)
        self.predicted = np.append(self.predicted, predicted)
        self.probability = np.append(self.probability, probability)
        wrong = np.flatnonzero(labels != predicted)
        for k in wrong[np.argsort(-probability[wrong])][:_MISTAKES]:
            one = (images[k], int(labels[k]), int(predicted[k]))
            self.mistakes.append((float(probability[k]), *one))
        self.mistakes.sort(key=lambda mistake: -mistake[0])
        del self.mistakes[_MISTAKES:]


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Returns counts: int64 [classes, classes], label by prediction.

    The network may have more outputs than there are classes; such predictions
    are left out.
    """
    return metrics.confusion_matrix(
        labels, predicted, labels=np.arange(classes)
    )


def calibration_bins(
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
    index = np.minimum((probability * BINS).astype(int), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    used = counts > 0
    means, shares = (
        np.bincount(index, values, BINS)[used] / counts[used]
        for values in (probability, right)
    )
    error = np.abs(means - shares) @ counts[used] / len(right)
    bins = zip(
        means.tolist(), shares.tolist(), counts[used].tolist(), strict=True
    )
    return list(bins), float(error)


@matplotlib.rc_context(plots.STYLE | {"axes.grid": False})
def draw_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    side = 0.36 if len(names) > 15 else 0.5
    size = 1.7 + side * len(names)
    figure = Figure((size, size), layout="constrained")
    plot = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # The root makes the few mistakes visible next to the many right answers.
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
def draw_calibration(bins: list[tuple[float, float, int]]) -> Figure:
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
    sure = [bin[:2] for bin in bins if bin[2] >= _FEW]
    plot.plot(
        *np.reshape(sure, (-1, 2)).T,
        "o-",
        color=plots.COLOURS[0],
        label="this model",
    )
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
    """Returns images, recall, precision, F1 of classes, the weakest first."""
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(names)), zero_division=0.0
    )
    weakest = np.argsort(f1, kind="stable")[:MOST_ROWS]
    shares = np.stack([recall, precision, f1], axis=1)
    return [
        (names[k], f"{images[k]:,}", *(f"{each:.1%}" for each in shares[k]))
        for k in weakest
    ]
