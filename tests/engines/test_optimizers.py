"""The optimizers, RMSProp against the reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import config as config_lib
from efficientnetv2.engines import optimizers


@pytest.mark.parametrize("fused", [True, False])
def test_rmsprop_equals_the_reference(reference, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(
            optimizers.RMSProp, "_fused_apply", lambda self, *_: False
        )
    with np.load(reference / "rmsprop.npz") as expected:
        variable = keras.Variable(expected["weights"][0])
        optimizer = optimizers.RMSProp(
            float(expected["learning_rate"]),
            rho=float(expected["decay"]),
            momentum=float(expected["momentum"]),
            epsilon=float(expected["epsilon"]),
        )
        for gradient, weights in zip(
            expected["gradients"], expected["weights"][1:], strict=True
        ):
            optimizer.apply([tf.constant(gradient)], [variable])
            np.testing.assert_allclose(
                variable.numpy(), weights, rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("name", ["rmsprop", "momentum", "sgd", "adam"])
def test_every_optimizer_lowers_a_loss(name):
    config = config_lib.load(
        "fashion_mnist", hparam_str=f"train.optimizer={name}"
    )
    optimizer = optimizers.build_optimizer(config, 0.05)
    variable = keras.Variable([3.0, -2.0])
    for _ in range(100):
        optimizer.apply([2.0 * variable], [variable])
    assert float(tf.reduce_sum(variable**2)) < 1.0


def test_float16_scales_the_loss():
    config = config_lib.load(
        "fashion_mnist", hparam_str="runtime.mixed_precision=mixed_float16"
    )
    optimizer = optimizers.build_optimizer(config, 0.05)
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def test_config_round_trip():
    optimizer = optimizers.RMSProp(0.1, rho=0.8, momentum=0.7, epsilon=0.01)
    again = optimizers.RMSProp.from_config(optimizer.get_config())
    assert (again.rho, again.momentum, again.epsilon) == (0.8, 0.7, 0.01)
