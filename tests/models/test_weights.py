"""Weights in and out of other people's formats."""

import hashlib
import http.server
import os
import pathlib
import pickle
import shutil
import sys
import tarfile
import threading
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import efficientnetv2
from efficientnetv2 import checkpoints
from efficientnetv2.models import naming, weights
from efficientnetv2.models.naming import WeightsError
from efficientnetv2.models.weights import published, pytorch_v1

TIMM = pathlib.Path(__file__).parents[1] / "testdata" / "timm"
SLIM = {"num_classes": 10, "width_coefficient": 0.25, "feature_size": 320}
TINY = {
    "num_classes": 4,
    "blocks": [
        "r1_k3_s1_e1_i8_o8_c1",
        "r2_k3_s2_e2_i8_o16_c1",
        "r2_k3_s2_e2_i16_o16_se0.25",
    ],
    "feature_size": 24,
}


def _slim(**options):
    return efficientnetv2.build_model("efficientnetv2-b0", **SLIM, **options)


def _tiny(**options):
    return efficientnetv2.build_model(
        "efficientnetv2-b0", **{**TINY, **options}
    )


def _randomize(model, seed=0):
    random = np.random.default_rng(seed)
    for variable in model.weights:
        path, shape = variable.path, variable.shape
        if "normalization" in path.split("/")[0] or "seed" in path:
            continue
        if variable.name == "kernel":
            fan_in = np.prod(shape[:2] if "dwconv" in path else shape[:-1])
            values = random.normal(size=shape) * (1.5 / fan_in) ** 0.5
        elif variable.name in ("gamma", "moving_variance"):
            values = random.uniform(0.5, 1.5, shape)
        else:
            values = random.normal(size=shape) * 0.2
        variable.assign(values.astype(np.float32))


def _logits(model, images):
    return np.asarray(model(images))


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3))


@pytest.fixture(scope="module")
def slim():
    return _slim()


@pytest.mark.parametrize(
    ("folder", "ema", "key"),
    [
        ("tf1_slim", False, "logits"),
        ("tf1_slim", True, "logits_ema"),
        ("tf1_slim", None, "logits_ema"),
        ("tf2_slim", None, "logits"),
    ],
)
def test_checkpoints_of_the_reference(reference, slim, folder, ema, key):
    report = efficientnetv2.load_weights(slim, reference / folder, ema=ema)
    assert len(report.loaded) == 361 and not report.skipped
    assert not report.surprises, report
    with np.load(reference / folder / "io.npz") as io:
        np.testing.assert_allclose(
            _logits(slim, io["images"]), io[key], atol=1e-5
        )


def test_a_checkpoint_by_prefix_index_and_folder(reference, slim):
    prefix = reference / "tf2_slim" / "ckpt-1"
    for path in (prefix, f"{prefix}.index", prefix.parent):
        assert len(efficientnetv2.load_weights(slim, path).loaded) == 361


