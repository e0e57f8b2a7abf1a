"""TensorFlow devices: which there are, how they are set up and share the work.

Every replica takes its part of the same global batch. On several machines each
worker reads and prepares only its own rows of it; the first worker, the chief,
writes all files.
"""

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable

import keras
import ml_collections
import tensorflow as tf

from efficientnetv2 import backend
from efficientnetv2.engines import check_batch
from efficientnetv2.errors import StrategyError
from efficientnetv2.models import kernels

# Of `runtime.mixed_precision`: see `kernels.set_bfloat16_products`.
BFLOAT16_PRODUCTS = "bfloat16_products"
_CPUINFO = pathlib.Path("/proc/cpuinfo")


def on_cpu() -> bool:
    """Whether TensorFlow sees no GPU, and so computes on CPUs."""
    return not tf.config.get_visible_devices("GPU")


def resolve_precision(config: ml_collections.ConfigDict) -> str:
    """Returns the dtype policy: `runtime.mixed_precision`, or the device's."""
    if config.runtime.mixed_precision:
        return config.runtime.mixed_precision
    details = map(
        tf.config.experimental.get_device_details,
        tf.config.get_visible_devices("GPU"),
    )
    capabilities = (each.get("compute_capability", (0, 0)) for each in details)
    return backend.gpu_precision(min(capabilities, default=(0, 0)))


def set_up(
    config: ml_collections.ConfigDict, training: bool = True
) -> tf.distribute.Strategy:
    """Sets devices, threads, memory, precision and seeds.

    Returns:
        The strategy of the run, or without training that of one device.
    """
    _show_devices(config.runtime.strategy)
    parts = config.train.batch_parts if on_cpu() else 1
    threads = config.runtime.threads
    # Parts share the cores best when each operation keeps to one of them.
    try:
        for gpu in tf.config.get_visible_devices("GPU"):
            # Not all of the memory at once: others may use the device, too.
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.threading.set_intra_op_parallelism_threads(
            threads if parts == 1 else 1
        )
        tf.config.threading.set_inter_op_parallelism_threads(
            threads if parts == 1 else threads or parts
        )
    except RuntimeError:
        pass
    precision = resolve_precision(config)
    rounds = training and precision == BFLOAT16_PRODUCTS
    if rounds:
        _check_bfloat16_products()
    kernels.set_bfloat16_products(rounds)
    keras.mixed_precision.set_dtype_policy(
        "float32" if precision == BFLOAT16_PRODUCTS else precision
    )
    keras.utils.set_random_seed(config.train.seed)
    return make_strategy(config.runtime.strategy if training else "one")


def _check_bfloat16_products() -> None:
    """Raises a StrategyError where bfloat16 products do not help."""
    option = f"runtime.mixed_precision={BFLOAT16_PRODUCTS}"
    if not on_cpu():
        raise StrategyError(
            f"{option} is for CPUs. On a GPU use mixed_bfloat16, or leave it "
            "null."
        )
    try:
        flags = set(_CPUINFO.read_text().split())
    except OSError:
        flags = set()
    if not flags & {"avx512_bf16", "amx_bf16"}:
        raise StrategyError(
            f"{option}: this processor has no bfloat16 products ({_CPUINFO} "
            "lists neither avx512_bf16 nor amx_bf16), which would make it "
            "slower. Use float32, or leave it null."
        )


def describe_devices(
    config: ml_collections.ConfigDict,
    strategy: tf.distribute.Strategy,
    parts: int,
) -> str:
    """Describes devices and precision, such as '1 x Tesla T4, float32'."""
    gpus = tf.config.get_visible_devices("GPU")
    count = strategy.num_replicas_in_sync
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        name = f"{count} x {details.get('device_name', 'GPU')}"
    else:
        name = "CPU" if count == 1 else f"{count} x CPU"
        threads = config.runtime.threads or os.cpu_count()
        name += f" ({threads} threads" + (
            f", batches in {parts} parts)" if parts > 1 else ")"
        )
    xla = "on" if config.runtime.jit_compile else "off"
    text = f"{name}, {resolve_precision(config)}, XLA {xla}"
    if count == 1 and config.runtime.strategy == "mirrored":
        text += "; with one device --strategy=mirrored changes nothing"
    return "\n".join(filter(None, (text, overlooked())))


def overlooked() -> str | None:
    """Returns advice if a GPU or TPU is left unused, else None."""
    if not on_cpu():
        return None
    if os.path.exists("/dev/nvidia0") and (
        not tf.config.list_physical_devices("GPU")
    ):
        return (
            "This machine has an NVIDIA GPU that TensorFlow does not see: "
            "install its CUDA libraries with pip install "
            "'tensorflow[and-cuda]'."
        )
    if "TPU_NAME" in os.environ or os.path.exists("/dev/accel0"):
        return "This machine has a TPU, which only JAX uses: add --backend=jax."
    return None


