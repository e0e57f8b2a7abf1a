"""Parameters and multiply-adds by arithmetic, without building a model."""

import dataclasses
from collections.abc import Iterator, Mapping

from efficientnetv2 import formatting
from efficientnetv2.models.block_strings import (
    BlockArgs,
    expand_stages,
    head_filters,
)


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
            channels_out: of the output.
            bias: whether each output channel has one.
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


def count_stages(
    model_config: Mapping,
    image_size: int | tuple[int, int],
    include_top: bool = True,
) -> list[StageCount]:
    """Returns one row each for the stem, the stages, the head, the classifier.

    Args:
        model_config: the section `model` of a configuration.
        image_size: in pixels, or (height, width).
        include_top: whether there is a classifier.
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
    for blocks in stages:
        row = StageCount(
            _operator(blocks[0]),
            blocks[0].strides,
            blocks[-1].output_filters,
            len(blocks),
            size,
        )
        for block in blocks:
            _add_block(row, block, norm_type)
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


def total(rows: list[StageCount]) -> StageCount:
    """Returns the sum of all rows."""
    return StageCount(
        "total",
        1,
        rows[-1].channels,
        sum(row.layers for row in rows),
        rows[-1].size,
        *(
            sum(getattr(row, name) for row in rows)
            for name in ("parameters", "trainable", "multiply_adds")
        ),
    )


def format_count(number: float) -> str:
    """Returns a count in three digits: 7.14M, 720M, 8.4B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:#.3g}".rstrip(".") + unit
    return str(int(number))


def format_table(rows: list[StageCount]) -> str:
    """Returns the rows and their sum as an aligned table."""
    lines = [
        ("stage", "operator", "stride", "channels", "layers", "output")
        + ("params", "multiply-adds")
    ]
    sums = total(rows)
    for index, row in enumerate([*rows, sums]):
        is_sum = row is sums
        lines.append(
            (
                "" if is_sum else str(index),
                row.operator,
                "" if is_sum else str(row.stride),
                "" if is_sum else f"{row.channels:,}",
                str(row.layers),
                "" if is_sum else f"{row.size[0]}x{row.size[1]}",
                format_count(row.parameters),
                format_count(row.multiply_adds),
            )
        )
    return formatting.table(lines, left=[1])


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _operator(block: BlockArgs) -> str:
    kind = "Fused-MBConv" if block.conv_type else "MBConv"
    text = f"{kind}{block.expand_ratio}, k{block.kernel_size}"
    return text + (f", SE{block.se_ratio:g}" if block.has_se else "")


def _layers(block: BlockArgs) -> Iterator[tuple[int, int, int, int]]:
    """Yields (taps, channels in, channels out, stride), each with a norm."""
    wide = block.expanded_filters
    taps = block.kernel_size**2
    if block.conv_type:
        if block.expand_ratio != 1:
            yield taps, block.input_filters, wide, block.strides
            yield 1, wide, block.output_filters, 1
        else:
            yield taps, wide, block.output_filters, block.strides
        return
    if block.expand_ratio != 1:
        yield 1, block.input_filters, wide, 1
    yield taps, 1, wide, block.strides
    yield 1, wide, block.output_filters, 1


def _add_block(row: StageCount, block: BlockArgs, norm_type) -> None:
    for taps, channels_in, channels_out, stride in _layers(block):
        row.size = _strided(row.size, stride)
        row.add_convolution(taps, channels_in, channels_out)
        row.add_norm(channels_out, norm_type)
    if block.has_se:
        size, row.size = row.size, (1, 1)
        row.add_convolution(
            1, block.expanded_filters, block.se_filters, bias=True
        )
        row.add_convolution(
            1, block.se_filters, block.expanded_filters, bias=True
        )
        row.size = size
