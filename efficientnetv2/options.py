"""Every option of a run: default, type, range, choices and meaning.

The check of configurations, the help of the flags, hparams/base.yaml and
docs/options.md all follow from here; `python -m efficientnetv2.options`
writes the two files. Names are those of the released code wherever it has the
option.
"""

import dataclasses
from typing import Literal

from efficientnetv2 import normalizations, schema
from efficientnetv2.models.structure import BlockArgs
from efficientnetv2.schema import option, regular_expression

# Beyond it no memory holds the activations.
_LARGEST_IMAGE = 8192
MIN_IMAGE_SIZE = 8
_SHARE = (0, 1)


def _block_strings(texts: list) -> None:
    for text in texts:
        BlockArgs.from_string(text)


@dataclasses.dataclass
class Model:
    """The network."""

    model_name: str = option("efficientnetv2-b0", "a name in hparams/models")
    blocks: list = option(
        [], "block strings, see efficientnetv2/models", check=_block_strings
    )
    fused_stages: int | None = option(
        None,
        "number of first stages that become Fused-MBConv, the others MBConv; "
        "null: as in the block strings",
        low=0,
    )
    width_coefficient: float = option(1.0, "scales all channels", 1e-3)
    depth_coefficient: float = option(1.0, "scales every stage's blocks", 1e-3)
    depth_divisor: int = option(8, "channels are multiples of this", 1)
    min_depth: int = option(8, "least number of channels", 0)
    round_limit: float | None = option(
        None,
        "0.9: round up where rounding loses more than a tenth, as in V1's "
        "original code and Keras",
        *_SHARE,
    )
    fix_head_stem: bool = option(
        False,
        "true: do not scale stem and head, nor the depth of the first and "
        "last stage, as in Lite",
    )
    feature_size: int = option(1280, "channels of the unscaled head", 1)
    num_classes: int | None = option(
        None, "outputs of the classifier; null: the dataset's classes", 1
    )
    act_fn: Literal[
        "silu", "swish", "relu", "relu6", "hswish", "mish",
        "elu", "selu", "leaky_relu",
    ] = option("silu", "activation")  # fmt: skip
    bn_type: Literal["bn", "sync_bn", "gn"] | None = option(
        None, "null and bn: batch norm; gn: group norm"
    )
    bn_momentum: float = option(
        0.9, "decay of the moving statistics; the paper: 0.99", 0, 1
    )
    bn_epsilon: float = option(0.001, "added to the variance", 0)
    gn_groups: int = option(8, "groups of group norm", 1)
    survival_prob: float | None = option(
        0.8,
        "survival probability of the last block's residual branch, falling "
        "linearly from 1 at the first block; 1, 0, null: off",
        *_SHARE,
    )
    conv_dropout: float | None = option(
        None, "dropout rate inside the blocks", 0, 0.999
    )
    dropout_rate: float | None = option(
        0.2, "dropout before the classifier, last stage; 0, null: off", 0, 0.999
    )
    dropout_base: float | None = option(
        None, "dropout rate of the first stage; null: dropout_rate", 0, 0.999
    )
    headbias: float | None = option(None, "initial bias of the classifier")


