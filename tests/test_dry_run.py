"""Before and after a run: its estimated cost, and what to type next."""

import pathlib
import shlex
import sys
import types

import numpy as np
import pytest

from efficientnetv2 import api, formatting, notices, runs, speed
from efficientnetv2 import config as config_lib
from tests.conftest import run_program


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_a_dry_run_measures_and_writes_nothing(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    lines = []
    config = tiny_config("train.epochs=1,train.stages=2")
    seconds = speed.dry_run(config, lines.append)
    text = "\n".join(lines)
    assert 0 < seconds < 600
    assert "10 classes, 200 images to train (train), 200 images" in text
    assert "6 steps per epoch, 6 in all" in text
    assert "parameters" in text and "multiply-adds" in text
    assert "Augment" in text and "In all stages: " in text
    [measured] = [line for line in lines if line.startswith("Training, mea")]
    assert measured.count(";") == 1  # of two stages
    assert "GiB" in text and "Estimated time of the whole run: " in text
    assert not list(tmp_path.iterdir())


def test_the_estimate_adds_up_the_run(tiny_config):
    text = "train.epochs=2,train.stages=2,eval.every_epochs=1"
    config = config_lib.load("fashion_mnist", hparam_str=text)
    plan = config_lib.run_plan(config)
    # 429 steps of 128 images in each stage; 5,000 images twice, 10,000 once.
    expected = 30 + 429 * 128 / 100 + 429 * 128 / 50 + 20_000 / 1000
    assert notices.measured_seconds(
        config, plan, [100.0, 50.0], 1000.0, 30.0
    ) == pytest.approx(expected)


def test_a_slow_choice_is_announced(monkeypatch):
    monkeypatch.setattr(notices, "lacks_accelerator", lambda: True)

    def warning(*arguments, **kwargs):
        config = config_lib.load(*arguments, **kwargs)
        plan = config_lib.run_plan(config)
        seconds = notices.expected_seconds(config, plan, 2)
        return notices.slow_warning(config, plan, seconds)

    assert warning("fashion_mnist") is None
    slow = {"model_name": "efficientnetv2-b0"}
    overrides = "train.isize=224,eval.isize=224,data.ibase=224,train.epochs=9"
    text = warning("fashion_mnist", hparam_str=overrides, **slow)
    # 9 epochs of 55,000 images at 17 images/s.
    assert "about 8.1 hours" in text and "224 pixels" in text
    assert "--model_name=efficientnetv2-pico" in text
    assert "train.ft_init_ckpt" in text
    monkeypatch.setattr(notices, "lacks_accelerator", lambda: False)
    assert warning("fashion_mnist", hparam_str=overrides, **slow) is None


def test_one_device_is_no_mirror(tiny_config):
    from efficientnetv2.engines import strategies

    def described(**flags):
        config = tiny_config(flags=flags)
        strategy = types.SimpleNamespace(num_replicas_in_sync=1)
        return strategies.describe_devices(config, strategy, 1)

    assert "changes nothing" in described(**{"runtime.strategy": "mirrored"})
    assert "changes nothing" not in described()


def test_the_weakest_classes_come_first():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 0, 1, 1, 0, 2])
    names = ["ankle boot", "bag", "coat", "dress"]
    assert notices.class_table(labels, predicted, names).splitlines() == [
        "class        top-1  correct  images",
        "bag          50.0%        1       2",
        "ankle boot   75.0%        3       4",
        "coat        100.0%        1       1",
    ]
    many = np.arange(25)
    text = notices.class_table(many, many, [str(k) for k in many])
    assert text.splitlines()[-1] == "and 5 classes with a higher top-1"


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_a_run_ends_with_classes_and_commands(tiny_config, tmp_path):
    lines = []
    config = tiny_config("train.epochs=1,train.stages=1")
    folder = tmp_path / "a run"
    api.execute(config, folder, log=lines.append)
    text = "\n".join(lines)
    assert "class 3" in text and "top-1  correct  images" in text
    # Long ones are broken as a shell takes it.
    commands = lines[-1].replace("\\\n", "").splitlines()
    head, report, prediction, board = commands
    assert head == "Next:"
    report, prediction, board = map(shlex.split, (report, prediction, board))
    assert pathlib.Path(report[-1]).is_file()
    assert board[-1] == f"--logdir={folder}"
    # Ready to paste.
    at = prediction.index("predict")
    result = run_program(*prediction[at:], module="efficientnetv2")
    assert result.returncode == 0, result.stderr
    assert "class " in result.stdout


def test_an_image_in_a_file_is_the_example(folder_run):
    config = config_lib.load(saved=config_lib.read_saved(folder_run))
    source = runs.Splits(config, print)[config.eval.split]
    path = pathlib.Path(notices.example_image(folder_run, source))
    assert path.is_relative_to(folder_run.parent / "photos/val")


def test_what_to_type_for_a_program(monkeypatch, tmp_path):
    folder = tmp_path / "env/bin"
    folder.mkdir(parents=True)
    for name in ("python", "efficientnetv2"):
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert formatting.program() == "env/bin/efficientnetv2"
    assert formatting.program("tensorboard") == (
        "env/bin/python -m tensorboard"
    )
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin")
    assert formatting.program() == "efficientnetv2"
    monkeypatch.setattr(
        sys, "argv", ["efficientnetv2 train", "--hparam_str=a=b|c"]
    )
    assert formatting.command_line() == (
        "efficientnetv2 train '--hparam_str=a=b|c'"
    )