def test_reference_checkpoint_round_trip(reference, slim, tmp_path):
    efficientnetv2.load_weights(slim, reference / "tf1_slim")
    prefix = efficientnetv2.to_reference_checkpoint(
        slim, tmp_path / "out" / "model.ckpt"
    )
    theirs, ours = (
        dict(tf.train.list_variables(str(path)))
        for path in (reference / "tf1_slim" / "model.ckpt-0", prefix)
    )
    # By two names: main.py reads one, get_model and converters the other.
    scope = "efficientnetv2-b0/head"
    for name in [name for name in theirs if "head_1/dense" in name]:
        theirs[name.replace("head_1", "head")] = theirs[name]
    assert len([name for name in theirs if f"{scope}/dense" in name]) == 4
    assert ours == theirs
    again = _slim(weights=prefix.parent, ema=False)
    for one, other in zip(slim.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def _tensors(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names}


def _write_tensors(prefix, tensors):
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


def test_group_normalization_both_ways(tmp_path, images):
    """Names that the released code gave on TensorFlow 2.15.1.

    main.py, `get_model` and `restore_tf2_ckpt` read them there.
    """
    model = _tiny(bn_type="gn")
    _randomize(model)
    prefix = efficientnetv2.to_reference_checkpoint(model, tmp_path / "ours")
    tensors = _tensors(prefix)
    names = {f"stem/group_normalization/{k}" for k in ("gamma", "beta")}
    names |= {f"head/group_normalization_1/{k}" for k in ("gamma", "beta")}
    names |= {f"blocks_1/tpu_batch_normalization_1/{k}" for k in ("gamma",)}
    assert {f"efficientnetv2-b0/{name}" for name in names} <= tensors.keys()
    assert not any("moving" in name for name in tensors)
    # As main.py writes them: each once, the head's numbered.
    theirs = {
        name: value
        for name, value in tensors.items()
        if "head/dense" not in name and "head/group_normalization/" not in name
    }
    again = _tiny(bn_type="gn")
    report = efficientnetv2.load_weights(
        again, _write_tensors(tmp_path / "theirs", theirs)
    )
    assert not report.surprises
    np.testing.assert_array_equal(
        _logits(again, images), _logits(model, images)
    )
    # An earlier version of this project wrote another name.
    earlier = {
        name.replace(
            "group_normalization_1", "tpu_batch_normalization"
        ).replace("group_normalization", "tpu_batch_normalization"): value
        for name, value in theirs.items()
    }
    again = _tiny(
        bn_type="gn", weights=_write_tensors(tmp_path / "earlier", earlier)
    )
    np.testing.assert_array_equal(
        _logits(again, images), _logits(model, images)
    )


def test_an_optimizer_is_no_surprise(reference, slim, tmp_path):
    """Names as Keras' RMSProp of TensorFlow 2.15.1 left them."""
    tensors = _tensors(reference / "tf2_slim" / "ckpt-1")
    tensors = {k: v for k, v in tensors.items() if "_CHECKPOINTABLE" not in k}
    for name in (*(f"_variables/{k}" for k in range(486)), "_iterations"):
        name = f"optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        tensors[name] = np.zeros(3, np.float32)
    tensors["optimizer/_learning_rate/.ATTRIBUTES/VARIABLE_VALUE"] = 0.1
    tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = b""
    report = efficientnetv2.load_weights(
        slim, _write_tensors(tmp_path / "ckpt-1", tensors)
    )
    assert not report.surprises
    assert "not used: 488 variables of the optimizer" in str(report)
    tensors["extra/kernel/.ATTRIBUTES/VARIABLE_VALUE"] = np.zeros(2)
    report = efficientnetv2.load_weights(
        slim, _write_tensors(tmp_path / "ckpt-2", tensors)
    )
    assert report.surprises and "extra/kernel" in str(report)


@pytest.mark.parametrize(
    ("theirs", "ours", "preprocessing"),
    [
        ("EfficientNetV2B0", "efficientnetv2-b0", True),
        ("EfficientNetB0", "efficientnet-b0", None),
    ],
)
def test_keras_applications_both_ways(
    theirs, ours, preprocessing, images, tmp_path
):
    theirs = getattr(keras.applications, theirs)(
        weights=None,
        classes=7,
        classifier_activation=None,
        input_shape=(64, 64, 3),
    )
    _randomize(theirs)
    # V1's Normalization layer is without data here, so only its division by
    # 255 is left.
    inputs = images if preprocessing else images / 255
    expected = _logits(theirs, images)
    bound = 1e-4 * np.abs(expected).max()
    model = efficientnetv2.build_model(
        ours,
        num_classes=7,
        weights=theirs,
        include_preprocessing=preprocessing or False,
    )
    np.testing.assert_allclose(_logits(model, inputs), expected, atol=bound)

    for name in ("new.weights.h5", "old.h5", "whole.keras"):
        path = tmp_path / name
        if name == "new.weights.h5":
            theirs.save_weights(path)
        else:
            theirs.save(path)
        for variable in model.weights:
            variable.assign(keras.ops.zeros_like(variable))
        report = efficientnetv2.load_weights(model, path)
        assert len(report.loaded) == len(model.weights) - sum(
            "seed" in variable.path for variable in model.weights
        )
        np.testing.assert_allclose(_logits(model, inputs), expected, atol=bound)

    _randomize(theirs, seed=5)
    assert np.abs(_logits(theirs, images) - expected).max() > bound
    efficientnetv2.to_keras_applications(model, theirs)
    np.testing.assert_array_equal(_logits(theirs, images), expected)


def test_v1_b3_takes_either_rounding():
    """Its first stage has 16 channels in the released code, 24 in Keras."""
    shallow = {"depth_coefficient": 0.1, "num_classes": 3}
    ours = efficientnetv2.build_model("efficientnet-b3", **shallow)
    theirs = efficientnetv2.build_model(
        "efficientnet-b3", round_limit=0.9, **shallow
    )
    for source, channels in ((ours, 16), (theirs, 24)):
        model = efficientnetv2.build_model(
            "efficientnet-b3", weights=source, **shallow
        )
        assert model.get_layer("blocks_0").output.shape[-1] == channels
    with pytest.raises(WeightsError, match=r"\(1, 1, 40, 24\)"):
        efficientnetv2.build_model(
            "efficientnet-b3", weights=theirs, round_limit=None, **shallow
        )


def test_keras_2_weights_file(tmp_path):
    """Their published files: one group a layer, 'kernel:0', old names."""
    import h5py

    theirs = keras.applications.EfficientNetV2B0(weights=None, classes=3)
    _randomize(theirs)
    with h5py.File(tmp_path / "b0.h5", "w") as file:
        layers = [layer for layer in theirs.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = []
            for variable in layer.weights:
                attribute = variable.name
                if "dwconv" in layer.name:
                    attribute = "depthwise_kernel"
                names.append(f"{layer.name}/{attribute}:0")
                group[names[-1]] = np.asarray(variable)
            group.attrs["weight_names"] = [name.encode() for name in names]
    model = efficientnetv2.build_model(
        "efficientnetv2-b0", num_classes=3, weights=tmp_path / "b0.h5"
    )
    again = keras.applications.EfficientNetV2B0(weights=None, classes=3)
    efficientnetv2.to_keras_applications(model, again)
    for one, other in zip(theirs.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pytorch_image_models():
    model = efficientnetv2.build_model(
        "efficientnetv2-b0",
        num_classes=5,
        width_coefficient=0.125,
        depth_coefficient=0.3,
        weights=TIMM / "slim.safetensors",
    )
    with np.load(TIMM / "io.npz") as io:
        np.testing.assert_allclose(
            _logits(model, io["images"]), io["logits"], atol=1e-5
        )


def test_a_run_and_its_checkpoint(tmp_path, images):
    model, average = _tiny(), _tiny()
    _randomize(average)
    arrays = {}
    for group, network in (("network", model), ("ema", average)):
        for variable in network.weights:
            arrays[f"{group}/{variable.path}"] = np.asarray(variable)
    path = checkpoints.save(tmp_path, arrays, {"step": 3}, keep=1)
    for source in (tmp_path, path):
        loaded = _tiny(weights=source)
        np.testing.assert_array_equal(
            _logits(loaded, images), _logits(average, images)
        )
    raw = _tiny(weights=path, ema=False)
    np.testing.assert_array_equal(_logits(raw, images), _logits(model, images))


@pytest.mark.parametrize("name", ["own.keras", "own.weights.h5"])
def test_files_of_this_package(tmp_path, images, name):
    model = _tiny()
    _randomize(model)
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else model.save(path)
    again = _tiny(weights=path)
    np.testing.assert_array_equal(
        _logits(model, images), _logits(again, images)
    )
    other = _tiny(blocks=["r1_k3_s1_e1_i8_o8_c1"])
    before = other.get_weights()
    with pytest.raises(WeightsError, match="unchanged"):
        efficientnetv2.load_weights(other, path)
    for one, two in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_classifier_of_another_size_only_when_asked(reference):
    folder = reference / "tf1_slim"
    model = efficientnetv2.build_model(
        "efficientnetv2-b0", **{**SLIM, "num_classes": 3}
    )
    before = model.get_weights()
    with pytest.raises(WeightsError) as error:
        efficientnetv2.load_weights(model, folder)
    text = str(error.value)
    for word in ("model.ckpt-0", "(80, 10)", "(80, 3)", "skip_classifier"):
        assert word in text
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    report = efficientnetv2.load_weights(model, folder, skip_classifier=True)
    assert report.skipped == ["logits/kernel", "logits/bias"]
    assert any("head_1/dense" in name for name in report.unused)


def test_unused_weights_are_named(reference):
    model = _slim(include_top=False)
    report = efficientnetv2.load_weights(model, reference / "tf2_slim")
    assert "_fc/kernel/.ATTRIBUTES/VARIABLE_VALUE" in report.unused
    assert "_fc/kernel" in str(report) and report.surprises


def _damage(path, reference, kind):
    """Writes a bad source and returns its path."""
    source = reference / "tf1_slim"
    prefix = path / "model.ckpt-0"
    if kind == "empty folder":
        return path
    if kind == "nothing":
        return path / "absent"
    if kind == "text":
        (path / "notes.txt").write_text("no weights")
        return path / "notes.txt"
    if kind == "pickle":
        (path / "model.pth").write_bytes(b"\x80\x04N.")
        return path / "model.pth"
    if kind.startswith("short "):
        suffix = kind.removeprefix("short ")
        (path / f"a{suffix}").write_bytes(b"\x89HDF\r\n\x1a\n" + b"a" * 40)
        return path / f"a{suffix}"
    if kind == "state without index":
        (path / "checkpoint").write_text('model_checkpoint_path: "gone"\n')
        return path
    for file in source.iterdir():
        shutil.copy(file, path)
    cut = {"cut data": "data-00000-of-00001", "cut index": "index"}[kind]
    file = pathlib.Path(f"{prefix}.{cut}")
    os.chmod(file, 0o644)
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size // 3)
    return path


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("empty folder", "has no checkpoint"),
        ("nothing", "no weights at"),
        ("text", "no known format"),
        ("pickle", "cut short"),
        ("short .h5", "cut short"),
        ("short .keras", "cut short"),
        ("short .safetensors", "cut short"),
        ("short .npz", "cut short"),
        ("short .weights.h5", "cut short"),
        ("state without index", "is missing"),
        ("cut data", "cut short"),
        ("cut index", "cut short"),
    ],
)
def test_bad_sources_leave_the_model_alone(
    reference, slim, tmp_path, kind, word
):
    path = _damage(tmp_path, reference, kind)
    before = slim.get_weights()
    with pytest.raises(WeightsError, match=word) as error:
        efficientnetv2.load_weights(slim, path)
    assert str(tmp_path) in str(error.value)
    for one, two in zip(before, slim.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_foreign_checkpoints(slim, tmp_path):
    tf.train.Checkpoint(a=tf.Variable(1.0)).save(tmp_path / "tf" / "ckpt")
    with pytest.raises(WeightsError, match="not of an EfficientNet"):
        efficientnetv2.load_weights(slim, tmp_path / "tf")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(WeightsError, match="stem_conv/kernel"):
        efficientnetv2.load_weights(slim, other)
    other.save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match=r"other\.keras"):
        efficientnetv2.load_weights(slim, tmp_path / "other.keras")
    import safetensors.numpy

    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match="conv_stem"):
        efficientnetv2.load_weights(slim, path)
    with pytest.raises(WeightsError, match="not built by"):
        efficientnetv2.load_weights(other, path)
    theirs = keras.applications.EfficientNetV2B0(weights=None, classes=10)
    before = theirs.get_weights()
    with pytest.raises(WeightsError, match="unchanged"):
        efficientnetv2.to_keras_applications(slim, theirs)
    for one, two in zip(before, theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


# --- PyTorch ----------------------------------------------------------------


@pytest.fixture
def torch_file(tmp_path, monkeypatch):
    """Returns a function that writes a state dict as PyTorch does.

    Args: a model of ours, whether in the format since 1.6, and further
    entries. PyTorch itself is not needed.
    """
    rebuild = types.FunctionType(
        (lambda *_: None).__code__, {}, "_rebuild_tensor_v2"
    )
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", rebuild.__name__
    storage = type("FloatStorage", (), {"__module__": "torch"})
    for name, attributes in (
        ("torch", {"FloatStorage": storage}),
        ("torch._utils", {"_rebuild_tensor_v2": rebuild}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    class Tensor:
        def __init__(self, key, array):
            self.key, self.array = key, array

        def __reduce__(self):
            strides = [s // 4 for s in self.array.strides]
            return rebuild, (
                ("storage", self.key, self.array.size),
                0,
                self.array.shape,
                tuple(strides),
                False,
                {},
            )

    class Pickler(pickle.Pickler):
        def persistent_id(self, each):
            if isinstance(each, tuple) and each[:1] == ("storage",):
                return "storage", storage, each[1], "cpu", each[2]

    def dump(content, file):
        Pickler(file, protocol=2).dump(content)

    def write(model, zipped=False, **further):
        arrays, content = {}, dict(further)
        for slot in naming.slots(model):
            array = np.asarray(slot.variable)
            if array.ndim == 4:
                depthwise = slot.layer == "depthwise_conv"
                order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                array = array.transpose(order)
            elif array.ndim == 2:
                array = array.T
            (name,) = pytorch_v1.names(slot)
            arrays[str(len(arrays))] = array = np.ascontiguousarray(array)
            content[name] = Tensor(str(len(arrays) - 1), array)
        path = tmp_path / "model.pth"
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                with archive.open("model/data.pkl", "w") as file:
                    dump(content, file)
                for key, array in arrays.items():
                    archive.writestr(f"model/data/{key}", array.tobytes())
            return path
        with open(path, "wb") as file:
            for each in (0x1950A86A20F9469CFC6C, 1001, {}, content):
                dump(each, file)
            dump(list(arrays), file)
            for array in arrays.values():
                file.write(np.int64(array.size).tobytes() + array.tobytes())
        return path

    return write


V1 = {
    "num_classes": 5,
    "blocks": ["r1_k3_s1_e1_i8_o8_se0.25", "r2_k5_s2_e2_i8_o16_se0.25"],
    "feature_size": 24,
}


@pytest.mark.parametrize("zipped", [False, True])
def test_the_pytorch_port_of_v1(torch_file, images, zipped):
    model = efficientnetv2.build_model("efficientnet-b0", **V1)
    _randomize(model)
    path = torch_file(model, zipped)
    again = efficientnetv2.build_model("efficientnet-b0", weights=path, **V1)
    np.testing.assert_array_equal(
        _logits(again, images), _logits(model, images)
    )
    names = {
        name for slot in naming.slots(model) for name in pytorch_v1.names(slot)
    }
    assert {
        "_conv_stem.weight",
        "_blocks.0._depthwise_conv.weight",
        "_blocks.1._bn0.running_mean",
        "_blocks.1._se_reduce.bias",
        "_blocks.2._bn2.weight",
        "_bn1.running_var",
        "_fc.bias",
    } <= names
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(WeightsError, match="cut short"):
        efficientnetv2.load_weights(again, path)


def test_a_pickle_with_code_is_refused(torch_file):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/evil",)

    model = efficientnetv2.build_model("efficientnet-b0", **V1)
    with pytest.raises(WeightsError, match=r"could run code.*posix\.system"):
        efficientnetv2.load_weights(model, torch_file(model, extra=Evil()))
    with pytest.raises(WeightsError, match="no state dict"):
        efficientnetv2.load_weights(model, torch_file(model, extra=3))


def test_a_new_file_is_a_new_format(tmp_path, monkeypatch, images):
    (tmp_path / "raw.py").write_text(
        """
import contextlib
import numpy as np
from efficientnetv2.models import naming, weights

def recognizes(path):
    return path.suffix == ".raw"

@contextlib.contextmanager
def opened(path, ema):
    arrays = np.load(path.open("rb"))
    shapes = {name: arrays[name].shape for name in arrays.files}
    yield weights.Source(
        str(path), shapes, arrays.__getitem__, lambda slot: [slot.path]
    )
"""
    )
    monkeypatch.setattr(weights, "__path__", [*weights.__path__, str(tmp_path)])
    model = _tiny()
    _randomize(model)
    arrays = {s.path: np.asarray(s.variable) for s in naming.slots(model)}
    with open(tmp_path / "model.raw", "wb") as file:
        np.savez(file, **arrays)
    again = _tiny(weights=tmp_path / "model.raw")
    np.testing.assert_array_equal(
        _logits(again, images), _logits(model, images)
    )


# --- Published weights ------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves an archive in the published layout; returns what was asked."""
    root = tmp_path / "web" / "v2"
    root.mkdir(parents=True)
    model = _slim()
    _randomize(model)
    inside = tmp_path / "efficientnetv2-b0"
    efficientnetv2.to_reference_checkpoint(model, inside / "model")
    archive = root / "efficientnetv2-b0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(inside, inside.name)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "web"))

        def log_message(self, *_):
            asked.append(self.path)

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        published, "_BASE", f"http://127.0.0.1:{web.server_port}"
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    yield model, archive, asked
    web.shutdown()
    web.server_close()


def test_published_weights_are_cached_and_verified(server, tmp_path, capfd):
    model, archive, asked = server

    def build():
        return _slim(weights="imagenet")

    def assert_right(loaded):
        for one, two in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(one, two)

    assert_right(build())
    assert len(asked) == 1
    assert "100%" in capfd.readouterr().err
    cached = tmp_path / "home" / "models" / archive.name
    note = cached.with_name(f"{cached.name}.sha256")
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    assert note.read_text().strip() == digest
    assert_right(build())
    assert len(asked) == 1
    # Damage is noticed, and the archive fetched again.
    cached.write_bytes(cached.read_bytes()[:-9])
    assert_right(build())
    assert len(asked) == 2
    # Without a note the archive may be half of one.
    note.unlink()
    cached.write_bytes(b"half")
    assert_right(build())
    assert len(asked) == 3
    # Another archive at the same address is refused.
    cached.unlink()
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=digest):
        build()


def test_published_names(server):
    urls = {
        published.url(name, weights_name)
        for name, files in published._FILES.items()
        for weights_name in files
    }
    assert len(urls) == 7 * 3 + 2 + 8 * 2 + 1 + 2 + 5
    with pytest.raises(WeightsError, match="imagenet21k, imagenet21k-ft1k"):
        published.url("efficientnetv2-xl", "imagenet")
    with pytest.raises(WeightsError, match="Did you mean 'imagenet'"):
        _slim(weights="imagnet")
    # The server has only the one archive.
    with pytest.raises(WeightsError, match=r"-21k\.tgz.*Where there is no"):
        _slim(weights="imagenet21k")


def test_default_number_of_classes(monkeypatch):
    monkeypatch.setattr(
        weights, "load", lambda *a: weights.LoadReport("", {}, [], [])
    )
    monkeypatch.setattr(published, "fetch", lambda *a: pathlib.Path("x"))
    options = {k: v for k, v in TINY.items() if k != "num_classes"}

    def classes(**kwargs):
        model = efficientnetv2.build_model(
            "efficientnetv2-b0", **options, **kwargs
        )
        return model.output_shape[-1]

    assert classes() == 1000
    assert classes(weights="imagenet21k") == 21_843
    assert classes(weights="imagenet21k-ft1k") == 1000
