"""Our RandAugment, 2 layers of magnitude 10: the pipeline alone.

python benchmarks/randaugment.py --size=224 --batch=32
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    options = timing.parse(argparse.ArgumentParser(description=__doc__))
    import tensorflow as tf

    from efficientnetv2.data.augment import policies

    images = tf.constant(timing.photos(options.size))

    def make_batch(step):
        index = step * options.batch + tf.range(options.batch, dtype=tf.int64)
        uniforms = tf.random.stateless_uniform(
            [options.batch, policies.rand_augment_draws(2)],
            tf.stack([0, step]),
        )
        chosen = tf.gather(images, index % len(images))
        return policies.rand_augment(chosen, uniforms, 10, num_layers=2)

    dataset = tf.data.Dataset.range(2**40)
    dataset = dataset.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)
    read = iter(dataset.prefetch(tf.data.AUTOTUNE)).__next__
    timing.show(timing.images_per_second(read, options.batch, options.seconds))


if __name__ == "__main__":
    main()
