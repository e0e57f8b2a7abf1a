"""State dicts of PyTorch: its Image Models, and the port of V1."""

import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

import efficientnetv2
from efficientnetv2.errors import WeightsError
from efficientnetv2.models import weights
from efficientnetv2.models.weights import pytorch
from tests.models.weights.made import logits, randomize

TIMM = pathlib.Path(__file__).parents[2] / "testdata" / "timm"


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
            logits(model, io["images"]), io["logits"], atol=1e-5
        )


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

    def write(model, zipped=False, **further):
        arrays, content = {}, dict(further)
        for slot in weights.slots(model):
            array = np.asarray(slot.variable)
            if array.ndim == 4:
                depthwise = slot.layer == "depthwise_conv"
                order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                array = array.transpose(order)
            elif array.ndim == 2:
                array = array.T
            (name,) = pytorch.v1_names(slot)
            arrays[str(len(arrays))] = array = np.ascontiguousarray(array)
            content[name] = Tensor(str(len(arrays) - 1), array)
        path = tmp_path / "model.pth"
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                with archive.open("model/data.pkl", "w") as file:
                    Pickler(file, protocol=2).dump(content)
                for key, array in arrays.items():
                    archive.writestr(f"model/data/{key}", array.tobytes())
            return path
        with open(path, "wb") as file:
            for each in (0x1950A86A20F9469CFC6C, 1001, {}, content):
                Pickler(file, protocol=2).dump(each)
            Pickler(file, protocol=2).dump(list(arrays))
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
    randomize(model)
    path = torch_file(model, zipped)
    again = efficientnetv2.build_model("efficientnet-b0", weights=path, **V1)
    np.testing.assert_array_equal(logits(again, images), logits(model, images))
    names = {
        name for slot in weights.slots(model) for name in pytorch.v1_names(slot)
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
    with pytest.raises(WeightsError, match="truncated"):
        efficientnetv2.load_weights(again, path)


def test_a_pickle_with_code_is_refused(torch_file):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/evil",)

    model = efficientnetv2.build_model("efficientnet-b0", **V1)
    with pytest.raises(WeightsError, match=r"could run code.*posix\.system"):
        efficientnetv2.load_weights(model, torch_file(model, extra=Evil()))
    with pytest.raises(WeightsError, match="not a state dict"):
        efficientnetv2.load_weights(model, torch_file(model, extra=3))