@dataclasses.dataclass
class Train:
    """Training."""

    epochs: float = option(350.0, "length; may be fractional", 1e-6, 1e9)
    min_steps: int = option(0, "train at least this many steps", 0)
    extend: bool = option(
        False,
        "true: allow train.epochs to exceed that of the run in the folder; "
        "its schedules stretch",
        free=True,
    )
    batch_size: int = option(4096, "images per step, over all devices", 1)
    batch_parts: int = option(
        1,
        "parts of a batch that TensorFlow computes in parallel on a CPU, one "
        "per core, with batch norm over each part; other devices: all of it",
        1,
        64,
    )
    isize: float = option(
        224.0,
        "image size of the last stage in pixels; at most 2: as a fraction of "
        "eval.isize",
        high=_LARGEST_IMAGE,
    )
    stages: int = option(1, "stages of progressive learning", 1)
    isize_rule: Literal["code", "paper"] = option(
        "code",
        "code: stage k of n ends at int(ibase + (isize - ibase) * k / n); "
        "paper: linear, with the first stage at ibase",
    )
    stage_order: Literal["ascending", "random"] = option(
        "ascending",
        "random: each step draws its stage, and with it the image size, as in "
        "Mix & Match",
    )
    progressive_image_size: bool = option(
        True,
        "grow the images from stage to stage; false: the final size throughout",
    )
    adaptive_randaugment: bool = option(
        True, "ramp the RandAugment magnitude; false: data.ram throughout"
    )
    adaptive_mixing: bool = option(
        True,
        "ramp the Mixup and CutMix alphas; false: the final ones throughout",
    )
    adaptive_dropout: bool = option(
        True, "ramp the dropout rate; false: model.dropout_rate throughout"
    )
    adaptive_weight_decay: bool = option(
        True,
        "ramp the weight decay; false: train.weight_decay throughout (about "
        "1e-5; a coefficient near 1 destroys training)",
    )
    micro_batch_size: int = option(
        0,
        "images whose gradients a device computes at once; gradients are "
        "accumulated over the batch, with batch norm over each part; 0: all",
        0,
    )
    on_nan: Literal["stop", "rollback"] = option(
        "stop",
        "response to a loss that is not finite; rollback: return to the last "
        "checkpoint and skip that data",
    )
    optimizer: Literal[
        "rmsprop", "momentum", "nesterov", "sgd", "adam", "adamw", "lion"
    ] = option("rmsprop", "optimizer")
    momentum: float = option(
        0.9, "for rmsprop, momentum and nesterov", 0, 0.999999
    )
    rmsprop_decay: float = option(0.9, "decay of the mean square", 0, 0.999999)
    rmsprop_epsilon: float = option(0.001, "inside the square root", 0)
    lr_sched: Literal["exponential", "cosine", "linear", "constant"] = option(
        "exponential", "learning-rate schedule; exponential is a staircase"
    )
    lr_base: float = option(0.016, "learning rate per 256 images per step", 0)
    lr_min: float = option(0.0, "lowest learning rate, per 256 images", 0)
    lr_decay_epoch: float = option(2.4, "epochs per staircase step", 1e-9)
    lr_decay_factor: float = option(0.97, "factor from step to step", 0)
    lr_warmup_epoch: float = option(5.0, "epochs of linear warm-up", 0)
    ema_decay: float = option(
        0.9999,
        "decay of the moving average of the weights: "
        "min(ema_decay, (2 + step) / (11 + step)); 0: off",
        0,
        0.9999999,
    )
    weight_decay: float = option(
        1e-05,
        "coefficient wd of the L2 loss wd / 2 * |w|^2; near 1, that loss "
        "dwarfs the cross-entropy and drives every weight to zero: accuracy "
        "stays at chance",
        0,
    )
    weight_decay_inc: float = option(
        0.0, "ramp: (1 + inc * step / steps) * weight_decay", -1
    )
    weight_decay_exclude: str = option(
        ".*(bias|gamma|beta).*",
        "variables without weight decay, as a regex",
        check=regular_expression,
    )
    decoupled_weight_decay: float = option(
        0.0,
        "w -= learning rate * this * w, in addition to the L2 loss; intended "
        "for adamw and lion (0.05)",
        *_SHARE,
    )
    loss_type: Literal["softmax", "sigmoid", "sigmoid_sum"] = option(
        "softmax",
        "for images with several labels: softmax with equal shares, sigmoid "
        "(mean over classes) or sigmoid_sum (sum over classes)",
    )
    label_smoothing: float = option(0.1, "not for sigmoid_sum", 0, 0.999)
    class_weights: list | None = option(
        None,
        "balanced (rare classes count more), or numbers, such as "
        "cat:2|dog:0.5, for classes whose weight is not 1",
    )
    gclip: float = option(
        0.0, "clips each gradient, then the global norm; 0: off", 0
    )
    split: str = option("train", "split to train on")
    seed: int = option(0, "random seed", 0, 2**31 - 1)
    ft_init_ckpt: str | None = option(
        None,
        "run folder, checkpoint or published weights to start from; a "
        "classifier of another size starts from scratch",
    )
    layer_decay: float = option(
        1.0,
        "the learning rate of each block is this times that of the next "
        "block; 1: the same for all",
        1e-3,
        1,
    )
    unfreeze_epochs: float = option(
        0.0,
        "train the classifier first; the blocks join from last to first over "
        "this many epochs; 0: train everything from the start",
        0,
    )
    callbacks: list = option(
        [],
        "Keras callbacks, as module:Class, called without arguments",
        check=schema.references,
        free=True,
    )
    varsexp: str | None = option(
        None,
        "train only variables that match this regex",
        check=regular_expression,
    )


