"""Runs a study: every arm with every seed, each run in a process of its own.

`efficientnetv2 study` is the command.
"""

import contextlib
import dataclasses
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections

from efficientnetv2 import config as config_lib
from efficientnetv2 import files, progress, progressive
from efficientnetv2.declarative import ConfigError, suggest
from efficientnetv2.errors import UserError
from efficientnetv2.formatting import format_seconds
from efficientnetv2.models import counting
from efficientnetv2.study import definition, inference, records
from efficientnetv2.study.definition import Study
from efficientnetv2.study.records import Folder, StudyError

LOG = "output.log"
NOTES = "study_run.json"
# Not that of the run, which its child takes.
LOCK = ".study_lock"


class Stopped(UserError):
    """SIGTERM or Ctrl-C arrived; the run in progress has a checkpoint."""

    exit_code = 143


class Children:
    """Runs commands one after the other, and passes signals on to them.

    A child has a process group of its own, so that Ctrl-C in a terminal
    reaches it once, from here.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.signal: int | None = None

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM while it is open."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.signal(n, self._receive) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number, frame):
        self.signal = number
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def run(
        self, command: Sequence[str], output: pathlib.Path, lock: int
    ) -> None:
        """Runs a command to its end.

        Args:
            command: and its arguments.
            output: what it prints is appended there.
            lock: descriptor that the child holds too, so that a child whose
                parent was killed keeps its run locked.

        Raises:
            Stopped: if a signal arrived.
            StudyError: if the command failed; the message ends with the last
                lines that it printed.
        """
        if self.signal is None:
            with open(output, "ab") as file:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[lock],
                )
            if self.signal is not None:
                self.process.send_signal(self.signal)
            status = self.process.wait()
        if self.signal is not None:
            raise Stopped(
                f"{signal.Signals(self.signal).name}: the run in progress has "
                "a checkpoint. The same command goes on."
            )
        if status:
            lines = output.read_text(errors="replace").splitlines()[-12:]
            raise StudyError(
                f"A run ended with status {status}:\n  "
                + "\n  ".join(lines)
                + f"\nThe whole output is in {output}. The same command tries "
                "again."
            )


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a study.

    Attributes:
        arm, seed: of the run.
        number: of all runs of the study, from 1.
    """

    arm: str
    seed: int
    number: int


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (part from 0, parts) of '1/4'.

    Raises:
        ConfigError: if it is no such text.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()) or not (
        1 <= int(part) <= int(parts)
    ):
        raise ConfigError(
            f"--shard={text!r}: expected PART/PARTS, such as 1/4 to 4/4."
        )
    return int(part) - 1, int(parts)


def plan_tasks(
    study: Study,
    seeds: int,
    arms: Sequence[str] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Task]:
    """Returns the runs of a part of a study, in their order.

    Seeds vary slowest, so that a study that was ended has complete seeds.

    Args:
        study: the study.
        seeds: number of seeds.
        arms: names of arms; None: all.
        shard: see `parse_shard`; every so many runs of the chosen arms.

    Raises:
        ConfigError: for an unknown arm.
    """
    names = [arm.name for arm in study.arms]
    for arm in arms or ():
        if arm not in names:
            raise ConfigError(
                f"--arms: the study {study.name} has no arm {arm!r}."
                + suggest(arm, names)
            )
    pairs = [(arm, seed) for seed in range(seeds) for arm in names]
    tasks = [Task(*pair, number) for number, pair in enumerate(pairs, 1)]
    if arms:
        tasks = [task for task in tasks if task.arm in arms]
    part, parts = shard
    return tasks[part::parts]


def train_command(
    study: Study, task: Task, model_dir: pathlib.Path, data_dir: str | None
) -> list[str]:
    """Returns the arguments of Python that train a run."""
    command = ["-m", "efficientnetv2.main", "--mode=train_and_test"]
    command.append(f"--dataset={study.dataset}")
    if study.recipe:
        command.append(f"--recipe={study.recipe}")
    overrides = study.hparam_str(study.arm(task.arm))
    command += [
        f"--hparam_str={overrides}",
        f"--seed={task.seed}",
        f"--model_dir={model_dir}",
    ]
    return command + ([f"--data_dir={data_dir}"] if data_dir else [])


