"""The JAX engine in child processes: against TensorFlow, and by itself."""

import numpy as np
import pytest

from tests.conftest import assert_same, run_code, run_program
from tests.engines import steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Steps 0 to 9, 10 to 19, and 10 to 19 in the other backend's state."""
    folder = tmp_path_factory.mktemp("steps")
    engine = steps.make_engine()
    tensorflow = [steps.run(engine, None, 0, 10)]
    begin, middle = (tensorflow[0][when] for when in ("before", "after"))
    ways = [(begin, 0, 10), (None, 10, 20)]
    one = steps.start_on_jax(folder, [*ways, (middle, 10, 20)])
    eight = steps.start_on_jax(folder, ways, devices=8)
    tensorflow.append(steps.run(engine, None, 10, 20))
    jax = one()
    tensorflow.append(steps.run(engine, jax[0]["after"], 10, 20))
    return {"tensorflow": tensorflow, "jax": jax, "eight devices": eight()}


def _assert_close(one, two, metrics, tolerance):
    """Compares two of `results`."""
    assert one["metrics"].shape == two["metrics"].shape == (10, 5)
    columns = [steps.METRICS.index(name) for name in metrics]
    difference = np.abs(one["metrics"] - two["metrics"])[:, columns]
    assert difference.max() < tolerance


@pytest.mark.parametrize("half", [0, 1])
def test_twenty_steps_are_those_of_tensorflow(results, half):
    first, second = results["tensorflow"][half], results["jax"][half]
    _assert_close(first, second, ("loss", "cross_entropy", "l2"), 1e-5)
    first, second = first["after"], second["after"]
    assert first["step"] == second["step"] == 10 * (half + 1)
    assert_same(second, first, 1e-4)
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name


@pytest.mark.parametrize("last", ["tensorflow", "jax"])
def test_a_run_changes_the_backend(results, last):
    _, expected, changed = results[last]
    _assert_close(expected, changed, ("loss", "cross_entropy", "l2"), 1e-5)
    assert changed["after"]["step"] == 20


@pytest.mark.parametrize("half", [0, 1])
def test_eight_devices_are_one(results, half):
    one, eight = results["jax"][half], results["eight devices"][half]
    _assert_close(one, eight, steps.METRICS, 1e-4)


def test_on_jax():
    """The tests of `on_jax.py`, in a process whose Keras runs on JAX."""
    result = run_program(
        *("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"),
        "tests/engines/on_jax.py",
        module="pytest",
        env=steps.jax_environment(devices=2),
    )
    assert result.returncode == 0, result.stdout[-5000:]


def test_without_tensorflow():
    """Where TensorFlow cannot be imported, models and engine still train."""
    program = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
from efficientnetv2 import zoo
from efficientnetv2.models import structure, weights
from efficientnetv2.models import published
from tests.engines import steps

engine = steps.make_engine()
random = np.random.default_rng(0)
images = random.normal(size=(32, 16, 16, 3)).astype(np.float32)
labels = np.eye(10, dtype=np.float32)[random.integers(0, 10, 32)]
losses = [
    float(engine.step((images, labels), 0.1)["cross_entropy"])
    for _ in range(9)
]
assert losses[-1] < losses[0], losses
assert engine.first_bad_step() is None
assert engine.logits(images[:5]).shape == (5, 10)
weights.assign(engine.network, weights.from_arrays(engine.arrays(), "test"))
assert not [name for name in sys.modules if name.startswith("tensorflow.")]
"""
    run_code(program, env=steps.jax_environment())
