"""Seconds from the start of a program to the end of its first step by Keras.

    python benchmarks/keras_first_step.py --size=32 --batch=128 [--no_xla]

The shortest program that trains `keras.applications.EfficientNetV2B0` with
`fit`, on random images in memory: it reads no data, loads no options and
augments nothing.
"""

import argparse
import os
import sys

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DONE = "first step done"


def train(options: argparse.Namespace) -> None:
    import keras

    class Tell(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            print(DONE, float(logs["loss"]), flush=True)

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
        images,
        labels,
        batch_size=options.batch,
        verbose=0,
        callbacks=[Tell()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no_xla", action="store_true")
    parser.add_argument("--train", action="store_true", help="in this process")
    options = timing.parse(parser)
    if options.train:
        train(options)
        return
    from efficientnetv2.study import benchmark

    command = [sys.executable, *sys.argv, "--train"]
    timing.show(benchmark.seconds_to_line(command, DONE))


if __name__ == "__main__":
    main()