def _command_line(arguments: Sequence[str]) -> str:
    return shlex.join(["python", *arguments])


@dataclasses.dataclass
class Driver:
    """Trains the runs of a study that have no result yet.

    Attributes:
        study: the study.
        configs: of each arm, see `definition.resolve`.
        folder: of the study.
        data_dir: of the data, or None.
        run: runs a command, see `Children.run`.
        log: prints one line.
        code: see `records.code_hashes`, as `execute` found it.
    """

    study: Study
    configs: Mapping[str, ml_collections.ConfigDict]
    folder: Folder
    data_dir: str | None
    run: Callable[[Sequence[str], pathlib.Path, int], None]
    log: Callable[[str], None] = progress.say
    code: dict[str, str] = dataclasses.field(init=False)

    def execute(self, tasks: Sequence[Task], seeds: int) -> bool:
        """Trains what is missing of some runs.

        Args:
            tasks: the runs, see `plan_tasks`.
            seeds: of the whole study.

        Returns:
            Whether the whole study is complete.

        Raises:
            StudyError: if results or runs of other code or configurations
                are in the way, or a run fails.
            Stopped: after a signal.
        """
        self.code = records.code_hashes(self.study.dataset)
        results = self._check()
        content = definition.to_dict(self.study) | {"seeds": seeds}
        files.write_json(self.folder.definition, content)
        total = len(self.study.arms) * seeds
        missing = [t for t in tasks if (t.arm, t.seed) not in results]
        self.log(
            f"Study {self.study.name}: {len(self.study.arms)} arms, {seeds} "
            f"seeds, {total} runs; {len(missing)} of {len(tasks)} to do here."
        )
        shown = progress.track(missing, f"Study {self.study.name}", unit="runs")
        for index, task in enumerate(shown):
            self._train(task, total, missing[index + 1 :])
        done = {(t.arm, t.seed) for t in plan_tasks(self.study, seeds)}
        left = len(done - self._check().keys())
        if left:
            self.log(f"{left} of {total} runs of the study are still missing.")
        return not left

    def _check(self) -> dict:
        """Reads all results, which must agree with the study and the code."""
        results = records.read_results(self.folder)
        configs = {arm: c.to_dict() for arm, c in self.configs.items()}
        records.check_agreement(results, configs, self.code)
        return results

    def _train(self, task: Task, total: int, later: Sequence[Task]) -> None:
        label = f"run {task.number} of {total}: {task.arm}, seed {task.seed}"
        path = self.folder.result(task.arm, task.seed)
        model_dir = self.folder.run(task.arm, task.seed)
        with files.locked(model_dir / LOCK) as lock:
            if lock.holder:
                self.log(f"{label}: {lock.holder} is at it; passed over")
                return
            if path.exists():
                self.log(f"{label}: done meanwhile")
                return
            self.log(
                f"{label}: begins; {self._time_left([task, *later])} left; "
                f"its output: {model_dir / LOG}"
            )
            result = self._run_once(task, model_dir, lock.descriptor)
            files.write_json(path, result)
        self.log(
            f"{label}: top-1 {result['test']['top1']:.2%}, "
            f"{format_seconds(result['times']['train_seconds'])} of training; "
            f"{self._time_left(later)} left"
        )

    def _run_once(self, task: Task, model_dir: pathlib.Path, lock: int):
        notes_path = model_dir / NOTES
        records.check_run_code(notes_path, self.code)
        notes = {"code": self.code, "wall_seconds": 0.0}
        if notes_path.exists():
            notes |= records.read_json(notes_path)
        files.write_json(notes_path, notes)
        arguments = train_command(self.study, task, model_dir, self.data_dir)
        commands = [arguments]
        batch_size = self.study.inference_batch_size
        if batch_size:
            commands.append(
                [
                    "-m",
                    "efficientnetv2.study.inference",
                    f"--model_dir={model_dir}",
                    f"--batch_size={batch_size}",
                ]
            )
        start = time.monotonic()
        try:
            for command in commands:
                self.run([sys.executable, *command], model_dir / LOG, lock)
        finally:
            notes["wall_seconds"] += time.monotonic() - start
            files.write_json(notes_path, notes)
        # Somebody may have edited the code while the run was under way.
        changed = records.changed_files(
            self.code, records.code_hashes(self.study.dataset)
        )
        if changed:
            raise StudyError(
                "The code was changed while a run used it: "
                f"{', '.join(changed)}. Take the change back, or begin anew in "
                "another --output_dir."
            )
        return make_result(
            self.study,
            task,
            self.configs[task.arm],
            model_dir,
            notes,
            _command_line(arguments),
        )

    def _time_left(self, tasks: Sequence[Task]) -> str:
        """Returns the time that runs will take, going by the finished ones."""
        results = records.read_results(self.folder)
        seconds = {
            key: result["times"]["wall_seconds"]
            for key, result in results.items()
        }
        total = 0.0
        for task in tasks:
            of_arm = [s for (arm, _), s in seconds.items() if arm == task.arm]
            known = of_arm or list(seconds.values())
            total += sum(known) / len(known) if known else float("nan")
        return format_seconds(total)


