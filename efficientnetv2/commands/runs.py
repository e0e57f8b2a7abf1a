"""List the runs in a folder, or compare some: options, results, curves.

    efficientnetv2 runs runs/
    efficientnetv2 runs runs/ --csv > runs.csv
    efficientnetv2 runs runs/first runs/second --plot=curves.png

Top-1 is that of the test, or of validation where there is no test yet.
"""

import csv
import os
import sys
from collections.abc import Sequence

from absl import flags

from efficientnetv2 import formatting, overview
from efficientnetv2.overview import RunEntry

_HEAD = ("run", "dataset", "model", "top-1", "of", "minutes", "state")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("csv", False, "Print CSV.", flag_values=values)
    flags.DEFINE_string(
        "plot", None, "PNG file for the curves of the runs.", flag_values=values
    )


def run(given: flags.FlagValues, words: Sequence[str]) -> None:
    folders = list(words) or ["runs"]
    if len(folders) > 1:
        runs = [overview.read(folder) for folder in folders]
        names = [str(run.path) for run in runs]
        _compare(runs, names, given.csv)
    else:
        runs = overview.find(folders[0])
        names = [os.path.relpath(run.path, folders[0]) for run in runs]
        rows = [
            _row(run, name, given.csv)
            for run, name in zip(runs, names, strict=True)
        ]
        _print([_HEAD, *rows], given.csv, (0, 1, 2, 4, 6))
    if given.plot:
        path = overview.draw_curves(runs, names, given.plot)
        print(f"Curves: {path}", file=sys.stderr)


def _row(run: RunEntry, name: str, as_csv: bool) -> tuple[str, ...]:
    """Returns what `_HEAD` names; numbers are rounded for people."""
    top1, minutes = run.top1, run.minutes
    if as_csv:
        numbers = ("" if n is None else str(n) for n in (top1, minutes))
        top1, minutes = numbers
        return (
            *(name, run.dataset, run.model),
            *(top1, run.split, minutes, run.state),
        )
    return (
        name,
        run.dataset,
        run.model,
        "-" if top1 is None else f"{top1:.2%}",
        run.split or "-",
        "-" if minutes is None else f"{minutes:.1f}",
        run.state,
    )


def _compare(
    runs: Sequence[RunEntry], names: Sequence[str], as_csv: bool
) -> None:
    rows = [("", *names)]
    columns = [
        _row(run, name, as_csv) for run, name in zip(runs, names, strict=True)
    ]
    rows += list(zip(_HEAD, *columns, strict=True))[1:]
    options = overview.differing_options(runs)
    _print(rows + options, as_csv, range(len(rows[0])))
    if not options and not as_csv:
        print("The options are the same.")


def _print(rows, as_csv: bool, left: Sequence[int]) -> None:
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    else:
        print(formatting.table(rows, left=left))
