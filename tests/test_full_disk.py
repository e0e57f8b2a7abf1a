"""A disk that fills up, or becomes read-only, under a run."""

import contextlib
import pathlib
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from efficientnetv2 import api, checkpoints, progress, runs
from efficientnetv2 import config as config_lib
from efficientnetv2.errors import UserError
from efficientnetv2.train import train_run
from tests.conftest import TINY, raises

pytestmark = pytest.mark.slow

MIB = 1 << 20
STEPS = 20
# A checkpoint has 0.3 MB, so that 2 MiB hold some and 64 MiB hold all.
OVERRIDES = (
    f"train.epochs={STEPS / 10},train.batch_size=20,train.stages=1,"
    "eval.val_split=null,"
    f"checkpoint.every_steps=1,checkpoint.keep={STEPS}"
)


class Disk:
    """64 MiB that are mounted in the namespace of another process.

    Attributes:
        folder: where they are seen from here.
        reason: what the system says when they are full.
    """

    reason = "No space left on device"

    def __init__(self, folder: pathlib.Path, shell: subprocess.Popen):
        self.folder = folder
        self.shell = shell

    def fill(self, leave: int = 0) -> None:
        """Takes all that is left but so many bytes."""
        size = MIB
        with open(self.folder / "filler", "ab", buffering=0) as file:
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
            file.truncate(file.tell() - leave)

    def start(self, command: list[str], model_dir) -> subprocess.Popen:
        """Starts a run that fills the disk with its checkpoints."""
        self.fill(leave=2 * MIB)
        return _start(command)

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def become_read_only(self) -> None:
        # Only the mount, which is what a user namespace may change.
        command = f"mount -o remount,bind,ro {_mount_point(self)}"
        assert _told(self.shell, command)


class Limits:
    """A limit on the size of files, where no disk can be mounted."""

    reason = "File too large"

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def start(self, command: list[str], model_dir) -> subprocess.Popen:
        process = _start(command)
        while not checkpoints.list_steps(model_dir):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        limits = (0, resource.RLIM_INFINITY)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
        return process

    def free(self) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    def become_read_only(self) -> None:
        pytest.skip("no disk can be mounted here")


def _start(command):
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _told(shell, command):
    """Whether a shell did a command."""
    try:
        shell.stdin.write(f"{command} && echo done || echo no\n".encode())
    except BrokenPipeError:
        return False
    return shell.stdout.readline() == b"done\n"


def _mount_point(disk):
    # /proc/PID/root/... is the path in the namespace of that process.
    return shlex.quote("/" + "/".join(disk.folder.parts[4:]))


