"""What there is, as Python lists it."""

import subprocess
import sys

import pytest

import efficientnetv2
from efficientnetv2 import declarative
from tests.conftest import run_code


def test_models_have_accuracy_size_and_cost():
    models = {each.name: each for each in efficientnetv2.list_models()}
    assert list(models) == declarative.names("models")
    small = models["efficientnetv2-s"]
    assert small.image_size == 384
    assert small.parameters == 21_458_488
    assert small.multiply_adds == pytest.approx(8.4e9, rel=0.01)
    assert small.top1 == {"imagenet": 0.839, "imagenet21k-ft1k": 0.849}
    assert models["efficientnetv2-pico"].top1 == {}


def test_published_weights():
    of_b0 = efficientnetv2.list_weights("efficientnet-b0")
    top1 = {"imagenet": 0.776, "jft": 0.788}
    assert {w.weights: w.top1 for w in of_b0} == top1
    assert efficientnetv2.list_weights("efficientnetv2-pico") == []
    with pytest.raises(declarative.ConfigError, match="efficientnetv2-b0"):
        efficientnetv2.list_weights("b0")


def test_datasets_and_recipes():
    datasets = {each.name: each for each in efficientnetv2.list_datasets()}
    assert list(datasets) == declarative.names("datasets")
    assert datasets["fashion_mnist"].num_images["eval"] == 10_000
    recipes = {each.name: each for each in efficientnetv2.list_recipes()}
    assert list(recipes) == declarative.names("recipes")
    quick = recipes["fashion_mnist"]
    content = declarative.read_named("recipes", "fashion_mnist")
    assert quick.epochs == content["train"]["epochs"]
    assert quick.model == "efficientnetv2-pico"
    for each in recipes.values():
        assert each.summary.endswith(".") and len(each.summary) > 20


def test_lists_import_no_framework():
    program = """
import sys, efficientnetv2
efficientnetv2.list_models(), efficientnetv2.list_weights()
efficientnetv2.list_datasets(), efficientnetv2.list_recipes()
assert not {"tensorflow", "keras", "jax"} & set(sys.modules)
"""
    run_code(program)


@pytest.mark.slow
def test_functions_hide_the_log_of_tensorflow():
    result = subprocess.run(
        [sys.executable, "-c", "import efficientnetv2 as e; e.build_model"],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert not result.stdout and not result.stderr
