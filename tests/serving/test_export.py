"""Formats against Keras, each with its own runtime."""

import dataclasses
import json
import os
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import api, checkpoints
from efficientnetv2 import config as config_lib
from efficientnetv2.data import preprocessing, registry
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.models import architecture, weights
from efficientnetv2.serving import converters, export, formats
from efficientnetv2.serving import spec as spec_lib
from efficientnetv2.serving.export import Batch, Result
from efficientnetv2.serving.spec import ServingSpec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(folder_run):
    return config_lib.load(hparam_str=str(folder_run / "config.yaml"))


@pytest.fixture(scope="module")
def spec(config):
    names = registry.load_info(config.data.ds_name).class_names
    return ServingSpec.from_config(config, names)


@pytest.fixture(scope="module")
def network(config, folder_run):
    network = architecture.build_network(config.model.to_dict())
    best = checkpoints.read_checkpoint(
        checkpoints.find_checkpoint(folder_run, None)
    )
    weights.load_averaged(network, best)
    return network


@pytest.fixture(scope="module")
def batch(config, spec):
    source = export.sample(config, "eval", 30, print)
    return next(export.batches(source, config, spec.mode))


@pytest.fixture(scope="module")
def exported(config, folder_run, tmp_path_factory):
    """A copy of the run with all formats, and what was logged."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(folder_run, folder)
    before = os.stat(folder / "saved_model").st_ino
    lines = []
    api.execute(
        config, folder, "export", log=lines.append, formats=formats.FORMATS
    )
    assert os.stat(folder / "saved_model").st_ino != before
    return folder, "\n".join(lines)


def test_all_formats_are_compared_and_recorded(exported):
    folder, text = exported
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = metrics["exports"]
    kinds = [f"litert/{kind}" for kind in ("float32", "float16", "int8")]
    assert list(rows) == ["saved_model", "keras", *kinds, "onnx"]
    for name, row in rows.items():
        assert (folder / row["file"]).exists() and row["bytes"] > 1000
        assert row["images"] == 200 and row["step"] == metrics["steps"]
        assert row["keras_top1"] == metrics["test"]["top1"]
        assert row["agreement"] >= 0.995 or name == "litert/int8"
        assert row["max_difference"] < (0.2 if "int8" in name else 0.02)
        assert name in text and f"{row['top1']:.2%}" in text
    assert rows["onnx"]["opset"] == converters.OPSET
    size = {name: row["bytes"] for name, row in rows.items()}
    assert size["litert/int8"] < size["litert/float32"]
    assert not list(folder.glob(".export*"))
    assert metrics["finished"] and metrics["test"]


def test_served_bytes_and_pixels_equal_keras(exported, network, spec, batch):
    folder, _ = exported
    expected = export.keras_runner(network, spec)(batch)
    served = converters.load_saved_model(folder / "saved_model")
    images = np.stack([tf.io.decode_png(data, 3) for data in batch.raw])
    np.testing.assert_allclose(served(images), expected, atol=1e-5)
    np.testing.assert_allclose(served(batch.raw), expected, atol=1e-5)
    loaded = tf.saved_model.load(folder / "saved_model")
    labels = loaded.signatures["encoded"](image_bytes=batch.raw)["label"]
    names = (folder / "saved_model/assets/class_names.txt").read_text()
    assert names.splitlines() == list(spec.class_names)
    assert [label.decode() for label in labels.numpy()] == [
        spec.class_names[k] for k in expected.argmax(1)
    ]


def test_the_keras_file_says_how_it_is_used(
    exported, spec, network, batch, tmp_path
):
    path = exported[0] / "model.keras"
    assert spec_lib.read_record(path) == spec
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(
        loaded(batch.normalized), network(batch.normalized)
    )
    path = tmp_path / "plain.keras"
    network.save(path)
    assert spec_lib.read_record(path) is None
    path.write_bytes(b"PK")
    with pytest.raises(spec_lib.ServingError, match="truncated"):
        spec_lib.read_record(path)


def test_litert_files_run_on_a_phone(exported):
    """Static shapes, built-in operations, and pixels as input."""
    from ai_edge_litert.interpreter import Interpreter

    for kind in converters.LITERT_KINDS:
        path = exported[0] / "litert" / f"{kind}.tflite"
        runner = Interpreter(model_path=str(path)).get_signature_runner()
        given = runner.get_input_details()["images"]
        found = runner.get_output_details()["probabilities"]
        assert list(given["shape_signature"]) == [1, 24, 24, 3]
        expected = np.uint8 if kind == "int8" else np.float32
        assert given["dtype"] == found["dtype"] == expected
    assert given["quantization"] == (1.0, 0)
    assert found["quantization"] == (1 / 256, 0)


def test_onnx_takes_any_batch(exported, batch, network, spec):
    expected = export.keras_runner(network, spec)(batch)
    run = converters.load_onnx(exported[0] / "model.onnx")
    for count in (1, 7):
        np.testing.assert_allclose(
            run(batch.pixels[:count]), expected[:count], atol=1e-5
        )


@pytest.mark.parametrize("mode", preprocessing.MODES)
def test_pixels_are_normalized_in_the_graph(mode, network, spec, batch):
    pixels = batch.pixels[:4]
    found = converters.freeze(
        network, dataclasses.replace(spec, mode=mode), batch=4
    )(pixels)["probabilities"]
    normalized = preprocessing.normalize(pixels, mode)
    expected = spec.probabilities(network(normalized))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(
        preprocessing.to_pixels(normalized, mode), pixels, atol=1e-3
    )


def test_independent_classes_have_a_sigmoid(config, spec):
    flat = config.to_dict()
    flat["train"]["loss_type"] = "sigmoid"
    flat["model"]["num_classes"] = 12
    wider = ServingSpec.from_config(flat, spec.class_names)
    assert wider.class_names[9:] == ["class 9", "class 10", "class 11"]
    probabilities = wider.probabilities(tf.constant([[0.0, 2.0]]))
    np.testing.assert_allclose(probabilities, [[0.5, 0.880797]], rtol=1e-5)


def test_what_disagrees_is_not_written(
    config, folder_run, tmp_path, monkeypatch
):
    def wrong(path):
        return lambda pixels: np.eye(10, dtype=np.float32)[[3] * len(pixels)]

    def exports():
        return json.loads((run / "metrics.json").read_text())["exports"]

    monkeypatch.setattr(converters, "load_onnx", wrong)
    run = tmp_path / "run"
    shutil.copytree(folder_run, run)
    options = {"formats": ["onnx", "keras"], "log": lambda _: None}
    with pytest.raises(export.ExportError, match="onnx: 1.*% of") as error:
        api.execute(config, run, "export", **options)
    assert error.value.exit_code == 1
    assert not (run / "model.onnx").exists()
    assert (run / "model.keras").exists() and list(exports()) == ["keras"]
    api.execute(config, run, "export", **options, allow_disagreement=True)
    assert exports()["onnx"]["agreement"] < 0.2
    assert (run / "model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "agreement", "top1", "is_fault"),
    [
        ("onnx", 0.995, 0.5, False),
        ("onnx", 0.994, 0.9, True),
        ("litert/int8", 0.9, 0.891, False),
        ("litert/int8", 0.999, 0.889, True),
    ],
)
def test_limits(name, agreement, top1, is_fault):
    result = Result(1000, agreement, top1, 0.9, 0.1)
    assert bool(export._fault(name, result)) == is_fault


def test_labels_that_are_vectors_count():
    examples = np.eye(3, dtype=np.float32)

    def runner(batch: Batch):
        return batch.normalized

    labels = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 1]], np.float32)
    batch = Batch(examples, examples, [], labels)
    (result,) = export.compare(runner, {"same": runner}, iter([batch])).values()
    assert result == Result(3, 1.0, 2 / 3, 2 / 3, 0.0)


def test_no_images_to_compare_on(config, network, spec, tmp_path, monkeypatch):
    def missing(*_):
        raise DataError("The folder is gone.")

    monkeypatch.setattr(export, "sample", missing)
    arguments = (network, config, spec.class_names, tmp_path, ["keras"])
    with pytest.raises(DataError, match="gone.*--allow_disagreement"):
        export.export_formats(*arguments, log=lambda _: None)
    assert not list(tmp_path.iterdir())
    written, faults = export.export_formats(
        *arguments, allow_disagreement=True, log=lambda _: None
    )
    assert set(written["keras"]) == {"file", "bytes"} and not faults
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert archive.testzip() is None


def test_a_failed_export_leaves_what_was_there(
    config, network, spec, tmp_path, monkeypatch
):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model/old").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converters, "write_saved_model", full)
    with pytest.raises(export.ExportError, match="No space left"):
        export.replace_saved_model(network, spec, tmp_path / "saved_model")
    assert [p.name for p in tmp_path.iterdir()] == ["saved_model"]
    assert (tmp_path / "saved_model/old").read_text() == "old"


def test_missing_packages_and_unknown_formats(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _: None)
    formats.check_formats(["saved_model", "keras"])
    for names, words in (
        (["onnx"], "pip install onnx tf2onnx onnxrun"),
        (["litrt"], "'litert'"),
        ([], "No format"),
    ):
        with pytest.raises(UserError, match=words):
            formats.check_formats(names)
