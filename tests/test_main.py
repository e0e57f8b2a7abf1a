"""The command line: exit codes and messages."""

import os
import subprocess
import sys

import pytest

from tests.conftest import TINY

pytestmark = pytest.mark.slow


def _run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "efficientnetv2.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ,
        timeout=300,
    )


def test_other_images_are_for_evaluation_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {ds_name: fashion_mnist}\n")
    result = _run(
        "--mode=report", "--dataset=cifar10", f"--model_dir={tmp_path}"
    )
    assert result.returncode == 2
    assert "a run on fashion_mnist" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset=fashion-mnist"], ["'fashion_mnist'"]),
        (["--recipe=fashion_mnst"], ["'fashion_mnist'"]),
        (["--model_name=efficientnetv2-z"], ["efficientnetv2-"]),
        (["--hparam_str=train.batchsize=3"], ["'train.batch_size'"]),
        (["--hparam_str=train.batch_size=x"], ["whole number"]),
        (["--hparam_str=train.epochs=0.001,train.stages=9"], ["train.stages"]),
        (["--hparam_str=train.isize=7"], ["at least 8"]),
        (["train"], ["'train'", "--name=value"]),
        (["--mode=predict"], ["train_and_eval"]),
        (["--modl_name=x"], ["model_name"]),
        (["--mode=export", "--formats=keras,onx"], ["'onnx'"]),
        (["--formats=keras"], ["--mode=export"]),
        (["--model_dir={file}", "--hparam_str=" + TINY], ["is a file"]),
        (["--mode=eval", "--model_dir={tmp}/none"], ["no run", "none"]),
        (
            ["--mode=export", "--dataset=fashion_mnist"],
            ["no run", "Train first"],
        ),
    ],
)
def test_mistakes_end_with_a_message(tmp_path, arguments, words):
    file = tmp_path / "file"
    file.write_text("")
    arguments = [
        argument.replace("{file}", str(file)).replace("{tmp}", str(tmp_path))
        for argument in arguments
    ]
    if not any("model_dir" in argument for argument in arguments):
        arguments.append(f"--model_dir={tmp_path / 'run'}")
    result = _run(*arguments)
    assert result.returncode in (1, 2), result
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()


def test_model_dir_is_needed():
    result = _run("--dataset=fashion_mnist")
    assert result.returncode == 2 and "--model_dir" in result.stderr


def test_data_that_cannot_be_obtained(tmp_path):
    result = _run(
        "--dataset=cifar10",
        "--hparam_str=train.batch_size=64",
        f"--data_dir={tmp_path / 'data'}",
        f"--model_dir={tmp_path / 'run'}",
    )
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    assert "cifar10" in result.stderr and "--data_dir" in result.stderr


def test_help_lists_the_flags():
    result = _run("--help")
    for name in (
        "dataset model_dir mode model_name recipe hparam_str data_dir seed "
        "checkpoint progressive_image_size adaptive_weight_decay "
        "adaptive_randaugment adaptive_mixing adaptive_dropout "
        "adaptive_regularization formats allow_disagreement"
    ).split():
        assert name in result.stdout


def test_a_program_imports_only_what_it_needs():
    """What TensorFlow and Keras could use elsewhere costs seconds."""
    code = """
import gc, sys
from efficientnetv2 import backend
with backend.importing_tensorflow():
    from efficientnetv2 import api
    assert not {"jax", "sklearn", "matplotlib"} & {*sys.modules}, "imported"
    # The page of the demo needs matplotlib.
    from efficientnetv2 import demo
import sklearn
assert gc.isenabled() and gc.get_freeze_count() > 10_000
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