@dataclasses.dataclass
class Eval:
    """Evaluation."""

    batch_size: int = option(100, "images per batch", 1, free=True)
    isize: int = option(224, "image size in pixels", high=_LARGEST_IMAGE)
    split: str = option("eval", "split to evaluate once, after training")
    val_split: str | None = option(
        "minival",
        "split to evaluate during training; chooses the best checkpoint; "
        "null: none, the last checkpoint is the best",
    )
    every_epochs: float = option(1.0, "epochs between evaluations", 1e-3)
    patience: int = option(
        0,
        "stop after this many evaluations in a row without a better top-1; 0: "
        "never",
        0,
    )


@dataclasses.dataclass
class Data:
    """Data and augmentation."""

    ds_name: str = option("fashion_mnist", "set by --dataset")
    data_dir: str | None = option(
        None,
        "folder of the data; null: ~/.cache/efficientnetv2/data",
        free=True,
    )
    num_classes: int | None = option(None, "from datasets/NAME.yaml", 1)
    multi_label: bool = option(
        False, "whether an image can have several labels"
    )
    images_per_class: int | None = option(
        None,
        "train on this many images per class, a fixed random choice, the same "
        "for all seeds; a larger number adds to a smaller one; null: all",
        1,
    )
    allow_changes: bool = option(
        False, "true: resume a run although its images changed", free=True
    )
    on_corrupt: Literal["error", "skip"] = option(
        "error",
        "response to an image that cannot be decoded; error: end the run and "
        "name the image; skip: count it and continue without it",
    )
    fast_jpeg: bool = option(
        True,
        "decode only the crop of a JPEG for training, at a half, quarter or "
        "eighth of its size where that is at least the stage's; false: the "
        "whole image",
    )
    antialias: bool = option(
        False,
        "average pixels when images shrink, in training, evaluation and "
        "exports alike; false: skip pixels, as the released code does",
    )
    shuffle_buffer: int = option(
        8192,
        "records shuffled together when a dataset is read from shards",
        1,
    )
    augname: Literal[normalizations.POLICIES] | None = option(
        "randaug", "augmentation policy; null: none"
    )
    normalization: Literal[normalizations.MODES] = option(
        "v2",
        "pixel values that the network sees; v2: (x - 128) / 128; v1: "
        "ImageNet's mean and deviation, of V1 and V2-B0 to B3; lite: (x - "
        "127) / 128; ft: fine-tuning of the released code",
    )
    aug_prob: float = option(
        1.0, "fraction of the images that the policy changes", 0, 1
    )
    ra_num_layers: int = option(2, "operations per image", 0, 8)
    ram: float = option(15.0, "RandAugment magnitude of the last stage", 0, 100)
    ram_base: float = option(5.0, "magnitude of the first stage", 0, 100)
    cutout_const: float = option(
        40.0,
        "half the side of RandAugment's Cutout in pixels, at magnitude 10",
        0,
    )
    translate_const: float = option(
        100.0, "RandAugment's shift in pixels, at magnitude 10", 0
    )
    mixup_alpha: float = option(0.0, "Mixup of the last stage; 0: off", 0, 100)
    mixup_alpha_base: float = option(0.0, "Mixup of the first stage", 0, 100)
    cutmix_alpha: float = option(
        0.0, "CutMix of the last stage; 0: off", 0, 100
    )
    cutmix_alpha_base: float = option(0.0, "CutMix of the first stage", 0, 100)
    cutmix_labels: Literal["image", "batch"] = option(
        "image",
        "a label is mixed by the area of the image's own box, as in the "
        "CutMix paper; batch: by the mean area of all boxes of the batch, as "
        "in the released code",
    )
    augment_on: Literal["host", "device"] | None = option(
        None,
        "device: the pipeline sends crops, and the accelerator augments, "
        "normalizes and mixes them, to the same numbers; null: device for a "
        "GPU or TPU from 96 pixels on, else host",
        free=True,
    )
    ibase: int = option(
        128, "image size that the ramp starts from", high=_LARGEST_IMAGE
    )
    transformations: list[Literal["crop", "shift", "flip"]] = option(
        ["crop", "flip"], "crop is a random resized crop"
    )
    crop_area_min: float = option(
        0.05, "smallest fraction of the image that crop keeps", 1e-3, 1
    )
    shift: float = option(
        0.1, "largest shift, as a fraction of the image size", 0, 1
    )
    eval_transformations: list[Literal["crop"]] | None = option(
        None,
        "null: the released code's rule, a central crop below 320 pixels; "
        "[]: none",
    )


