"""RandAugment image by image in tf.data, as the released code has it.

    python benchmarks/per_image_randaugment.py --size=224 --batch=32

Each image draws its operations and runs through a branch of the graph for
each. The operations are ours, called with batches of one image; those of the
released code are slower.
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LAYERS, MAGNITUDE = 2, 10


def main() -> None:
    options = timing.parse(argparse.ArgumentParser(description=__doc__))
    import tensorflow as tf

    from efficientnetv2.data.augment import ops, policies

    def cutout(images, pixels):
        size = tf.shape(images)[1:3]
        centre = tf.random.uniform([1, 2]) * tf.cast(size, tf.float32)
        return ops.cutout(images, pixels, tf.cast(centre, tf.int32))

    def signed(operation):
        def either(images, value):
            negative = tf.random.uniform([]) < 0.5
            value = tf.cast(value, tf.float32)
            return operation(images, tf.where(negative, -value, value))

        return either

    operations = {
        "AutoContrast": lambda images, _: ops.autocontrast(images),
        "Equalize": lambda images, _: ops.equalize(images),
        "Invert": lambda images, _: ops.invert(images),
        "Rotate": signed(ops.rotate),
        "Posterize": ops.posterize,
        "Solarize": ops.solarize,
        "Color": ops.color,
        "Contrast": ops.contrast,
        "Brightness": ops.brightness,
        "Sharpness": ops.sharpness,
        "ShearX": signed(ops.shear_x),
        "ShearY": signed(ops.shear_y),
        "TranslateX": signed(ops.translate_x),
        "TranslateY": signed(ops.translate_y),
        "Cutout": cutout,
        "SolarizeAdd": ops.solarize_add,
    }

    def augment(image):
        images = image[tf.newaxis]
        for _ in range(LAYERS):

            def branch(name, images=images):
                argument = policies.level_to_arg(name, MAGNITUDE)
                return lambda: operations[name](images, argument)

            names = policies.RAND_AUGMENT_OPS
            chosen = tf.random.uniform([], 0, len(names), tf.int32)
            images = tf.switch_case(chosen, [branch(name) for name in names])
        return images[0]

    dataset = tf.data.Dataset.from_tensor_slices(timing.photos(options.size))
    dataset = dataset.repeat().map(
        tf.autograph.experimental.do_not_convert(augment),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    dataset = dataset.batch(options.batch, drop_remainder=True)
    read = iter(dataset.prefetch(tf.data.AUTOTUNE)).__next__
    timing.show(timing.images_per_second(read, options.batch, options.seconds))


if __name__ == "__main__":
    main()
