"""One measurement of this package, in a process of its own.

    python benchmarks/ours.py step --size=64 --batch=64

Prints a line of JSON with the figure; `benchmarks/run.py` compares it with
peers.py.
"""

import concurrent.futures
import functools
import io
import pathlib
import resource
import sys
import tempfile
from collections.abc import Callable

import timing

# Of the folder of many images.
FOLDER_CLASSES = 100
HEIGHT, WIDTH, PHOTOS = 375, 500, 256


def b0_config(options, overrides: str):
    """Returns our configuration of EfficientNetV2-B0 on images of one size."""
    from efficientnetv2 import config as config_lib

    return config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-b0",
        recipe="imagenet_code",
        hparam_str=f"{overrides}model.num_classes={timing.CLASSES},train.stages=1,"
        f"train.batch_size={options.batch},train.isize={options.size}",
    )


def step(options) -> float:
    """Our training step: softmax cross-entropy and RMSProp, as the peers'.

    --full adds the moving average of the weights and weight decay; --without
    puts Keras' own layers in the place of one kind of ours.
    """
    import keras

    from efficientnetv2 import config as config_lib
    from efficientnetv2 import engines
    from efficientnetv2.models import kernels

    pairs = (
        (kernels.PointwiseConv2D, keras.layers.Conv2D),
        (kernels.DepthwiseConv2D, keras.layers.DepthwiseConv2D),
        (kernels.BatchNormalization, keras.layers.BatchNormalization),
    )
    for name, (ours, theirs) in zip(timing.LAYERS, pairs, strict=True):
        if options.without == name:
            ours.call = theirs.call
    job = "train.ema_decay=0,train.weight_decay_exclude=.*,"
    precision = f"runtime.mixed_precision={options.precision},"
    config = b0_config(options, precision + ("" if options.full else job))
    engines.set_up(config)
    engine = engines.create(config, config_lib.run_plan(config))
    batch = tuple(
        map(
            keras.ops.convert_to_tensor,
            timing.training_batch(options.batch, options.size),
        )
    )
    return timing.images_per_second(
        lambda: float(engine.step(batch, 0.2)["loss"]),
        options.batch,
        options.seconds,
    )


def waiting(options) -> float:
    """The share of its time that the recipe `fashion_mnist` waits for data."""
    from efficientnetv2 import config as config_lib
    from efficientnetv2 import speed

    # About this many steps of the recipe take a second.
    steps = max(1, round(options.seconds * 5))
    stages = speed.measure_stages(config_lib.load("fashion_mnist"), steps)
    return speed.waiting_share(stages)


def first_step(options) -> float:
    """Seconds from the start of our program to the end of its first step.

    EfficientNetV2-B0 on Fashion-MNIST by `python -m efficientnetv2.main`: all
    that it does before training counts.
    """
    from efficientnetv2 import config as config_lib
    from efficientnetv2 import speed

    config = config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-b0",
        hparam_str=f"train.isize={options.size},eval.isize={options.size},"
        f"data.ibase={options.size},train.batch_size={options.batch},"
        f"model.num_classes={timing.CLASSES}",
    )
    return speed.first_step_seconds(config)


def _write_class(folder: pathlib.Path, number: int, images: int) -> None:
    """Writes the images of a class, each of other colours."""
    import numpy as np
    from PIL import Image

    folder = folder / f"class_{number:03d}"
    folder.mkdir()
    generator = np.random.default_rng(number)
    for index in range(images):
        coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(coarse.repeat(8, 0).repeat(8, 1))
        image.save(folder / f"{index:06d}.jpg")


def folder(options) -> float:
    """Seconds, or with --memory GiB, to the first step on a folder of images.

    By `python -m efficientnetv2.main --dataset=FOLDER` with all its defaults.
    """
    from efficientnetv2 import speed

    with tempfile.TemporaryDirectory() as place:
        images = pathlib.Path(place, "photos")
        images.mkdir()
        with concurrent.futures.ProcessPoolExecutor() as pool:
            each = options.images // FOLDER_CLASSES
            for job in [
                pool.submit(_write_class, images, number, each)
                for number in range(FOLDER_CLASSES)
            ]:
                job.result()
        seconds = speed.seconds_to_line(
            [
                *(sys.executable, "-m", "efficientnetv2.main"),
                *(f"--dataset={images}", "--mode=train"),
                f"--model_dir={place}/run",
            ],
            " loss ",
        )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 2**20 if options.memory else seconds


