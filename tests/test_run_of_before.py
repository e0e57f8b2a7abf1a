"""A run folder that commit 8313338 left is still of use.

The archive holds a folder of tiny images and a run on it that was interrupted
after step 3 of 8; the figures are what that commit reported.
"""

import pathlib
import shutil

import numpy as np
import pytest

from efficientnetv2 import api, checkpoints
from efficientnetv2 import config as config_lib
from efficientnetv2.serving import predict

ARCHIVE = pathlib.Path(__file__).parent / "testdata" / "run_of_8313338.zip"


def test_it_evaluates_predicts_exports_and_resumes(tmp_path, monkeypatch):
    shutil.unpack_archive(ARCHIVE, tmp_path)
    monkeypatch.chdir(tmp_path)
    result = api.evaluate("run", log=lambda _: None)
    assert (result["checkpoint"], result["step"]) == ("best.npz", 2)
    assert (result["top1"], result["images"]) == (0.0, 8)
    assert result["cross_entropy"] == pytest.approx(0.69665504, abs=1e-6)
    image = pathlib.Path("photos/val/dark/0.png").read_bytes()
    probabilities = predict.load_classifier("run").classify([image])
    assert probabilities.shape == (1, 2)
    api.export("run", log=lambda _: None)
    exported = predict.load_classifier("run/saved_model").classify([image])
    np.testing.assert_allclose(exported, probabilities, atol=1e-5)
    config = config_lib.load("photos", hparam_str="run/config.yaml")
    lines = []
    api.execute(config, "run", mode="train", log=lines.append)
    assert "Resuming at step 3 of 8." in lines
    last = checkpoints.load_latest("run")
    assert last.meta["step"] == last.arrays["step"] == 8
    evaluations = last.meta["history"]["evaluations"]
    assert [each["step"] for each in evaluations] == [2, 4, 6, 8]