@functools.cache
def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy of a run, always the same one within a process.

    Args:
        name: of `runtime.strategy`, or 'one' for the default device, whatever
            else there is. 'auto' is multi_worker if TF_CONFIG names workers,
            mirrored for several GPUs, else gpu or cpu. 'cpu' leaves GPUs
            unused, 'gpu' is the first of them, and 'mirrored' has a replica
            on each, or on each logical CPU if there is none.

    Raises:
        StrategyError: if there is no such device, or TF_CONFIG is wrong.
    """
    if name == "one":
        return tf.distribute.get_strategy()
    name = _show_devices(name)
    if name == "multi_worker":
        _worker_index()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        kind = "CPU" if on_cpu() else "GPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    return tf.distribute.get_strategy()


def _show_devices(name: str) -> str:
    """Hides the GPUs that a strategy does not use, and resolves 'auto'."""
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto":
        if "TF_CONFIG" in os.environ:
            return "multi_worker"
        name = ("cpu", "gpu", "mirrored")[min(len(gpus), 2)]
    if name == "gpu" and not gpus:
        raise StrategyError(
            "--strategy=gpu: TensorFlow sees no GPU. Use --strategy=cpu, or "
            "install TensorFlow with CUDA: pip install 'tensorflow[and-cuda]'."
        )
    if gpus and name in ("cpu", "gpu"):
        tf.config.set_visible_devices(gpus[: name == "gpu"], "GPU")
    return name


def _worker_index() -> int:
    """Returns the index of this worker by TF_CONFIG."""
    text = os.environ.get("TF_CONFIG", "")
    example = (
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    try:
        content = json.loads(text)
        count, task = len(content["cluster"]["worker"]), content["task"]
        index = task["index"]
        valid = task["type"] == "worker" and 0 <= index < count
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise StrategyError(
            f"--strategy=multi_worker: TF_CONFIG={text!r} must be like "
            f"{example}, the same on all machines except for the index."
        )
    return index


def is_chief(config: ml_collections.ConfigDict) -> bool:
    """Whether this process writes the files of a run."""
    name = config.runtime.strategy
    several = name == "multi_worker" or (
        name == "auto" and "TF_CONFIG" in os.environ
    )
    return not several or _worker_index() == 0


def check_replicas(
    strategy: tf.distribute.Strategy, config: ml_collections.ConfigDict
) -> None:
    """Checks that a strategy can train a configuration.

    Raises:
        StrategyError: see `check_batch`; or if several replicas should mix
            what each has only a part of.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    # Four for the pairs of Mixup and CutMix, see `pipeline.rows_of_part`.
    unit = math.lcm(replicas, 4 * _number_of_workers(strategy))
    check_batch(config, replicas, unit)
    if config.data.augment_on == "device":
        raise StrategyError(
            f"data.augment_on=device is for one replica, not {replicas}: each "
            "has only a part of the batch, whose images are mixed with each "
            "other. Leave it null."
        )


def _number_of_workers(strategy: tf.distribute.Strategy) -> int:
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type != "worker":
        return 1
    return resolver.cluster_spec().num_tasks("worker")


def distribute(
    strategy: tf.distribute.Strategy,
    make_dataset: Callable[..., tf.data.Dataset],
):
    """Returns batches as the replicas of a strategy take them.

    Args:
        make_dataset: from `part`, (number, workers), to the batches of this
            worker, see `pipeline.training_dataset`; without it, to all.

    Returns:
        A dataset of batches, one replica's or all.
    """
    if strategy.num_replicas_in_sync == 1:
        return make_dataset()

    def of_worker(context: tf.distribute.InputContext):
        dataset = make_dataset(
            part=(context.input_pipeline_id, context.num_input_pipelines)
        )
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        if replicas == 1:
            return dataset
        specs = dataset.element_spec
        size = specs[0].shape[0] // replicas

        def split(*batch):
            numbers = tf.data.Dataset.range(replicas)
            return numbers.map(
                lambda number: tuple(
                    tf.ensure_shape(
                        values[number * size : (number + 1) * size],
                        [size, *spec.shape[1:]],
                    )
                    for values, spec in zip(batch, specs, strict=True)
                )
            )

        return dataset.flat_map(split).prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(of_worker)


def without_graph_optimizer(function: Callable) -> Callable:
    """Returns a `tf.function` that skips TensorFlow's graph optimizer.

    The optimizer costs seconds at the first step, and does not make steps on a
    CPU faster.
    """

    @functools.wraps(function)
    def call(*args):
        options, name = tf.config.optimizer, "disable_meta_optimizer"
        before = options.get_experimental_options().get(name, False)
        # At each call: a graph belongs to the options it is called with.
        options.set_experimental_options({name: True})
        try:
            return function(*args)
        finally:
            options.set_experimental_options({name: before})

    return call
