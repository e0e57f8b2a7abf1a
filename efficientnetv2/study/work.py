"""Runs a study: measures steps, tunes strengths, trains what is missing.

Several processes, also of several machines, may work in one folder: each takes
the next run that is neither done nor locked.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence

import keras
import ml_collections

from efficientnetv2 import config as config_lib
from efficientnetv2 import (
    engines,
    evaluation,
    files,
    progress,
    runs,
    speed,
)
from efficientnetv2.data import pipeline
from efficientnetv2.formatting import format_seconds
from efficientnetv2.options import SHAPING_OPTIONS
from efficientnetv2.study import analysis, definition, records
from efficientnetv2.study.definition import Arm, Study
from efficientnetv2.study.records import StudyError, read_json
from efficientnetv2.train import train_run

_WAIT = 5.0  # seconds, until what others do is looked at again
_WARM_UP, _STEPS, _ROUNDS = 3, 20, 5


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a study.

    Attributes:
        arm, seed: of the run.
        budget: part of the whole training.
        strength: of the regularization.
        tunes: whether it is there to choose a strength.
    """

    arm: str
    budget: float
    strength: float
    seed: int
    tunes: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.budget:g}-{self.strength:g}-{self.seed}"


def row_task(row: dict) -> Task:
    """Returns the run that a result is of."""
    return Task(**{key: row[key] for key in records.KEYS})


