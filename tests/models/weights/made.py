"""Small models with weights that all differ."""

import contextlib

import numpy as np

import efficientnetv2

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


def slim_model(**options):
    return efficientnetv2.build_model(
        "efficientnetv2-b0", **{**SLIM, **options}
    )


def tiny(**options):
    return efficientnetv2.build_model(
        "efficientnetv2-b0", **{**TINY, **options}
    )


def randomize(model, seed=0):
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


def logits(model, images):
    return np.asarray(model(images))


@contextlib.contextmanager
def unchanged(model):
    """Asserts that the weights are the same afterwards."""
    before = model.get_weights()
    yield
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
