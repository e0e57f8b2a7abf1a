"""The command line: exit codes and messages."""

import pytest

from tests.conftest import TINY, run_code, run_program

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset=fashion-mnist"], ["'fashion_mnist'"]),
        (["--hparam_str=train.batchsize=3"], ["'train.batch_size'"]),
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
        (
            ["--mode=report", "--dataset=cifar10", "--model_dir={run}"],
            ["a run on fashion_mnist"],
        ),
        (["--model_dir="], ["Set --model_dir"]),
        (["--mode=eval", "--dry_run"], ["for training"]),
        (
            ["--dataset=cifar10", "--data_dir={tmp}/data"]
            + ["--hparam_str=train.batch_size=64"],
            ["cifar10", "--data_dir"],
        ),
    ],
)
def test_mistakes_end_with_a_message(tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.yaml").write_text("data: {ds_name: fashion_mnist}")
    places = {
        "file": tmp_path / "file",
        "tmp": tmp_path,
        "run": tmp_path / "old",
    }
    arguments = [argument.format(**places) for argument in arguments]
    if not any("model_dir" in argument for argument in arguments):
        arguments.append(f"--model_dir={tmp_path / 'run'}")
    result = run_program(*arguments)
    assert result.returncode in (1, 2), result
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    if "cifar10" not in words:
        assert not (tmp_path / "run").exists()


def test_help_lists_the_flags():
    result = run_program("--help")
    for name in (
        "dataset model_dir mode model_name recipe hparam_str data_dir seed "
        "checkpoint progressive_image_size adaptive_weight_decay "
        "adaptive_randaugment adaptive_mixing adaptive_dropout "
        "adaptive_regularization formats allow_disagreement"
    ).split():
        assert name in result.stdout


def test_a_program_imports_only_what_it_needs():
    """What TensorFlow and Keras could use elsewhere costs seconds."""
    run_code("""
import gc, sys
from efficientnetv2 import backend
with backend.importing_tensorflow():
    from efficientnetv2 import api
    assert not {"jax", "sklearn", "matplotlib"} & {*sys.modules}, "imported"
    # The page of the demo needs matplotlib.
    from efficientnetv2 import demo
import sklearn
assert gc.isenabled() and gc.get_freeze_count() > 10_000
""")