class Work:
    """A study and its folder.

    Args:
        study: the study.
        output_dir: folder of all studies.
        data_dir: of the data, or None.
        log: prints one line.
    """

    def __init__(
        self,
        study: Study,
        output_dir: str | os.PathLike,
        data_dir: str | None = None,
        log: Callable[[str], None] = progress.say,
    ):
        self.study, self.log = study, log
        self.folder = pathlib.Path(output_dir) / study.name
        self.flags = {} if data_dir is None else {"data.data_dir": data_dir}
        self.configs = definition.resolve(study, data_dir)

    # --- The folder ---------------------------------------------------------

    def claim(self) -> None:
        """Writes study.json, or checks that what is there agrees.

        Raises:
            StudyError: names the files or options that differ.
        """
        path = self.folder / records.STUDY
        code = records.code_hashes(self.study.dataset)
        if path.exists():
            changed = dict(read_json(path)["code"].items() ^ code.items())
            if changed:
                self._refuse("code", [f"  {name}" for name in sorted(changed)])
            self.check_options()
        content = {
            "definition": definition.to_dict(self.study),
            "models": {
                n: definition.describe_model(c) for n, c in self.configs.items()
            },
            "configs": {n: c.to_dict() for n, c in self.configs.items()},
            "code": code,
        }
        files.write_json(path, content)

    def check_options(self) -> None:
        """Checks that each arm has the options of the study's folder.

        Raises:
            StudyError: names those that differ.
        """
        known = read_json(self.folder / records.STUDY)["configs"]
        for name in known.keys() & self.configs.keys():
            here, free = self.configs[name].to_dict(), config_lib.FREE_OPTIONS
            found = config_lib.differences(known[name], here, free)
            if found:
                lines = config_lib.format_differences(found, "here")
                self._refuse("options", [f"arm {name}:", lines])

    def _refuse(self, what: str, lines: Sequence[str]) -> None:
        raise StudyError(
            "\n".join([f"{self.folder} was made with other {what}:", *lines])
            + f"\nResults of different {what} cannot be mixed: restore the "
            "previous one, or name another --output_dir."
        )

    def _path(self, task: Task) -> pathlib.Path:
        return self.folder / records.WORK / f"{task.name}.json"

    def rows(self, tasks: Iterable[Task]) -> list[dict]:
        """Returns the results of those runs that have one."""
        known = {row_task(row): row for row in records.read_rows(self.folder)}
        return [known[task] for task in tasks if task in known]

    # --- Time ---------------------------------------------------------------

    def measure(self) -> None:
        """Measures a step of each model at each size, if no one has yet.

        Nothing else should run on the machine meanwhile.
        """
        path = self.folder / records.TIMES
        while not path.exists():
            lock_path = self.folder / records.WORK / "measure.lock"
            with files.locked(lock_path) as lock:
                if lock.holder is None and not path.exists():
                    self.log(f"Study {self.study.name}: measuring steps ...")
                    found = self._measure()
                    content = {"machine": records.machine(), "seconds": found}
                    files.write_json(path, content)
            if not path.exists():
                time.sleep(_WAIT)

    def _measure(self) -> dict[str, dict[int, float]]:
        """Returns seconds per step, by arm and image size."""
        groups: dict[str, list[str]] = {}
        for name, config in self.configs.items():
            model = [config.model.get(key) for key in SHAPING_OPTIONS]
            key = json.dumps([model, config.train.batch_size])
            groups.setdefault(key, []).append(name)
        found = {}
        for names in groups.values():
            sizes = {
                s
                for name in names
                for s in definition.image_sizes(self.configs[name])
            }
            seconds = step_seconds(self.configs[names[0]], sorted(sizes))
            found |= dict.fromkeys(names, seconds)
        return {name: found[name] for name in self.configs}

    @functools.cached_property
    def times(self) -> dict[str, dict[int, float]]:
        """Seconds per step, by arm and image size; see `measure`."""
        found = read_json(self.folder / records.TIMES)["seconds"]
        return {
            name: {int(size): s for size, s in of_arm.items()}
            for name, of_arm in found.items()
        }

    def seconds(self, name: str, config: ml_collections.ConfigDict) -> float:
        """Returns the time of a run: its steps, each as measured alone."""
        plan = config_lib.run_plan(config)
        sizes = [stage.image_size for stage in plan.stages]
        return sum(self.times[name][sizes[k]] for k in plan.stage_of_steps)

    def config(self, task: Task) -> ml_collections.ConfigDict:
        """Returns the configuration of a run."""
        arm, scale = self.study.arm(task.arm), task.budget
        if arm.equal == "time":
            base = self.study.base
            scale *= self.seconds(base, self.configs[base])
            scale /= self.seconds(arm.name, self.configs[arm.name])
        flags = self.flags | {"train.seed": task.seed}
        if task.tunes:
            flags["eval.split"] = self.study.tune.split
        return self.study.configure(arm, task.strength, scale, flags)

    # --- Strength -----------------------------------------------------------

    def tune(self) -> None:
        """Tries strengths on validation images, and writes the choice."""
        path, tune = self.folder / records.TUNING, self.study.tune
        if tune is None or path.exists():
            return
        budgets = self.study.budgets if tune.budget is None else [tune.budget]
        tasks = [
            Task(arm.name, budget, float(strength), seed, tunes=True)
            for seed in tune.seeds
            for budget in budgets
            for arm in self.study.arms
            for strength in tune.strengths
            if arm.strength is None and arm.strength_of is None
        ]
        self.work_off(tasks, "Tuning")
        tried = self.rows(tasks)
        chosen = analysis.best_strengths(tried)
        files.write_json(path, {"chosen": chosen, "tried": tried})

    @functools.cached_property
    def _chosen(self) -> dict[str, dict[str, float]]:
        if self.study.tune is None:
            return {}
        return read_json(self.folder / records.TUNING)["chosen"]

    def strength(self, arm: Arm, budget: float) -> float:
        """Returns an arm's strength: its own, the tuned one, or 1."""
        if arm.strength is not None:
            return arm.strength
        if arm.strength_of is not None:
            return self.strength(self.study.arm(arm.strength_of), budget)
        if self.study.tune and self.study.tune.budget is not None:
            budget = self.study.tune.budget
        return self._chosen.get(arm.name, {}).get(f"{budget:g}", 1.0)

    # --- Runs ---------------------------------------------------------------

    def task(self, name: str, budget: float, seed: int) -> Task:
        """Returns a run of an arm."""
        arm = self.study.arm(name)
        return Task(name, budget, self.strength(arm, budget), seed)

    def tasks(self, seeds: int) -> list[Task]:
        """Returns the runs of all arms, complete seeds first."""
        return [
            self.task(arm.name, budget, seed)
            for seed in range(seeds)
            for budget in self.study.budgets
            for arm in self.study.arms
        ]

    def train(self) -> None:
        """Trains what is missing, then more seeds where questions need them.

        Writes results.jsonl.
        """
        tasks = self.tasks(self.study.seeds)
        while tasks:
            self.work_off(tasks, f"Study {self.study.name}")
            rows = self.results()
            records.write_rows(self.folder, rows)
            done = {row_task(row) for row in rows}
            tasks = [
                task
                for arm, budget, seeds in analysis.Analysis(
                    self.study, rows
                ).more_seeds()
                for seed in range(seeds)
                if (task := self.task(arm, budget, seed)) not in done
            ]
            # Of several questions about one arm.
            tasks = list(dict.fromkeys(tasks))

    def results(self) -> list[dict]:
        """Returns all results of the study, also of seeds beyond its own."""
        order = [arm.name for arm in self.study.arms]
        found = [
            row
            for row in records.read_rows(self.folder)
            if row["arm"] in order
            and row_task(row)
            == self.task(row["arm"], row["budget"], row["seed"])
        ]
        return sorted(
            found,
            key=lambda r: (order.index(r["arm"]), r["budget"], r["seed"]),
        )

    def work_off(self, tasks: Sequence[Task], what: str) -> None:
        """Trains runs until each has a result, here or in other processes.

        Raises:
            UserError: if a run fails, or after a signal; the same command
                goes on.
        """
        done = {row_task(row) for row in self.rows(tasks)}
        base = self.study.base
        whole = self.seconds(base, self.configs[base])
        start, first, said = time.monotonic(), None, ""
        with progress.bar(what, len(tasks), "runs") as bar:
            while missing := [
                task
                for task in tasks
                if task not in done and not self._path(task).exists()
            ]:
                left = whole * sum(task.budget for task in missing)
                first = first or left
                # What other processes have done counts, too.
                rate = (first - left) / (time.monotonic() - start) or 1.0
                shown = f"{what}, {format_seconds(left / rate)} left"
                bar.set_description_str(shown, refresh=False)
                bar.n = len(tasks) - len(missing)
                bar.refresh()
                if said is not None:
                    self.log(f"{said}{bar.n} of {len(tasks)} runs. {shown}.")
                for task in missing:
                    if row := self._take(task):
                        said = f"{task.name}: top-1 {row['top1']:.2%}. "
                        break
                else:
                    said = None
                    time.sleep(_WAIT)
        self.log(f"{said or ''}{what}: all {len(tasks)} runs are done.")

    def _take(self, task: Task) -> dict | None:
        """Trains a run, unless it is done or another process is at it."""
        path = self._path(task)
        with files.locked(path.with_suffix(".lock")) as lock:
            if lock.holder or path.exists():
                return None
            row = self.run(task, path.with_suffix(""))
            files.write_json(path, row)
            shutil.rmtree(path.with_suffix(""))
            path.with_suffix(".lock").unlink()
        return row

    def run(self, task: Task, folder: pathlib.Path) -> dict:
        """Trains a run in a folder, and returns its result."""
        config = self.config(task)
        plan = config_lib.run_plan(config)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.log", "a", encoding="utf-8") as output:
            with (
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(output),
            ):
                found = train_and_test(config, folder)
        return {
            **dataclasses.asdict(task),
            "epochs": config.train.epochs,
            "steps": plan.total_steps,
            **found,
            "seconds": self.seconds(task.arm, config),
            "machine": records.machine(),
        }

    def rerun(self, name: str, seed: int) -> dict:
        """Trains one arm in a folder of its own, and returns its result.

        The strength and the epochs are those of the study's folder.
        """
        with tempfile.TemporaryDirectory() as folder:
            task = self.task(name, max(self.study.budgets), seed)
            return self.run(task, pathlib.Path(folder))


