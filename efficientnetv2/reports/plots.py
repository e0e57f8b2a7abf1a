"""Plots by matplotlib: their look, and those of a study."""

import io
import pathlib
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import TICKUP

from efficientnetv2.models.counting import format_count
from efficientnetv2.study import intervals
from efficientnetv2.study.analysis import Analysis, curve, stage_ends

# Okabe and Ito's colours, which colour-blind readers can tell apart; the light
# yellow is left out, and lines and markers differ too.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#1b1b1f",
    "#e69f00",
    "#56b4e9",
)
# Of text and axes; on a page it becomes that of the page's text.
INK = COLOURS[4]
_PAPER = "#fffffe"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_WIDTH, _DPI = 5.6, 180
STYLE = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": _PAPER,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": 10,
    "legend.frameon": False,
}


def _look(index: int) -> dict:
    """Returns colour, line style and marker of an arm."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": _LINES[index % len(_LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as the suffix says, equal for equal figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        path.write_text(to_svg(figure), encoding="utf-8")
        return path
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def to_svg(figure: Figure) -> str:
    """Returns a figure as an SVG file, equal for equal figures."""
    file = io.StringIO()
    FigureCanvasAgg(figure)
    options = {"svg.fonttype": "none", "svg.hashsalt": "efficientnetv2"}
    with matplotlib.rc_context(options):
        figure.savefig(file, format="svg", metadata={"Date": None})
    # The editor's namespaces and version have no use.
    return re.sub(
        r" *<metadata>.*?</metadata>\n", "", file.getvalue(), flags=re.S
    )


def inline(svg: str) -> str:
    """Returns an SVG file as a part of a page, in the page's own colours."""
    svg = svg[svg.index("<svg") :].replace(_PAPER, "none")
    for number, colour in enumerate(COLOURS):
        name = "ink" if colour == INK else f"c{number}"
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _legend_below(figure: Figure, axes, **options) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", handlelength=3, **options
    )


