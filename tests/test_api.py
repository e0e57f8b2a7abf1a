"""The package as a Python user has it."""

import sys

import keras
import numpy as np
import pytest

import efficientnetv2
from efficientnetv2.errors import UserError
from tests.conftest import run_code


def test_the_import_waits_for_nothing():
    run_code("""
import sys
import efficientnetv2
assert {"build_model", "train"} <= set(dir(efficientnetv2))
config = efficientnetv2.load_config(
    "fashion_mnist", hparam_str="train.epochs=2")
assert config.train.epochs == 2
slow = {"tensorflow", "keras", "numpy", "matplotlib", "PIL"} & set(sys.modules)
assert not slow, slow
""")


def test_every_name_is_there():
    for name in efficientnetv2.__all__:
        assert getattr(efficientnetv2, name).__doc__, name
    # The module of that name was imported meanwhile.
    assert "efficientnetv2.train" in sys.modules
    assert efficientnetv2.train is efficientnetv2.api.train
    with pytest.raises(AttributeError, match="bild_model"):
        efficientnetv2.bild_model  # noqa: B018


class Steps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_train_evaluate_export_predict(tiny_config, source, tmp_path):
    config = tiny_config("train.epochs=2,train.stages=2")
    folder, lines, steps = tmp_path / "run", [], Steps()
    metrics = efficientnetv2.train(config, folder, [steps], lines.append)
    assert metrics["finished"] and metrics["test"]["images"] == 200
    assert len(steps.losses) == metrics["steps"] > 0
    assert np.isfinite(steps.losses).all()
    assert any("Exported" in line for line in lines)

    again = efficientnetv2.train(config, folder, log=lines.append)
    assert again == metrics and "is finished" in lines[-1]

    result = efficientnetv2.evaluate(folder, log=lines.append)
    assert result == metrics["test"]
    of_validation = efficientnetv2.evaluate(
        folder, "last", "eval.split=minival", lines.append
    )
    assert of_validation["split"] == "minival"
    assert of_validation["step"] == metrics["steps"]

    written = efficientnetv2.export(folder, ["keras"], log=lines.append)
    assert (folder / written["keras"]["file"]).is_file()
    assert written["keras"]["agreement"] == 1

    [best, *_], _ = efficientnetv2.predict(
        folder, np.repeat(source.images[:2], 3, axis=-1)
    )
    assert best.label in range(10) and best.probability >= 0.1
    with pytest.raises(UserError, match="no run"):
        efficientnetv2.evaluate(tmp_path)