# --- One run ------------------------------------------------------------------


def train_and_test(
    config: ml_collections.ConfigDict, folder: pathlib.Path
) -> dict:
    """Trains in this process, or resumes, and tests the averaged weights.

    Returns:
        'top1' and 'cross_entropy' of `eval.split`, 'training_top1' of all
        training images, without augmentation, and 'clock_seconds' of training.
    """
    # So that a run is the same whatever the process has run before.
    keras.backend.clear_session()
    gc.collect()
    run, data = runs.Run(folder), runs.Splits(config, print)
    with runs.claimed(run, config):
        engines.set_up(config)
        engine = train_run(config, data, run)
        engine.end_training()
        test = evaluation.evaluate_checkpoint(
            config, data, run, None, engine=engine
        )
        seen = evaluation.evaluate(
            engine.logits,
            pipeline.evaluation_dataset(data[config.train.split], config),
        )
        metrics = run.read_metrics()
    return {
        "top1": test["top1"],
        "cross_entropy": test["cross_entropy"],
        "training_top1": seen["top1"],
        "clock_seconds": (
            metrics["train_seconds"] - metrics["evaluation_seconds"]
        ),
    }


def step_seconds(
    config: ml_collections.ConfigDict, sizes: Sequence[int]
) -> dict[int, float]:
    """Returns the time of a training step, with its data, at image sizes.

    The median of several rounds, in which the sizes take turns.
    """
    plan = config_lib.run_plan(config)
    engines.set_up(config)
    engine = engines.create(config, plan)
    source = runs.Splits(config, lambda _: None)[config.train.split]
    data = {}
    for size in sizes:
        stage = dataclasses.replace(plan.stages[-1], image_size=size)
        total = _WARM_UP + _ROUNDS * _STEPS
        make_dataset = speed.stage_maker(
            config, plan, stage, source, engine.augments, total
        )
        data[size] = iter(make_dataset())

    def train_on(data, steps):
        start = time.perf_counter()
        for _ in range(steps):
            # Reading the loss waits for the end of the step.
            float(engine.step(next(data), 0.0)["loss"])
        return (time.perf_counter() - start) / steps

    for each in data.values():
        train_on(each, _WARM_UP)
    rounds = [
        {size: train_on(each, _STEPS) for size, each in data.items()}
        for _ in range(_ROUNDS)
    ]
    return {size: statistics.median(r[size] for r in rounds) for size in sizes}
