"""The training step of `keras.applications.EfficientNetV2B0` by its `fit`.

    python benchmarks/keras_step.py --size=64 --batch=64
    python benchmarks/keras_step.py --size=64 --batch=64 --no_xla --threads=2,1

As it comes, Keras 3 compiles the step with XLA, also on CPU. --no_xla
(jit_compile=False) and the best of several --threads is the fastest it gets.
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no_xla", action="store_true")
    parser.add_argument(
        "--threads", help="within, and between operations; default: one a core"
    )
    options = timing.parse(parser)
    import keras
    import tensorflow as tf

    if options.threads:
        within, between = map(int, options.threads.split(","))
        tf.config.threading.set_intra_op_parallelism_threads(within)
        tf.config.threading.set_inter_op_parallelism_threads(between)
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
    timing.show(
        timing.fit_images_per_second(
            model, dataset, options.batch, options.seconds
        )
    )


if __name__ == "__main__":
    main()
