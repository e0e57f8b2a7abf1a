"""Which backend a process gets, and what it says where it gets none."""

import importlib.util
import os
import subprocess
import sys

import pytest

from efficientnetv2 import backend
from efficientnetv2.backend import BackendError


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that says what is installed, set and plugged in."""

    def describe(installed=("jax", "tensorflow"), tpu=False, **variables):
        for name in ("KERAS_BACKEND", "JAX_PLATFORMS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        found = (*installed, "libtpu") if tpu else installed
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: name in found or None
        )
        monkeypatch.setattr(
            backend.glob, "glob", lambda _: ["/dev/vfio/0"] if tpu else []
        )

    return describe


@pytest.mark.parametrize(
    ("asked", "surroundings", "expected"),
    [
        (None, {}, "tensorflow"),
        (None, {"tpu": True}, "jax"),
        (None, {"tpu": True, "JAX_PLATFORMS": "cpu"}, "tensorflow"),
        (None, {"tpu": True, "KERAS_BACKEND": "tensorflow"}, "tensorflow"),
        (None, {"KERAS_BACKEND": "jax"}, "jax"),
        ("jax", {}, "jax"),
        ("tensorflow", {"tpu": True, "KERAS_BACKEND": "jax"}, "tensorflow"),
    ],
)
def test_the_choice(machine, asked, surroundings, expected):
    machine(**surroundings)
    assert backend.choose(asked) == expected
    assert os.environ["KERAS_BACKEND"] == expected


@pytest.mark.parametrize(
    ("asked", "surroundings", "words"),
    [
        (None, {"KERAS_BACKEND": "torch"}, "KERAS_BACKEND=torch.*tensorflow"),
        (None, {"KERAS_BACKEND": "jaxx"}, "--backend=jax"),
        ("jax", {"installed": ["tensorflow"]}, "pip install jax"),
        (None, {"tpu": True, "installed": ["tensorflow"]}, "TPU.*jax.tpu"),
        ("jax", {"installed": ["jax"]}, "pip install 'tensorflow-cpu"),
    ],
)
def test_what_there_is_not(machine, asked, surroundings, words):
    machine(**surroundings)
    with pytest.raises(BackendError, match=words):
        backend.choose(asked)


def test_keras_runs_on_another_backend():
    import keras

    assert keras.config.backend() == backend.active() == "tensorflow"
    with pytest.raises(BackendError, match="jax comes too late.*tensorflow"):
        backend.choose("jax")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {"KERAS_BACKEND": "torch"}, ["KERAS_BACKEND=torch", "--backend="]),
        (
            ["--backend=jax", "--mode=export"],
            {},
            ["--backend=jax", "Leave --backend out"],
        ),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, environment, words):
    result = subprocess.run(
        [sys.executable, "-m", "efficientnetv2.main", *arguments]
        + [f"--model_dir={tmp_path}/run", "--dataset=fashion_mnist"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_a_child_on_tensorflow(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    lines = []
    backend.run_on_tensorflow("efficientnetv2.models", log=lines.append)
    assert len(lines) > 3
    lines.clear()
    with pytest.raises(backend.ChildError, match="--mode=export") as error:
        backend.run_on_tensorflow(
            "efficientnetv2.main",
            "--mode=export",
            "--model_dir=/nowhere",
            log=lines.append,
        )
    assert error.value.exit_code == 1
    assert "There is no run in /nowhere" in "\n".join(lines)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((0, 0), "float32"),
        ((6, 1), "float32"),
        ((7, 5), "mixed_float16"),
        ((8, 0), "mixed_bfloat16"),
        ((12, 1), "mixed_bfloat16"),
    ],
)
def test_gpus_with_tensor_cores_take_half_precision(capability, precision):
    assert backend.gpu_precision(capability) == precision