@contextlib.contextmanager
def _mounted(point: pathlib.Path):
    """Gives a disk, or None; it is gone with the process that mounted it."""
    # Root may do without a user namespace where there are none.
    for options in (["--user", "--map-root-user"], []):
        try:
            shell = subprocess.Popen(
                ["unshare", "--mount", *options, "sh"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError:
            break
        with shell:
            disk = Disk(pathlib.Path(f"/proc/{shell.pid}/root{point}"), shell)
            if _told(
                shell, f"mount -t tmpfs -o size=64m tmpfs {_mount_point(disk)}"
            ):
                yield disk
                return
    yield None


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    with _mounted(point) as mounted:
        found = mounted or Limits(point)
        yield found
        if found is not mounted:
            found.free()


def test_a_disk_that_fills_while_a_run_trains(disk, photos):
    model_dir = disk.folder / "run"
    command = [
        *(sys.executable, "-m", "efficientnetv2.main", f"--dataset={photos}"),
        *("--recipe=fashion_mnist", f"--hparam_str={TINY},{OVERRIDES}"),
        *("--mode=train", f"--model_dir={model_dir}"),
    ]
    process = disk.start(command, model_dir)
    output, errors = process.communicate()
    assert process.returncode == 2, (output, errors)
    assert "Traceback" not in output + errors
    [message] = [
        line for line in errors.splitlines() if line.startswith("error:")
    ]
    assert message.startswith(f"error: Cannot write {model_dir}/")
    assert disk.reason in message and "rerun the command" in message

    last = checkpoints.load_latest(model_dir, pytest.fail)
    step = last.meta["step"]
    assert step == checkpoints.list_steps(model_dir)[-1]
    assert 0 < step < STEPS
    names = {p.suffix for p in checkpoints.folder(model_dir).iterdir()}
    assert names == {".npz"}, "half a checkpoint is left"

    disk.free()
    process = _start(command)
    output, errors = process.communicate()
    assert process.returncode == 0, (output, errors)
    assert f"Resuming at step {step} of {STEPS}." in output
    assert checkpoints.load_latest(model_dir).meta["step"] == STEPS


@pytest.mark.usefixtures("small_data")
def test_a_full_disk_is_not_taken_for_too_little_memory(disk, tiny_config):
    """TensorFlow's error for both is the same; TensorBoard's file meets it."""

    class Fill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                disk.fill()

    lines = []
    # No checkpoint is due before step 50.
    config = tiny_config("train.batch_size=4,train.epochs=1,train.stages=1")
    run = runs.Run(disk.folder / "run", lines.append, [Fill()])
    data = runs.Splits(config, run.log)
    words = re.escape(f"Cannot write {run.model_dir}/tensorboard: ")
    with pytest.raises(checkpoints.CheckpointError, match=words + disk.reason):
        with runs.claimed(run, config):
            train_run(config, data, run)
    assert "Out of memory" not in "\n".join(lines)


def _claim(run):
    config = config_lib.load("fashion_mnist", hparam_str=TINY)
    with runs.claimed(run, config):
        pass


def _fill_and_plot(run, disk):
    config = config_lib.load("fashion_mnist", hparam_str=TINY)
    with runs.claimed(run, config):
        disk.fill()
        (run.model_dir / "plot.png").write_bytes(bytes(MIB))


def _save(run):
    checkpoints.save(run.model_dir, {"a": np.ones(9999)}, {"step": 2}, keep=1)


def _write_events(run):
    with progress.Events(run.model_dir / "tensorboard") as events:
        for step in range(99):
            events.write(step, {"a": 1.0})


WRITES = {
    "config": _claim,
    "metrics": lambda run: run.update_metrics(value="long" * 9999),
    "checkpoint": _save,
    "events": _write_events,
}


@pytest.fixture
def run(disk):
    """A run on the disk that has a checkpoint."""
    run = runs.Run(disk.folder / "run")
    _claim(run)
    checkpoints.save(run.model_dir, {"a": np.ones(9)}, {"step": 1}, keep=3)
    return run


def _fails(write, *arguments, reason):
    where = arguments[0].model_dir
    with raises(UserError, "Cannot write", f": {reason}", where):
        write(*arguments)


@pytest.mark.parametrize("mode", ["eval", "report", "export"])
def test_a_finished_run_on_a_full_disk(disk, folder_run, mode):
    model_dir = disk.folder / "run"
    shutil.copytree(folder_run, model_dir)
    config = config_lib.load(saved=config_lib.read_saved(model_dir))
    disk.fill()
    what = "export to" if mode == "export" else "write"
    with raises(UserError, f"Cannot {what} {model_dir}", disk.reason):
        api.execute(config, model_dir, mode, formats=["saved_model", "keras"])


def test_all_that_a_run_writes_to_a_full_disk(disk, run):
    _fails(_fill_and_plot, run, disk, reason=disk.reason)
    disk.fill()
    for write in WRITES.values():
        _fails(write, run, reason=disk.reason)
    fresh = runs.Run(disk.folder / "fresh")
    _fails(_claim, fresh, reason=disk.reason)
    disk.free()
    assert checkpoints.load_latest(run.model_dir).meta["step"] == 1
    for write in WRITES.values():
        write(run)
    _claim(fresh)


def test_all_that_a_run_writes_to_a_disk_that_became_read_only(disk, run):
    disk.become_read_only()
    with pytest.raises(runs.RunError, match="not writable"):
        _claim(run)
    for name in ("metrics", "checkpoint", "events"):
        _fails(WRITES[name], run, reason="Read-only file system")
    assert checkpoints.load_latest(run.model_dir).meta["step"] == 1
