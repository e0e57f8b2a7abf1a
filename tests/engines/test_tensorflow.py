"""The step of the TensorFlow engine, and what XLA on a GPU knows of it."""

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from efficientnetv2 import engines
from efficientnetv2.engines import strategies
from efficientnetv2.models import kernels as fast_kernels
from efficientnetv2.progressive import RunPlan


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Layers and engine choose what they choose where there is a GPU."""
    monkeypatch.setattr(fast_kernels, "runs_on_tensorflow_cpu", lambda: False)
    monkeypatch.setattr(strategies, "on_cpu", lambda: False)


def unknown_to_xla(function: tf.types.experimental.ConcreteFunction) -> set:
    """Returns the operations that have no kernel for XLA on a GPU."""
    graph = function.graph.as_graph_def()
    called = {each.signature.name for each in graph.library.function}
    nodes = list(graph.node)
    for each in graph.library.function:
        nodes += each.node_def
    # Arguments of a graph are never compiled.
    return {
        f"{node.op} of {node.name}"
        for node in nodes
        if node.op not in {"Placeholder", *called} and not _is_known(node)
    }


def _is_known(node) -> bool:
    found = kernels.get_registered_kernels_for_op(node.op).kernel
    return any(
        kernel.device_type == "XLA_GPU_JIT"
        and all(
            node.attr[each.name].type in each.allowed_values.list.type
            for each in kernel.constraint
            if node.attr[each.name].type
        )
        for kernel in found
    )


@pytest.mark.parametrize(
    "overrides",
    [
        "train.weight_decay_inc=1,model.survival_prob=0.8",
        "train.micro_batch_size=8,train.gclip=1,model.conv_dropout=0.2",
        "runtime.mixed_precision=mixed_float16,train.optimizer=adam",
        "train.optimizer=lion,train.layer_decay=0.8,train.unfreeze_epochs=1,"
        "train.decoupled_weight_decay=0.1,train.loss_type=sigmoid",
        "model.bn_type=gn,model.act_fn=hswish,train.optimizer=nesterov,"
        "model.blocks=r1_k5_s2_e2_i8_o8_se0.25",
    ],
)
def test_xla_on_a_gpu_knows_the_step(as_on_gpu, tiny_config, overrides):
    config = tiny_config(overrides)
    try:
        engine = engines.create(config, RunPlan(200, 6, 24))
        step = tf.function(engine.train_step, autograph=False)
        unknown = unknown_to_xla(
            step.get_concrete_function(
                tf.TensorSpec([32, 24, 24, 3]),
                tf.TensorSpec([32, 10]),
                tf.TensorSpec([]),
            )
        )
    finally:
        strategies.set_up(tiny_config())
    assert not unknown


def test_what_xla_does_not_know_is_found():
    @tf.function
    def function(values):
        text = tf.strings.as_string(values)
        return tf.where(tf.shape(values)[0] > 1, text, text + "!")

    unknown = unknown_to_xla(
        function.get_concrete_function(tf.TensorSpec([None]))
    )
    assert any(each.startswith("AsString") for each in unknown)
