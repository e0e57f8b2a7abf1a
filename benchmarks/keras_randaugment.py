"""`keras.layers.RandAugment`, 2 operations at full strength, in tf.data.

python benchmarks/keras_randaugment.py --size=224 --batch=32
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    options = timing.parse(argparse.ArgumentParser(description=__doc__))
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
    timing.show(timing.images_per_second(read, options.batch, options.seconds))


if __name__ == "__main__":
    main()
