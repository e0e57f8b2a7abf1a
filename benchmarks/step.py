"""Our training step: EfficientNetV2-B0 on the TensorFlow engine.

    python benchmarks/step.py --size=64 --batch=64
    python benchmarks/step.py --size=64 --batch=64 --without=pointwise

The job is that of the peers: softmax cross-entropy and RMSProp. --full adds
the moving average of the weights and weight decay, --without takes away one
kind of our layers and puts Keras' own in their place.
"""

import argparse
import os

import timing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LAYERS = ("pointwise", "depthwise", "norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--without", choices=LAYERS)
    options = timing.parse(parser)
    import keras
    import tensorflow as tf

    from efficientnetv2 import config as config_lib
    from efficientnetv2 import engines
    from efficientnetv2.models import convolutions, layers

    pairs = (
        (convolutions.PointwiseConv2D, keras.layers.Conv2D),
        (convolutions.DepthwiseConv2D, keras.layers.DepthwiseConv2D),
        (layers.BatchNormalization, keras.layers.BatchNormalization),
    )
    for name, (ours, theirs) in zip(LAYERS, pairs, strict=True):
        if options.without == name:
            ours.call = theirs.call
    job = "" if options.full else "train.ema_decay=0,"
    job += "" if options.full else "train.weight_decay_exclude=.*,"
    config = config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-b0",
        recipe="imagenet_code",
        hparam_str=f"{job}model.num_classes={timing.CLASSES},train.stages=1,"
        f"train.batch_size={options.batch},train.isize={options.size}",
    )
    engine = engines.create(config, config_lib.run_plan(config))
    batch = timing.training_batch(options.batch, options.size)
    batch = tuple(map(tf.constant, batch))
    timing.show(
        timing.images_per_second(
            lambda: float(engine.step(batch, 0.2)["loss"]),
            options.batch,
            options.seconds,
        )
    )


if __name__ == "__main__":
    main()
