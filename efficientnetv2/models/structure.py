"""The structure of a network: block strings, and what they add up to.

A block string such as 'r4_k3_s2_e4_i24_o48_c1' or 'r6_k3_s2_e2_i64_o128_se0.25'
describes one stage of the network: r repeats, k kernel size, s stride of the
first block, e expand ratio, i and o channels in and out before width scaling,
c 1 for Fused-MBConv (0, the default, for MBConv), se squeeze ratio.

A `model_config` is the section `model` of a configuration. Parameters and
multiply-adds follow from it by arithmetic; no model is built.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from efficientnetv2.formatting import align_table, format_count

_BLOCK_FIELDS = {
    "r": ("num_repeat", int),
    "k": ("kernel_size", int),
    "s": ("strides", int),
    "e": ("expand_ratio", int),
    "i": ("input_filters", int),
    "o": ("output_filters", int),
    "c": ("conv_type", int),
    "se": ("se_ratio", float),
}


@dataclasses.dataclass(frozen=True)
class BlockArgs:
    """One stage of the network; see the module's docstring."""

    num_repeat: int
    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int
    output_filters: int
    conv_type: int = 0
    se_ratio: float | None = None

    @property
    def has_se(self) -> bool:
        """Whether the block has squeeze-and-excitation."""
        return self.se_ratio is not None and 0 < self.se_ratio <= 1

    @property
    def expanded_filters(self) -> int:
        """Channels of the inner tensor."""
        return self.input_filters * self.expand_ratio

    @property
    def se_filters(self) -> int:
        """Channels of the squeeze; of the block's input, not the inner one."""
        return max(1, int(self.input_filters * self.se_ratio))

    @classmethod
    def from_string(cls, text: str) -> "BlockArgs":
        """Parses a block string.

        Raises:
            ValueError: for a field that is unknown, missing, given twice or
                out of range; the message names it.
        """
        values = {}

        def refuse(reason: str):
            raise ValueError(f"Block string {text!r}: {reason}.")

        for part in str(text).split("_"):
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if not match or match[1] not in _BLOCK_FIELDS:
                known = ", ".join(_BLOCK_FIELDS)
                refuse(f"{part!r} is not one of {known} followed by a number")
            field, kind = _BLOCK_FIELDS[match[1]]
            if field in values:
                refuse(f"two {match[1]!r}")
            if kind is int and "." in match[2]:
                refuse(f"{part!r} needs a whole number")
            values[field] = kind(match[2])
        for key, (field, _) in _BLOCK_FIELDS.items():
            if field not in values and key not in ("c", "se"):
                refuse(f"it has no {key!r}")
        args = cls(**values)
        if args.conv_type not in (0, 1):
            refuse("c must be 0 or 1")
        if min(dataclasses.astuple(args)[:6]) < 1:
            refuse("a value below 1")
        return args


def round_filters(filters: float, model_config: Mapping) -> int:
    """Scales a number of channels and rounds it to a multiple of the divisor.

    The original code of V1, and `keras.applications` after it, take one step
    up where rounding leaves less than `round_limit` of the number, 0.9; the
    released code has no such rule (None). Of all models only the first stages
    of B3 and Lite3 differ.
    """
    if not model_config["width_coefficient"]:
        return int(filters)
    divisor = model_config["depth_divisor"]
    filters *= model_config["width_coefficient"]
    rounded = int(filters + divisor / 2) // divisor * divisor
    rounded = max(model_config["min_depth"] or divisor, rounded)
    if rounded < (model_config.get("round_limit") or 0.0) * filters:
        rounded += divisor
    return int(rounded)


def head_filters(model_config: Mapping) -> int:
    """Returns the number of channels of the head."""
    filters = model_config["feature_size"]
    if model_config.get("fix_head_stem"):
        return filters
    return round_filters(filters, model_config)


def expand_stages(model_config: Mapping) -> list[list[BlockArgs]]:
    """Returns the blocks of each stage, scaled, with `num_repeat` 1.

    `fused_stages`, if not None, makes the blocks of the first stages
    Fused-MBConv and all others MBConv, whatever the block strings say: the
    paper's ablation (arXiv 2104.00298, table 3). With `fix_head_stem` the stem
    keeps its width, and the first and the last stage their number of blocks:
    EfficientNet-Lite.

    Raises:
        ValueError: for an invalid block string, or more `fused_stages` than
            there are stages.
    """
    stages = [BlockArgs.from_string(text) for text in model_config["blocks"]]
    fused = model_config.get("fused_stages")
    if fused is not None:
        if fused > len(stages):
            raise ValueError(
                f"fused_stages={fused} is more than the {len(stages)} stages "
                "of the model."
            )
        stages = [
            dataclasses.replace(args, conv_type=int(index < fused))
            for index, args in enumerate(stages)
        ]
    fixed = model_config.get("fix_head_stem")
    ends = (0, len(stages) - 1)
    return [
        _expand(args, model_config, bool(fixed and index in ends), index == 0)
        for index, args in enumerate(stages)
    ]


def _expand(
    args: BlockArgs, model_config: Mapping, fixed: bool, is_first: bool
) -> list[BlockArgs]:
    input_filters, repeats = args.input_filters, args.num_repeat
    if not (fixed and is_first):
        input_filters = round_filters(input_filters, model_config)
    if not fixed:
        depth = model_config["depth_coefficient"] or 1.0
        repeats = int(math.ceil(depth * repeats))
    first = dataclasses.replace(
        args,
        num_repeat=1,
        input_filters=input_filters,
        output_filters=round_filters(args.output_filters, model_config),
    )
    rest = dataclasses.replace(
        first, input_filters=first.output_filters, strides=1
    )
    return [first] + [rest] * (repeats - 1)