@dataclasses.dataclass
class Checkpointing:
    """Checkpoints."""

    keep: int = option(
        3, "last checkpoints kept, in addition to the best", 1, free=True
    )
    every_minutes: float = option(
        5.0, "minutes between checkpoints", 0.01, free=True
    )
    every_steps: int = option(
        0, "steps between checkpoints; 0: by time, epoch, stage", 0, free=True
    )


@dataclasses.dataclass
class Runtime:
    """Devices."""

    strategy: Literal["auto", "cpu", "gpu", "mirrored", "multi_worker"] = (
        option(
            "auto",
            "devices: cpu, gpu, mirrored, multi_worker; auto: what is "
            "available; mirrored: all GPUs of a machine; multi_worker: the "
            "machines of TF_CONFIG",
            free=True,
        )
    )
    mixed_precision: (
        Literal[
            "mixed_bfloat16", "mixed_float16", "float32", "bfloat16_products"
        ]
        | None
    ) = option(
        None,
        "null: half precision on TPUs and on GPUs with tensor cores, float32 "
        "elsewhere; bfloat16_products: only convolutions that are not "
        "depthwise round to bfloat16, on CPUs with avx512_bf16 or amx_bf16",
    )
    jit_compile: bool | None = option(
        None,
        "true: XLA on TensorFlow; null and false: none. JAX always compiles",
    )
    threads: int = option(0, "of TensorFlow; 0: one per core", 0, free=True)


SECTIONS = {
    "model": Model,
    "train": Train,
    "eval": Eval,
    "data": Data,
    "checkpoint": Checkpointing,
    "runtime": Runtime,
}
OPTIONS: dict[str, schema.Option] = {
    name: each
    for section, fields in SECTIONS.items()
    for name, each in schema.list_options(fields, f"{section}.").items()
}
# Where '|' belongs to the value.
REGULAR_EXPRESSIONS = tuple(
    each.name for each in OPTIONS.values() if each.check is regular_expression
)
# Options for one command, which a run does not keep.
ONE_TIME_OPTIONS = ("data.allow_changes", "train.extend")
FREE_OPTIONS = tuple(each.name for each in OPTIONS.values() if each.free)
# Options of a model that determine the names, the sizes or the meaning of its
# weights.
SHAPING_OPTIONS = (
    *("model_name", "blocks", "fused_stages", "width_coefficient"),
    *("depth_coefficient", "depth_divisor", "min_depth", "round_limit"),
    *("fix_head_stem", "feature_size", "act_fn", "bn_type", "gn_groups"),
)

if __name__ == "__main__":
    for path, text in schema.written_files(SECTIONS).items():
        path.write_text(text, encoding="utf-8")
