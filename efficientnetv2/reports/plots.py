"""Plots by matplotlib: their look, and those of a study."""

import io
import pathlib
import re
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from efficientnetv2.study.analysis import Analysis, Interval

# The palette of Okabe and Ito, safe for colour-blind readers, without its light
# yellow. Lines and markers differ as well.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#1b1b1f",
    "#e69f00",
    "#56b4e9",
)
# Text and axes; on a page, the colour of the page's text replaces it.
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


def save_figure(figure: Figure, path: pathlib.Path) -> pathlib.Path:
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
def accuracy_by_time(found: Analysis) -> Figure:
    """Draws test top-1 by time at each budget, one line per arm."""
    figure = Figure((_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    draw_accuracy_by_time(axes, found)
    _legend_below(figure, axes)
    return figure


def draw_accuracy_by_time(axes, found: Analysis) -> None:
    """Draws the curves of a study and names its axes; without a legend."""
    budget = max(found.study.budgets)
    longest = max(found.mean(a.name, budget, "seconds") for a in found.arms)
    unit, seconds = ("minutes", 60) if longest > 180 else ("seconds", 1)
    for index, name in enumerate(found.study.curves):
        budgets = [b for b in found.study.budgets if found.top1(name, b).n]
        tops = [found.top1(name, budget) for budget in budgets]
        axes.errorbar(
            [found.mean(name, b, "seconds") / seconds for b in budgets],
            [each.mean for each in tops],
            yerr=[_half(each) for each in tops],
            color=COLOURS[index % len(COLOURS)],
            linestyle=_LINES[index % len(_LINES)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=7,
            linewidth=2,
            capsize=4,
            label=found.study.arm(name).title,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{unit} of training on one core")
    axes.set_ylabel("test top-1 (%)")


@matplotlib.rc_context(STYLE)
def draw_differences(found: Analysis) -> Figure:
    """Draws how much each arm differs from the base, with its interval."""
    base, budget = found.study.base, max(found.study.budgets)
    arms = [arm for arm in found.arms if arm.name != base]
    figure = Figure((_WIDTH, 1.2 + 0.5 * len(arms)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    for row, arm in enumerate(arms):
        each = found.difference(arm.name, base, budget, budget)
        # Better, worse, or not to be told.
        colour = INK
        if each.low > 0 or each.high < 0:
            colour = COLOURS[2] if each.low > 0 else COLOURS[1]
        axes.errorbar(
            [each.mean],
            [row],
            xerr=[[_half(each)], [_half(each)]],
            color=colour,
            marker="o",
            markersize=7,
            linewidth=2,
            capsize=4,
        )
        axes.text(
            0.0,
            row - 0.36,
            arm.title,
            transform=axes.get_yaxis_transform(),
            fontsize=10,
            va="center",
            bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 0.8},
        )
    axes.set_yticks([])
    axes.set_ylim(len(arms) - 0.5, -0.8)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(
        f"points of test top-1 more than '{found.study.arm(base).title}'"
    )
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_and_cost(
    found: Analysis, costs: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draws each arm's test top-1, and the relative cost of its step.

    Args:
        found: the results.
        costs: of a step, by kind of cost and arm.
    """
    base, budget = found.study.base, max(found.study.budgets)
    rows = np.arange(len(found.arms))
    figure = Figure((1.5 * _WIDTH, 1.4 + 0.6 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, arm in zip(rows, found.arms, strict=True):
        top1 = found.top1(arm.name, budget)
        left.errorbar(
            [top1.mean],
            [row],
            xerr=[[_half(top1)], [_half(top1)]],
            color=COLOURS[0],
            marker="o",
            markersize=7,
            linewidth=2,
            capsize=4,
        )
    height = 0.8 / len(costs)
    for index, (kind, of_arm) in enumerate(costs.items()):
        right.barh(
            rows + (index - (len(costs) - 1) / 2) * height,
            [of_arm.get(a.name, np.nan) / of_arm[base] for a in found.arms],
            height,
            color=COLOURS[(index + 1) % len(COLOURS)],
            label=kind,
        )
    right.axvline(1, color=INK, linewidth=1)
    left.set_yticks(rows, [arm.title for arm in found.arms])
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlabel("test top-1 (%), in equal time")
    right.set_xlabel(f"time of a step, '{found.study.arm(base).title}' = 1")
    for axes in (left, right):
        axes.grid(False, axis="y")
    _legend_below(figure, right)
    return figure


def _half(found: Interval) -> float:
    """Returns the half-width of an interval, 0 for one value."""
    return found.half_width if found.n > 1 else 0.0


def draw_study(
    found: Analysis,
    costs: Mapping[str, Mapping[str, float]],
    folder: pathlib.Path,
) -> list[tuple[pathlib.Path, str]]:
    """Draws one picture per question that the results of a study answer.

    Args:
        found: the results.
        costs: of a step, by kind of cost and arm.
        folder: of the study.

    Returns:
        Path and caption of each.
    """
    study, drawn = found.study, []

    def keep(figure: Figure, name: str, caption: str) -> None:
        path = save_figure(figure, folder / "plots" / f"{name}.svg")
        drawn.append((path, caption))

    if len(set(study.curves) & {arm.name for arm in found.arms}) > 1:
        keep(
            accuracy_by_time(found),
            "accuracy_by_time",
            "Which is better for how much time? Each point is a training of "
            "its own whose schedule ends there.",
        )
    if len({costs[next(iter(costs))].get(a.name) for a in found.arms}) > 1:
        keep(
            accuracy_and_cost(found, costs),
            "accuracy_and_cost",
            "What does each model bring, and what does a step of it cost?",
        )
    if study.base in {arm.name for arm in found.arms} and len(found.arms) > 1:
        keep(
            draw_differences(found),
            "differences",
            "What does each arm bring? Green is better than the base, orange "
            "worse, black not to be told apart; bars are 95% intervals.",
        )
    return drawn