def expand_blocks(model_config: Mapping) -> list[BlockArgs]:
    """Returns the blocks of all stages in one list; see `expand_stages`."""
    return [block for stage in expand_stages(model_config) for block in stage]


# --- Parameters and multiply-adds ---------------------------------------------


@dataclasses.dataclass
class StageCount:
    """One row of a model's table."""

    operator: str  # such as 'MBConv6, k5x5, SE0.25', as in the paper's tables
    stride: int  # of the first layer
    channels: int  # of the output
    layers: int  # number of blocks
    size: tuple[int, int]  # height, width of the output; (1, 1) once pooled
    # Weights, with the moving statistics of batch norm, as Keras counts them.
    parameters: int = 0
    trainable: int = 0  # weights without these
    # Of one image at inference. Convolutions and the dense layer count;
    # normalization, activation and pooling do not.
    multiply_adds: int = 0

    def add_convolution(
        self, taps: int, channels_in: int, channels_out: int, bias=False
    ) -> None:
        """Adds a convolution whose output has `size`.

        Args:
            taps: pixels of the kernel.
            channels_in: that each output channel sees.
            channels_out, bias: of the output.
        """
        weights = taps * channels_in * channels_out
        self.multiply_adds += weights * self.size[0] * self.size[1]
        weights += channels_out if bias else 0
        self.parameters += weights
        self.trainable += weights

    def add_norm(self, channels: int, norm_type: str | None) -> None:
        """Adds scale and offset, and the moving statistics of batch norm."""
        self.trainable += 2 * channels
        self.parameters += (2 if norm_type == "gn" else 4) * channels

    def add_block(self, block: BlockArgs, norm_type: str | None) -> None:
        """Adds a block, whose strides `size` takes."""
        for taps, channels_in, channels_out, stride in _convolutions(block):
            self.size = _strided(self.size, stride)
            self.add_convolution(taps, channels_in, channels_out)
            self.add_norm(channels_out, norm_type)
        if block.has_se:
            inner, squeezed = block.expanded_filters, block.se_filters
            size, self.size = self.size, (1, 1)
            self.add_convolution(1, inner, squeezed, bias=True)
            self.add_convolution(1, squeezed, inner, bias=True)
            self.size = size


def count_stages(
    model_config: Mapping,
    image_size: int | tuple[int, int],
    include_top: bool = True,
) -> list[StageCount]:
    """Returns one row each for the stem, the stages, the head, the classifier.

    `image_size` is in pixels, or (height, width).
    """
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    norm_type = model_config["bn_type"]
    stages = expand_stages(model_config)
    size = _strided(image_size, 2)
    channels = stages[0][0].input_filters
    stem = StageCount("Conv, k3", 2, channels, 1, size)
    stem.add_convolution(9, 3, channels)
    stem.add_norm(channels, norm_type)
    rows = [stem]
    for first, *rest in stages:
        kind, channels = _operator(first), first.output_filters
        row = StageCount(kind, first.strides, channels, 1 + len(rest), size)
        for block in (first, *rest):
            row.add_block(block, norm_type)
        size = row.size
        rows.append(row)
    features = head_filters(model_config)
    head = StageCount("Conv, k1, pooling", 1, features, 1, size)
    head.add_convolution(1, rows[-1].channels, features)
    head.add_norm(features, norm_type)
    head.size = (1, 1)
    rows.append(head)
    if include_top:
        classes = model_config["num_classes"]
        dense = StageCount("Dense", 1, classes, 1, (1, 1))
        dense.add_convolution(1, features, classes, bias=True)
        rows.append(dense)
    return rows


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _operator(block: BlockArgs) -> str:
    kind = "Fused-MBConv" if block.conv_type else "MBConv"
    text = f"{kind}{block.expand_ratio}, k{block.kernel_size}"
    return text + (f", SE{block.se_ratio:g}" if block.has_se else "")


def _convolutions(block: BlockArgs) -> Iterator[tuple[int, int, int, int]]:
    """Yields (taps, channels in, channels out, stride), each with a norm."""
    narrow, wide, out = (
        block.input_filters,
        block.expanded_filters,
        block.output_filters,
    )
    taps, expands = block.kernel_size**2, block.expand_ratio != 1
    if block.conv_type and not expands:
        yield taps, wide, out, block.strides
        return
    if block.conv_type:
        yield taps, narrow, wide, block.strides
    else:
        if expands:
            yield 1, narrow, wide, 1
        yield taps, 1, wide, block.strides
    yield 1, wide, out, 1


def _total(rows: list[StageCount]) -> StageCount:
    layers, *sums = (
        sum(getattr(row, name) for row in rows)
        for name in ("layers", "parameters", "trainable", "multiply_adds")
    )
    return StageCount("total", 1, rows[-1].channels, layers, (1, 1), *sums)


def count_model(
    model_config: Mapping, image_size: int | tuple[int, int]
) -> StageCount:
    """Returns the sum of the rows of `count_stages`."""
    return _total(count_stages(model_config, image_size))


def format_counts(rows: list[StageCount]) -> str:
    """Returns the rows and their sum as an aligned table."""
    header = "stage operator stride channels layers output params multiply-adds"
    lines = []
    for index, row in enumerate([*rows, _total(rows)]):
        line = [str(index), row.operator, str(row.stride), f"{row.channels:,}"]
        line += [str(row.layers), f"{row.size[0]}x{row.size[1]}"]
        line += map(format_count, (row.parameters, row.multiply_adds))
        lines.append(line)
    for column in (0, 2, 3, 5):
        lines[-1][column] = ""  # of the sum
    return align_table([header.split(), *lines], left=[1])
