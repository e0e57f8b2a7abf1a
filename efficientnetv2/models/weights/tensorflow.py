"""Checkpoints of the released code, google/automl: TensorFlow's two formats."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from efficientnetv2.errors import WeightsError
from efficientnetv2.models.weights import matching
from efficientnetv2.models.weights.matching import (
    CLASSIFIER,
    EMA,
    VALUE,
    Block,
    Slot,
    Source,
    first_line,
    listed,
    reading,
)

_NORM = "tpu_batch_normalization"
_GROUP_NORM = "group_normalization"
_OBJECT_ENDS = {
    "stem/conv": "_stem/_conv_stem",
    "stem/norm": "_stem/_norm",
    "head/conv": "_head/_conv_head",
    "head/norm": "_head/_norm",
    CLASSIFIER: "_fc",
}


def reference_names(slot: Slot) -> list[str]:
    """Names in name-based checkpoints, below the model.

    The norms of stem and head have no name there: batch normalization has one
    by default, group normalization is numbered, by which `_unnumbered` goes.
    """
    part, attribute = slot.part, slot.attribute
    if slot.is_classifier:
        return [f"head/dense/{attribute}"]
    if not isinstance(part, Block):
        layers = {"conv": ["conv2d"], "norm": [_NORM, _GROUP_NORM]}[slot.layer]
        return [f"{part}/{layer}/{attribute}" for layer in layers]
    layer = {"se/reduce": "se/conv2d", "se/expand": "se/conv2d_1"}.get(
        slot.layer
    )
    # In blocks group normalization has the name of batch normalization.
    for kind, layers in (("conv2d", part.convs), (_NORM, part.norms)):
        if slot.layer in layers:
            index = layers.index(slot.layer)
            layer = f"{kind}_{index}" if index else kind
    if slot.layer == "depthwise_conv":
        layer, attribute = "depthwise_conv2d", "depthwise_kernel"
    return [f"blocks_{part.index}/{layer}/{attribute}"]


def _unnumbered(name: str) -> str:
    """Undoes the numbers that depend on what the graph held before.

    The classifier is below 'head_1' where the scope 'head' was opened twice,
    as in the published checkpoints, and below 'head' in eager execution.
    """
    name = re.sub(r"(^|/)head_\d+/dense/", r"\1head/dense/", name)
    return re.sub(rf"/{_GROUP_NORM}_\d+/", f"/{_GROUP_NORM}/", name)


def _written_names(slot: Slot, is_group_norm: bool) -> list[str]:
    """All names by which programs of the released code look for a weight."""
    names = reference_names(slot)
    attribute = slot.attribute
    if slot.is_classifier:
        return [*names, f"head_1/dense/{attribute}"]
    if slot.place == "stem/norm" and is_group_norm:
        return [f"stem/{_GROUP_NORM}/{attribute}"]
    if slot.place == "head/norm" and is_group_norm:
        return [f"head/{_GROUP_NORM}{n}/{attribute}" for n in ("", "_1")]
    return names[:1]


def object_names(slot: Slot) -> list[str]:
    """Names in object-based checkpoints."""
    attribute = slot.attribute
    path = _OBJECT_ENDS.get(slot.place)
    if path is None:
        layer = {
            "se/reduce": "_se/_se_reduce",
            "se/expand": "_se/_se_expand",
            "expand_norm": "_norm0",
            "depthwise_norm": "_norm1",
            "project_norm": "_norm1" if slot.part.fused else "_norm2",
        }.get(slot.layer, f"_{slot.layer}")
        path = f"_blocks/{slot.part.index}/{layer}"
        if slot.layer == "depthwise_conv":
            attribute = "depthwise_kernel"
    return [f"{path}/{attribute}"]


def recognizes(path: pathlib.Path) -> bool:
    """Whether there is a checkpoint of that prefix, or a folder."""
    return path.is_dir() or pathlib.Path(f"{_prefix(path)}.index").exists()


def _prefix(path: pathlib.Path) -> str:
    return str(path).removesuffix(".index")


def _prefix_in(path: pathlib.Path) -> str:
    """Returns the prefix of the checkpoint of a folder."""
    import tensorflow as tf

    state = tf.train.get_checkpoint_state(str(path))
    if state is not None and state.model_checkpoint_path:
        # The name only: the rest is the folder where it was written.
        named = path / pathlib.PurePosixPath(state.model_checkpoint_path).name
        if not pathlib.Path(f"{named}.index").exists():
            raise WeightsError(
                f"{path / 'checkpoint'} names {state.model_checkpoint_path!r}, "
                f"but {named}.index is missing."
            )
        return str(named)
    found = sorted(path.glob("*.index"))
    if len(found) > 1:
        raise WeightsError(
            f"{path} holds {len(found)} checkpoints; name one of "
            f"{listed([entry.stem for entry in found])}."
        )
    if not found:
        raise WeightsError(
            f"The folder {path} has no checkpoint: neither a file "
            "'checkpoint' nor one *.index, as the released code writes them."
        )
    return str(found[0].with_suffix(""))


@contextlib.contextmanager
def opened(path: pathlib.Path, ema: bool | None) -> Iterator[Source]:
    """Opens a checkpoint; see `load_into`."""
    import tensorflow as tf

    prefix = _prefix_in(path) if path.is_dir() else _prefix(path)
    with reading(prefix, "TensorFlow checkpoint"):
        reader = tf.train.load_checkpoint(prefix)
        shapes = {
            k: tuple(v) for k, v in reader.get_variable_to_shape_map().items()
        }
    graph = "_CHECKPOINTABLE_OBJECT_GRAPH"
    anchor, suffix, names = "stem/conv2d/kernel", "", reference_names
    if shapes.pop(graph, None) is not None:
        anchor, suffix, names = "_stem/_conv_stem/kernel", VALUE, object_names
    scope = _scope(shapes, anchor + suffix, prefix)
    averaged = any(name.endswith(f"/{EMA}") for name in shapes)
    if ema and not averaged:
        raise WeightsError(
            f"{prefix} has no moving averages (*/{EMA}); load it with "
            "ema=None or False."
        )
    # A weight with several names there is taken once.
    real = {_unnumbered(name): name for name in sorted(shapes)}
    shapes = {name: shapes[name] for name in real.values()}

    def candidates(slot: Slot) -> list[str]:
        plain = [f"{scope}{name}{suffix}" for name in names(slot)]
        if ema is not False and averaged:
            plain = [f"{name}/{EMA}" for name in plain] + plain
        return [real.get(name, name) for name in plain]

    yield Source(prefix, shapes, reader.get_tensor, candidates)


def _scope(shapes: Mapping, anchor: str, prefix: str) -> str:
    """Returns what stands before the names: 'efficientnetv2-b0/'."""
    scopes = [
        name.removesuffix(anchor)
        for name in shapes
        if f"/{name}".endswith(f"/{anchor}")
    ]
    if not scopes:
        raise WeightsError(
            f"{prefix} is a TensorFlow checkpoint, but not an EfficientNet of "
            f"the released code: it has no {anchor}. Its variables begin with "
            f"{', '.join(sorted(shapes)[:3])}."
        )
    return min(scopes, key=len)


def to_reference_checkpoint(
    model: keras.Model,
    prefix: str | os.PathLike,
    scope: str | None = None,
    step: int = 0,
) -> pathlib.Path:
    """Writes a name-based checkpoint that the released code reads.

    Each weight is written raw and as a moving average, with the same value,
    and the file 'checkpoint' beside it names it. The classifier is written by
    two names: main.py looks for one, `get_model` and converters for the other.

    Args:
        model: built by this package.
        prefix: such as 'out/model.ckpt'; the step is added: 'model.ckpt-0'.
        scope: what the released code calls the model; its name by default.
        step: written as global_step.

    Returns:
        The prefix with the step.

    Raises:
        WeightsError: if it cannot be written.
    """
    import tensorflow as tf

    prefix = pathlib.Path(prefix)
    scope = scope or model.name
    slots = matching.slots(model)
    batch_norms = {s.place for s in slots if s.attribute == "moving_mean"}
    arrays = {"global_step": np.int64(step)}
    for slot in slots:
        array = keras.ops.convert_to_numpy(slot.variable).astype(np.float32)
        for name in _written_names(slot, slot.place not in batch_norms):
            arrays[f"{scope}/{name}"] = array
            arrays[f"{scope}/{name}/{EMA}"] = array
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with tf.device("CPU"):
            variables = {k: tf.Variable(v) for k, v in arrays.items()}
        saver = tf.compat.v1.train.Saver(variables, save_relative_paths=True)
        return pathlib.Path(saver.save(None, str(prefix), global_step=step))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise WeightsError(
            f"Cannot write {prefix}-{step}: {first_line(error)}"
        ) from error