@matplotlib.rc_context(STYLE)
def accuracy_over_time(analysis: Analysis, path: pathlib.Path) -> pathlib.Path:
    """Draws validation top-1 by seconds of training, one line an arm.

    A line is the mean over seeds, at each evaluation, of time and accuracy;
    the thin ones are single seeds. Markers, and ticks below, stand where a
    stage ends.
    """
    arms = [arm for arm in analysis.study.curves if arm in analysis.arms]
    figure = Figure((_WIDTH, 3.9 + 0.24 * len(arms)), layout="constrained")
    axes = figure.subplots()
    lows, tops = [], []
    for index, arm in enumerate(arms):
        look = _look(index)
        results = list(analysis.of_arm(arm).values())
        curves = [curve(result) for result in results]
        # Whether each seed was evaluated at the same steps.
        times, accuracies = (
            np.mean([each[k] for each in curves], axis=0) for k in (0, 1)
        )
        steps = [entry["step"] for entry in results[0]["curve"]]
        for seed_times, seed_accuracies in curves:
            axes.plot(
                seed_times,
                seed_accuracies,
                color=look["color"],
                linewidth=0.6,
                alpha=0.4,
            )
        axes.plot(
            times,
            accuracies,
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=1.8,
        )
        ends = stage_ends(results[0])
        axes.plot(
            np.interp(ends, steps, times),
            np.interp(ends, steps, accuracies),
            marker=look["marker"],
            color=look["color"],
            markerfacecolor=_PAPER,
            markersize=7,
            linestyle="none",
        )
        axes.plot(
            times[-1:],
            accuracies[-1:],
            color=look["color"],
            marker=look["marker"],
            linestyle=look["linestyle"],
            markersize=7,
            label=analysis.title(arm),
        )
        # Also of ends that lie below what is drawn.
        axes.plot(
            np.interp(ends, steps, times),
            [0.0] * len(ends),
            marker=TICKUP,
            color=look["color"],
            markersize=9,
            linestyle="none",
            transform=axes.get_xaxis_transform(),
        )
        lows.append(accuracies[len(accuracies) // 4])
        tops.append(max(max(each[1]) for each in curves))
    # The first evaluations would squeeze what is to be compared.
    low, high = np.floor(min(lows)), np.ceil(max(tops))
    axes.set_ylim(low, max(high, low + 1))
    axes.set_xlim(left=0)
    axes.set_xlabel("time of training, without evaluation (s)")
    axes.set_ylabel("validation top-1 (%)")
    axes.set_title(
        "Hollow, and ticks below: a stage ends. Filled: training ends.",
        fontsize=10,
        loc="left",
    )
    _legend_below(figure, axes)
    return save(figure, path)


@matplotlib.rc_context(STYLE)
def accuracy_by_arm(analysis: Analysis, path: pathlib.Path) -> pathlib.Path:
    """Draws test top-1 of each arm: every seed, the mean and its interval."""
    arms = analysis.arms
    figure = Figure((_WIDTH, 1.5 + 0.62 * len(arms)), layout="constrained")
    axes = figure.subplots()
    base = analysis.study.base
    if base in arms:
        axes.axvline(
            np.mean(list(analysis.top1(base).values())),
            color=INK,
            alpha=0.6,
            linestyle="--",
            linewidth=1,
            label="mean of the base",
        )
    for row, arm in enumerate(arms):
        values = list(analysis.top1(arm).values())
        mean = intervals.interval(values)
        first = {"label": "a seed"} if row == 0 else {}
        axes.plot(
            values,
            [row + 0.16] * len(values),
            "o",
            color=COLOURS[1],
            markersize=5,
            markerfacecolor="none",
            **first,
        )
        first = {"label": "mean, 95% interval of the mean"} if row == 0 else {}
        half = [[mean.mean - mean.low], [mean.high - mean.mean]]
        axes.errorbar(
            [mean.mean],
            [row - 0.12],
            xerr=half if mean.n > 1 else None,
            color=COLOURS[0],
            marker="D",
            markersize=5,
            capsize=4,
            linestyle="none",
            **first,
        )
        axes.text(
            0.0,
            row - 0.36,
            analysis.title(arm),
            transform=axes.get_yaxis_transform(),
            fontsize=10,
            va="center",
            bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.8},
        )
    axes.set_yticks([])
    axes.set_ylim(len(arms) - 0.5, -0.7)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("test top-1 (%)")
    _legend_below(figure, axes)
    return save(figure, path)


@matplotlib.rc_context(STYLE)
def accuracy_and_cost(analysis: Analysis, path: pathlib.Path) -> pathlib.Path:
    """Draws test top-1 by images/s of training and, if measured, inference."""
    columns = [
        (
            "images/s of training (mean over the run's image sizes)",
            lambda r: r["train_images_per_second"],
        )
    ]
    if analysis.has_inference():
        inference = next(iter(analysis.results.values()))["inference"]
        columns.append(
            (
                f"images/s of inference ({inference['image_size']} pixels, "
                f"batches of {inference['batch_size']})",
                lambda r: r["inference"]["images_per_second"],
            )
        )
    figure = Figure(
        (_WIDTH, 2.6 * len(columns) + 0.4 + 0.24 * len(analysis.arms)),
        layout="constrained",
    )
    panels = figure.subplots(len(columns), squeeze=False)[:, 0]
    for axes, (label, value) in zip(panels, columns, strict=True):
        _scatter(analysis, axes, value)
        axes.set_xlabel(label)
        axes.set_ylabel("test top-1 (%)")
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes.margins(0.12, 0.12)
    _legend_below(figure, panels[0])
    return save(figure, path)


def _scatter(analysis: Analysis, axes, value) -> None:
    for index, arm in enumerate(analysis.arms):
        look = _look(index)
        speeds = list(analysis.values(arm, value).values())
        accuracies = list(analysis.top1(arm).values())
        mean = intervals.interval(accuracies)
        model = next(iter(analysis.of_arm(arm).values()))["model"]
        axes.plot(
            speeds,
            accuracies,
            marker=look["marker"],
            color=look["color"],
            markersize=4,
            markerfacecolor="none",
            linestyle="none",
        )
        half = [[mean.mean - mean.low], [mean.high - mean.mean]]
        axes.errorbar(
            [np.mean(speeds)],
            [mean.mean],
            yerr=half if mean.n > 1 else None,
            color=look["color"],
            marker=look["marker"],
            markersize=8,
            capsize=4,
            linestyle="none",
            label=(
                f"{analysis.title(arm)}: {format_count(model['parameters'])} "
                f"parameters, {format_count(model['multiply_adds'])} "
                "multiply-adds"
            ),
        )


def draw_all(
    analysis: Analysis, folder: pathlib.Path
) -> Sequence[tuple[pathlib.Path, str]]:
    """Draws the plots that a study's results allow.

    Returns:
        Path and caption of each.
    """
    drawn = []
    if all(result["curve"] for result in analysis.results.values()):
        drawn.append(
            (
                accuracy_over_time(analysis, folder / "accuracy_over_time.svg"),
                "Validation top-1 against time of training: the mean over "
                "seeds, and thin lines for single seeds.",
            )
        )
    drawn.append(
        (
            accuracy_by_arm(analysis, folder / "accuracy_by_arm.svg"),
            "Test top-1 by arm. The intervals are those of each mean by "
            "itself; the table's differences are paired by seed.",
        )
    )
    if analysis.models_differ():
        drawn.append(
            (
                accuracy_and_cost(analysis, folder / "accuracy_and_cost.svg"),
                "Test top-1 against speed; bars are 95% intervals of the "
                "mean, small markers single seeds.",
            )
        )
    return drawn
