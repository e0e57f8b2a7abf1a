"""One measurement of a peer, in a process of its own.

    python benchmarks/peers.py keras_step --size=64 --batch=64 --no_xla

Prints a line of JSON with the figure; `benchmarks/run.py` compares it with
ours.py.
"""

import enum
import importlib.util
import pathlib
import sys
import tempfile
import time
import types

import timing

FIRST_STEP = "first step done"


def fit_images_per_second(model, dataset, batch: int, seconds: float) -> float:
    """Returns the throughput of `fit` of a compiled Keras model.

    Args:
        model: whose logs have a 'loss'.
        dataset: of batches, without an end.
        batch: images per step.
        seconds: that are measured, after a few steps that are not.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        steps, start, passed = -timing.WARM_UP, 0.0, 0.0

        def on_train_batch_end(self, step, logs=None):
            float(logs["loss"])
            self.steps += 1
            if self.steps == 0:
                self.start = time.perf_counter()
            elif self.steps > 0:
                self.passed = time.perf_counter() - self.start
                self.model.stop_training = self.passed >= seconds

    clock = Clock()
    model.fit(
        dataset,
        steps_per_epoch=10**9,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    return clock.steps * batch / clock.passed


def keras_step(options) -> float:
    """`keras.applications.EfficientNetV2B0` by its `fit`.

    As it comes, Keras 3 compiles the step with XLA, also on CPU. --no_xla and
    the best of several --threads is the fastest that it gets.
    """
    import keras
    import tensorflow as tf

    if options.threads:
        within, between = map(int, options.threads.split(","))
        tf.config.threading.set_intra_op_parallelism_threads(within)
        tf.config.threading.set_inter_op_parallelism_threads(between)
    keras.config.set_dtype_policy(options.precision)
    model = keras.applications.EfficientNetV2B0(
        weights=None,
        input_shape=(options.size, options.size, 3),
        classes=timing.CLASSES,
        classifier_activation=None,
        include_preprocessing=False,
    )
    model.compile(
        optimizer=keras.optimizers.RMSprop(
            1e-3, rho=0.9, momentum=0.9, epsilon=1e-3
        ),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        metrics=["accuracy"],
        **({"jit_compile": False} if options.no_xla else {}),
    )
    batch = timing.training_batch(options.batch, options.size)
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    return fit_images_per_second(model, dataset, options.batch, options.seconds)


class _Absent(types.ModuleType):
    """A module all of whose names are classes that do nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return enum.Enum(
                name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS"
            )
        return type(name, (), {})


def _import_timm():
    """Imports timm, on a machine without torchvision as well.

    It imports torchvision for its data and for pretrained layers; a training
    step on images in memory uses nothing of it.
    """
    if importlib.util.find_spec("torchvision") is None:
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.models",
            "torchvision.models.feature_extraction",
            "torchvision.ops",
            "torchvision.ops.misc",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            sys.modules[name] = _Absent(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    import timm

    return timm


def timm_step(options) -> float | dict:
    """EfficientNetV2-B0 of PyTorch Image Models, in channels_last."""
    try:
        import torch

        timm = _import_timm()
    except ImportError as error:
        return {
            "skipped": f"PyTorch Image Models was not measured: {error} in "
            f"{sys.executable}."
        }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = timing.training_batch(options.batch, options.size)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels).to(device)
    model = timm.create_model(
        "tf_efficientnetv2_b0",
        num_classes=timing.CLASSES,
        drop_rate=0.2,
        drop_path_rate=0.2,
    )
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.RMSprop(
        model.parameters(), 1e-3, alpha=0.9, momentum=0.9, eps=1e-3
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    is_half = options.precision == "mixed_bfloat16"

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    value = timing.images_per_second(step, options.batch, options.seconds)
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return {"value": value, "versions": versions}


def keras_first_step(options) -> float | None:
    """Likewise of the shortest program with `keras.applications` and `fit`.

    On random images in memory: it reads no data, loads no options and augments
    nothing.
    """
    if not options.train:
        from efficientnetv2 import speed

        command = [sys.executable, *sys.argv, "--train"]
        return speed.seconds_to_line(command, FIRST_STEP)
    import keras

    class Tell(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            print(FIRST_STEP, float(logs["loss"]), flush=True)

    model = keras.applications.EfficientNetV2B0(
        weights=None,
        input_shape=(options.size, options.size, 3),
        classes=timing.CLASSES,
    )
    model.compile(
        optimizer=keras.optimizers.RMSprop(momentum=0.9),
        loss="categorical_crossentropy",
        **({"jit_compile": False} if options.no_xla else {}),
    )
    images, labels = timing.training_batch(options.batch, options.size)
    model.fit(
        images, labels, batch_size=options.batch, verbose=0, callbacks=[Tell()]
    )
    return None


def keras_randaugment(options) -> float:
    """`keras.layers.RandAugment`, 2 operations at full strength, in tf.data."""
    import keras
    import tensorflow as tf

    layer = keras.layers.RandAugment(
        value_range=(0, 255), num_ops=2, factor=1.0
    )
    dataset = tf.data.Dataset.from_tensor_slices(timing.photos(options.size))
    dataset = dataset.repeat().batch(options.batch, drop_remainder=True)
    dataset = dataset.map(
        lambda images: layer(images, training=True),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    read = iter(dataset.prefetch(tf.data.AUTOTUNE)).__next__
    return timing.images_per_second(read, options.batch, options.seconds)


def keras_inference(options) -> dict:
    """The SavedModel that `export` of keras.applications writes."""
    import keras
    import tensorflow as tf

    model = keras.applications.EfficientNetV2B0(
        weights=None,
        input_shape=(options.size, options.size, 3),
        classes=timing.CLASSES,
    )
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name, "peer")
        model.export(path, verbose=False)
        loaded = tf.saved_model.load(path)
    return timing.latency(
        lambda images: loaded.serve(tf.cast(images, tf.float32)).numpy(),
        options.batch,
        options.size,
        options.seconds,
    )


if __name__ == "__main__":
    timing.main(
        (
            *(keras_step, timm_step, keras_first_step),
            *(keras_randaugment, keras_inference),
        )
    )
