"""JAX devices: which there are, how they are set up and share a batch."""

import importlib.util
from collections.abc import Sequence

import jax
import keras
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficientnetv2 import backend
from efficientnetv2.engines import check_batch
from efficientnetv2.errors import StrategyError

# The axis of a mesh.
BATCH = "batch"


def set_up(
    config: ml_collections.ConfigDict, training: bool = True
) -> list[jax.Device]:
    """Sets precision and seeds, and keeps TensorFlow off the devices.

    Returns:
        The devices of the run, or without training the first.
    """
    if importlib.util.find_spec("tensorflow"):
        backend.hide_devices_from_tensorflow()
    devices = _choose_devices(config.runtime.strategy)
    keras.config.set_dtype_policy(
        _resolve_precision(config, devices[0], training)
    )
    keras.utils.set_random_seed(config.train.seed)
    return devices if training else devices[:1]


def is_chief(config: ml_collections.ConfigDict) -> bool:
    """Whether this process writes the run's files: there is no other."""
    return True


def _resolve_precision(
    config: ml_collections.ConfigDict, device: jax.Device, training: bool
) -> str:
    """Returns the dtype policy: `runtime.mixed_precision`, or the device's."""
    if config.runtime.mixed_precision == "bfloat16_products":
        if training:
            raise StrategyError(
                "runtime.mixed_precision=bfloat16_products is for TensorFlow "
                "on a CPU. Use mixed_bfloat16, or --backend=tensorflow."
            )
        return "float32"
    if config.runtime.mixed_precision:
        return config.runtime.mixed_precision
    if device.platform == "tpu":
        return "mixed_bfloat16"
    # Text such as '8.0'; a CPU has none.
    text = str(getattr(device, "compute_capability", "0.0"))
    major, _, minor = text.partition(".")
    return backend.gpu_precision((int(major), int(minor or 0)))


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """Describes devices and precision, such as '1 x TPU v5 lite, ...'."""
    name = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu":
        name = "CPU" if len(devices) == 1 else f"{len(devices)} x CPU"
    return f"{name}, {keras.config.dtype_policy().name}, JAX"


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Returns the shardings of a state and of a batch."""
    return (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec(BATCH)),
    )


def _choose_devices(strategy: str) -> list:
    """Returns the devices of `runtime.strategy`."""
    if strategy == "multi_worker":
        raise StrategyError(
            "--strategy=multi_worker is for TensorFlow: JAX trains on the "
            "devices of one machine here. Use --strategy=auto, or "
            "--backend=tensorflow."
        )
    if strategy in ("auto", "mirrored"):
        return jax.local_devices()
    try:
        devices = jax.local_devices(backend=strategy)
    except RuntimeError:
        kinds = sorted({device.platform for device in jax.local_devices()})
        raise StrategyError(
            f"--strategy={strategy}: JAX sees no {strategy.upper()}, but "
            f"{' and '.join(kinds)}. Use --strategy=auto, or install JAX for "
            "it: see docs/accelerators.md."
        ) from None
    return devices if strategy == "tpu" else devices[:1]


def check_replicas(config: ml_collections.ConfigDict, replicas: int) -> None:
    """Checks that this many devices can train a configuration on JAX."""
    check_batch(config, replicas, replicas)
    if config.runtime.jit_compile is False:
        raise StrategyError(
            "runtime.jit_compile=false: JAX always compiles with XLA. Leave "
            "it null, or use --backend=tensorflow."
        )