def _per_image(images):
    """Returns RandAugment on a dataset of images, one at a time.

    As the released code does it: an image draws its operations, and takes one
    branch of the graph for each. The operations are ours.
    """
    import tensorflow as tf

    from efficientnetv2.data import policies

    size = tf.cast(tf.shape(images)[1:3], tf.float32)

    def augment(image):
        batch = image[tf.newaxis]
        uniforms = tf.random.uniform([1, policies.draws("randaug")])
        for layer in policies.layers(uniforms, "randaug", 10):
            centre = tf.stack([layer.y, layer.x], 1) * size
            centre = tf.cast(centre, tf.int32)
            branches = [
                functools.partial(
                    policies.operate, name, batch, layer.argument, centre
                )
                for name in policies.RAND_AUGMENT_OPS
            ]
            batch = tf.switch_case(layer.operation[0], branches)
        return batch[0]

    dataset = tf.data.Dataset.from_tensor_slices(images).repeat()
    return dataset.map(
        tf.autograph.experimental.do_not_convert(augment),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def randaugment(options) -> float:
    """Our RandAugment, 2 layers of magnitude 10: the pipeline alone.

    --per_image transforms image by image, not batches.
    """
    import tensorflow as tf

    from efficientnetv2.data import policies

    images = tf.constant(timing.photos(options.size))

    def make_batch(step):
        index = step * options.batch + tf.range(options.batch, dtype=tf.int64)
        uniforms = tf.random.stateless_uniform(
            [options.batch, policies.draws("randaug")],
            tf.stack([0, step]),
        )
        chosen = tf.gather(images, index % len(images))
        return policies.distort(chosen, uniforms, "randaug", 10)

    if options.per_image:
        dataset = _per_image(images).batch(options.batch, drop_remainder=True)
    else:
        dataset = tf.data.Dataset.range(2**40)
        dataset = dataset.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)
    read = iter(dataset.prefetch(tf.data.AUTOTUNE)).__next__
    return timing.images_per_second(read, options.batch, options.seconds)


def _encoded_photos() -> list[bytes]:
    """Returns JPEGs of smooth shapes and a little noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    results = []
    for _ in range(PHOTOS):
        coarse = random.integers(0, 256, [9, 12, 3], np.uint8)
        photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.BICUBIC)
        noise = random.normal(0, 6, [HEIGHT, WIDTH, 3])
        pixels = np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        results.append(buffer.getvalue())
    return results


def jpeg(options) -> float:
    """Photographs in JPEG to training images, by random crops and flips.

    Without a policy, so that decoding is most of the work; --whole decodes
    whole images (data.fast_jpeg=false). --on_device has RandAugment and Mixup,
    which an accelerator would do: what the host still does counts.
    """
    import numpy as np

    from efficientnetv2 import progressive
    from efficientnetv2.data import pipeline, sources

    augmentation = "data.augname=null,data.mixup_alpha=0,data.cutmix_alpha=0,"
    if options.on_device:
        augmentation = "data.augname=randaug,data.mixup_alpha=0.2,"
    config = b0_config(
        options,
        f"{augmentation}data.transformations=crop|flip,"
        f"data.fast_jpeg={not options.whole},",
    )
    # More steps than are measured.
    plan = progressive.plan_run(config, PHOTOS, total_steps=100_000)
    source = sources.EncodedSource(
        _encoded_photos(), False, np.zeros(PHOTOS, np.int64), ["photo"]
    )
    dataset = pipeline.training_dataset(
        source, config, plan, on_device=options.on_device
    )
    read = iter(dataset).__next__
    return timing.images_per_second(read, options.batch, options.seconds)


def inference(options) -> dict:
    """The latency of a format in ms, for pixels, with random weights."""
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        classify = _classifier(options.form, options.size, place)
        return timing.latency(
            classify, options.batch, options.size, options.seconds
        )


def _classifier(form: str, size: int, place: pathlib.Path) -> Callable:
    """Returns a function from uint8 images to probabilities."""
    import numpy as np
    import tensorflow as tf

    from efficientnetv2 import config as config_lib
    from efficientnetv2.models import architecture
    from efficientnetv2.serving import converters
    from efficientnetv2.serving.spec import ServingSpec

    options = {"num_classes": timing.CLASSES}
    config = config_lib.load_model("efficientnetv2-b0", options)
    network = architecture.build_network(config["model"])
    names = [f"class {k}" for k in range(timing.CLASSES)]
    spec = ServingSpec(size, "v2", [], "softmax", names)
    if form == "saved_model":
        converters.write_saved_model(network, spec, place / "saved_model")
        return converters.load_saved_model(place / "saved_model")
    if form == "onnx":
        converters.write_onnx(network, spec, place / "model.onnx")
        onnx = converters.load_onnx(place / "model.onnx")
        return lambda images: onnx(images.astype(np.float32))
    if form == "int8":
        images = np.random.default_rng(0).integers(0, 256, [8, size, size, 3])
        converters.write_litert(network, spec, place, images.astype(np.float32))
        return converters.load_litert(place / "int8.tflite")

    @tf.function(reduce_retracing=True)
    def by_keras(images):
        logits = network(tf.cast(images, tf.float32) / 128.0 - 1.0)
        return spec.probabilities(logits)

    return lambda images: by_keras(images).numpy()


if __name__ == "__main__":
    timing.main(
        (step, waiting, first_step, folder, randaugment, jpeg, inference)
    )