def make_result(
    study: Study,
    task: Task,
    config: ml_collections.ConfigDict,
    model_dir: pathlib.Path,
    notes: Mapping,
    command: str,
) -> dict:
    """Returns what is kept of a finished run: the content of its result.

    Args:
        study: of the run.
        task: the run.
        config: of its arm.
        model_dir: of the run.
        notes: 'code' and 'wall_seconds'.
        command: that trained it.

    Raises:
        StudyError: if the run has not left what it should.
    """
    metrics = records.read_json(model_dir / "metrics.json")
    if not metrics.get("finished"):
        raise StudyError(f"The run in {model_dir} ended without a result.")
    plan = config_lib.run_plan(config)
    resolved = config.to_dict()
    resolved["train"]["seed"] = task.seed
    resolved["data"]["data_dir"] = None
    stages = progressive.build_stages(config, plan)
    counts = counting.total(
        counting.count_stages(resolved["model"], config.eval.isize)
    )
    seconds = metrics["train_seconds"] - metrics["evaluation_seconds"]
    speed = None
    if study.inference_batch_size:
        speed = records.read_json(model_dir / inference.RESULT)
    return {
        "study": study.name,
        "arm": task.arm,
        "seed": task.seed,
        "dataset": study.dataset,
        "recipe": study.recipe,
        "overrides": study.hparam_str(study.arm(task.arm)),
        "command": command,
        "config": resolved,
        "num_images": plan.num_images,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "stages": [dataclasses.asdict(stage) for stage in stages],
        "model": {
            "parameters": counts.parameters,
            "trainable_parameters": counts.trainable,
            "multiply_adds": counts.multiply_adds,
            "image_size": config.eval.isize,
        },
        "test": metrics["test"],
        "best": metrics["best"],
        "curve": metrics["evaluations"],
        "times": {
            # Without evaluation.
            "train_seconds": seconds,
            "evaluation_seconds": metrics["evaluation_seconds"],
            "wall_seconds": notes["wall_seconds"],
        },
        "train_images_per_second": (
            plan.total_steps * config.train.batch_size / seconds
        ),
        "inference": speed,
        "environment": {
            key: metrics["environment"][key]
            for key in sorted(metrics["environment"].keys() - {"command"})
        },
        "machine": records.machine(),
        "code": dict(notes["code"]),
    }


if __name__ == "__main__":
    from efficientnetv2 import cli
    from efficientnetv2.commands import study as command

    cli.start(command, "python -m efficientnetv2.study.ablation")
