"""Lists and compares runs by the files they leave, without TensorFlow."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from efficientnetv2 import config as config_lib
from efficientnetv2 import files
from efficientnetv2.errors import UserError

METRICS = "metrics.json"
LOCK = ".lock"
FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"
# Of a run that has no checkpoint yet.
STARTED = "no result"


@dataclasses.dataclass(frozen=True)
class RunEntry:
    """What is known of a run.

    Attributes:
        path: its folder.
        config: the content of config.yaml, section to options.
        metrics: the content of metrics.json; {} if there is none.
        state: 'finished', 'running', 'stopped' or 'no result'.
    """

    path: pathlib.Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    state: str

    @property
    def dataset(self) -> str:
        return str(self.config.get("data", {}).get("ds_name", "?"))

    @property
    def model(self) -> str:
        return str(self.config.get("model", {}).get("model_name", "?"))

    @property
    def top1(self) -> float | None:
        """Top-1 in [0, 1] on the test split, else the best in validation."""
        result = self.metrics.get("test") or self.metrics.get("best") or {}
        return result.get("top1")

    @property
    def split(self) -> str:
        """The split of `top1`; '' without a result."""
        if self.metrics.get("test"):
            return str(self.metrics["test"].get("split", "eval"))
        validation = self.config.get("eval", {}).get("val_split")
        return str(validation) if self.top1 is not None else ""

    @property
    def minutes(self) -> float | None:
        """Minutes of training, including evaluations."""
        seconds = self.metrics.get("train_seconds")
        return None if seconds is None else seconds / 60

    @property
    def evaluations(self) -> Sequence[Mapping[str, Any]]:
        """The curve."""
        return self.metrics.get("evaluations", [])


def read(folder: str | os.PathLike) -> RunEntry:
    """Reads a run.

    Raises:
        UserError: if the folder holds none, or its files cannot be read.
    """
    path = pathlib.Path(folder)
    config = config_lib.read_saved(path)
    metrics = {}
    try:
        metrics = json.loads((path / METRICS).read_text())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path / METRICS}: {error}.") from None
    if files.is_locked(path / LOCK):
        state = RUNNING
    elif metrics.get("finished"):
        state = FINISHED
    else:
        state = STOPPED if metrics.get("evaluations") else STARTED
    return RunEntry(path, config, metrics, state)


def find(folder: str | os.PathLike) -> list[RunEntry]:
    """Reads all runs in a folder and below it, by path.

    Raises:
        UserError: if there is no such folder, or no run in it.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    paths = [
        path.parent
        for path in sorted(root.rglob(config_lib.FILE))
        if (path.parent / METRICS).exists()
        or (path.parent / "checkpoints").is_dir()
    ]
    if not paths:
        raise UserError(
            f"There are no runs in {root}: no folder with {config_lib.FILE} "
            f"and {METRICS}."
        )
    return [read(path) for path in paths]


def differing_options(runs: Sequence[RunEntry]) -> list[tuple[str, ...]]:
    """Returns (option, value of each run) for each option that differs."""
    names = set()
    for other in runs[1:]:
        found = config_lib.differences(runs[0].config, other.config)
        names |= {name for name, *_ in found}
    rows = []
    for name in sorted(names):
        section, _, option = name.partition(".")
        values = [
            str(run.config.get(section, {}).get(option, "-")) for run in runs
        ]
        rows.append((name, *values))
    return rows


def draw_curves(
    runs: Sequence[RunEntry], names: Sequence[str], path: str | os.PathLike
) -> pathlib.Path:
    """Draws the validation top-1 of runs by epoch and by minute of training.

    Args:
        runs: some of which have evaluations.
        names: one per run, for the legend.
        path: of the PNG file.

    Raises:
        UserError: if no run has an evaluation, or the file cannot be written.
    """
    drawn = [
        (name, run.evaluations)
        for name, run in zip(names, runs, strict=True)
        if run.evaluations
    ]
    if not drawn:
        raise UserError("None of these runs has evaluations to draw.")
    import matplotlib
    from matplotlib.figure import Figure

    from efficientnetv2.reports import plots

    with matplotlib.rc_context(plots.STYLE):
        figure = Figure((9.0, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for index, (name, evaluations) in enumerate(drawn):
            colour = plots.COLOURS[index % len(plots.COLOURS)]
            top1 = [100 * each["top1"] for each in evaluations]
            for axes, key, scale in zip(
                panels, ("epoch", "train_seconds"), (1, 60), strict=True
            ):
                axes.plot(
                    [each[key] / scale for each in evaluations],
                    top1,
                    "o-",
                    color=colour,
                    markersize=3,
                    label=name,
                )
        for axes, label in zip(
            panels, ("epoch", "minutes of training"), strict=True
        ):
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        panels[0].set_ylabel("validation top-1 (%)")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower left"
        )
        try:
            return plots.save_figure(figure, pathlib.Path(path))
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot write {path}: {error}.") from None
