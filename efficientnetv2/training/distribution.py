"""Several devices and machines: the strategy, and who does what.

Every replica takes its part of the same global batch. On several machines each
worker reads and prepares only its own rows of it; the first worker, the chief,
writes all files.
"""

import functools
import json
import math
import os
from collections.abc import Callable

import ml_collections
import tensorflow as tf

from efficientnetv2.data import pipeline
from efficientnetv2.errors import UserError


class StrategyError(UserError):
    """Devices or machines that are not there."""


class WorkerLost(UserError):
    """Another machine does not answer; the program must be started again."""

    exit_code = 75


def is_lost_worker(error: tf.errors.OpError) -> bool:
    """Whether an error says that another machine is gone."""
    return "Collective ops is aborted" in str(error)


@functools.lru_cache(maxsize=1)
def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy of a run, in a process always the same one.

    Args:
        name: of `runtime.strategy`:

            - auto: tpu where there is one, multi_worker if TF_CONFIG names
              workers, mirrored for several GPUs, else gpu or cpu;
            - cpu: one replica, GPUs stay unused;
            - gpu: one replica on the first GPU;
            - mirrored: a replica on each GPU of this machine, or on each
              logical CPU if it has no GPU;
            - multi_worker: by TF_CONFIG, see TensorFlow's guide;
            - tpu: that of Colab or Cloud, by TPU_NAME where it is set.

    Raises:
        StrategyError: if there is no such device, or TF_CONFIG is wrong.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto":
        name = _best(len(gpus))
    if name == "tpu":
        return _tpu()
    if name == "multi_worker":
        _check_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        kind = "GPU" if gpus else "CPU"
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(kind)]
        )
    if name == "gpu":
        if not gpus:
            raise StrategyError(
                "--strategy=gpu: TensorFlow sees no GPU. Use --strategy=cpu, "
                "or install TensorFlow with CUDA: pip install "
                "'tensorflow[and-cuda]'."
            )
        tf.config.set_visible_devices(gpus[:1], "GPU")
    elif gpus:
        tf.config.set_visible_devices([], "GPU")
    return tf.distribute.get_strategy()


def _best(gpus: int) -> str:
    if os.environ.get("TPU_NAME") or os.environ.get("COLAB_TPU_ADDR"):
        return "tpu"
    if "TF_CONFIG" in os.environ:
        return "multi_worker"
    if gpus > 1:
        return "mirrored"
    return "gpu" if gpus else "cpu"


def _tpu() -> tf.distribute.Strategy:
    try:
        # '' finds Colab's, 'local' is a TPU VM of Cloud.
        name = os.environ.get("TPU_NAME", "")
        if "COLAB_TPU_ADDR" in os.environ:
            name = f"grpc://{os.environ['COLAB_TPU_ADDR']}"
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise StrategyError(
            "--strategy=tpu: no TPU was found "
            f"({str(error).splitlines()[0][:200]}). In Colab choose a TPU "
            "runtime; on a Cloud TPU VM set TPU_NAME=local."
        ) from error


def _check_tf_config() -> None:
    text = os.environ.get("TF_CONFIG", "")
    example = (
        '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    try:
        content = json.loads(text)
        workers = content["cluster"]["worker"]
        index = content["task"]["index"]
        valid = content["task"]["type"] == "worker" and 0 <= index < len(
            workers
        )
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise StrategyError(
            f"--strategy=multi_worker: TF_CONFIG={text!r} must be like "
            f"{example}, the same on all machines but for the index."
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files of a run."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_id == 0


def check(
    strategy: tf.distribute.Strategy, config: ml_collections.ConfigDict
) -> None:
    """Checks that a strategy can train a configuration.

    Raises:
        StrategyError: if the global batch cannot be split over the replicas,
            with a size that can; if the part of one cannot be split into
            micro-batches; or if several should mix what each has only a part
            of.
    """
    batch_size = config.train.batch_size
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return
    # Four for the pairs of Mixup and CutMix, see `pipeline.rows_of_part`.
    unit = math.lcm(replicas, 4 * _number_of_workers(strategy))
    if batch_size % unit:
        near = max(unit, round(batch_size / unit) * unit)
        raise StrategyError(
            f"train.batch_size={batch_size} cannot be split over {replicas} "
            f"replicas: it must be a multiple of {unit}, such as {near}."
        )
    part, micro = batch_size // replicas, config.train.micro_batch_size
    if micro and part % min(micro, part):
        raise StrategyError(
            f"train.micro_batch_size={micro} does not divide the {part} images "
            f"that each of {replicas} replicas has of a batch."
        )
    if config.data.augment_on == "device":
        raise StrategyError(
            f"data.augment_on=device is for one replica, not {replicas}: each "
            "has only a part of the batch, whose images are mixed with each "
            "other. Leave it null."
        )


def augments_on_device(
    strategy: tf.distribute.Strategy, config: ml_collections.ConfigDict
) -> bool:
    """Resolves `data.augment_on`, see `pipeline.augments_on_device`."""
    accelerated = strategy.num_replicas_in_sync == 1 and bool(
        tf.config.list_logical_devices("GPU")
        or tf.config.list_logical_devices("TPU")
    )
    return pipeline.augments_on_device(config, accelerated)


def _number_of_workers(strategy: tf.distribute.Strategy) -> int:
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type != "worker":
        return 1
    return resolver.cluster_spec().num_tasks("worker")


def distribute(
    strategy: tf.distribute.Strategy,
    make_dataset: Callable[[int, int], tf.data.Dataset],
):
    """Returns batches as the replicas of a strategy take them.

    Args:
        strategy: of the run.
        make_dataset: from the number of a worker and that of all workers to
            the batches of this worker, see `pipeline.training_dataset`.

    Returns:
        A dataset for Keras' `fit`.
    """
    if strategy.num_replicas_in_sync == 1:
        return make_dataset(0, 1)

    def of_worker(context: tf.distribute.InputContext):
        dataset = make_dataset(
            context.input_pipeline_id, context.num_input_pipelines
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
