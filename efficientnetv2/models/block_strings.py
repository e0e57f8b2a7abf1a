"""Block strings: the shape of a network as text.

A block string such as 'r4_k3_s2_e4_i24_o48_c1' or 'r6_k3_s2_e4_i64_o128_se0.25'
describes one stage of the network: r repeats, k kernel size, s stride of the
first block, e expand ratio, i and o channels in and out before width scaling,
c 1 for Fused-MBConv (0, the default, for MBConv), se squeeze ratio.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

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
_OPTIONAL_FIELDS = ("c", "se")


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
        for part in str(text).split("_"):
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if not match or match[1] not in _BLOCK_FIELDS:
                raise ValueError(
                    f"Block string {text!r}: {part!r} is not one of "
                    f"{', '.join(_BLOCK_FIELDS)} followed by a number."
                )
            field, kind = _BLOCK_FIELDS[match[1]]
            if field in values:
                raise ValueError(f"Block string {text!r}: two {match[1]!r}.")
            try:
                values[field] = kind(match[2])
            except ValueError:
                raise ValueError(
                    f"Block string {text!r}: {part!r} needs a whole number."
                ) from None
        for key, (field, _) in _BLOCK_FIELDS.items():
            if field not in values and key not in _OPTIONAL_FIELDS:
                raise ValueError(f"Block string {text!r} has no {key!r}.")
        args = cls(**values)
        if args.conv_type not in (0, 1):
            raise ValueError(f"Block string {text!r}: c must be 0 or 1.")
        counts = dataclasses.astuple(args)[:6]
        if min(counts) < 1:
            raise ValueError(f"Block string {text!r}: a value below 1.")
        return args


def round_filters(filters: float, model_config: Mapping) -> int:
    """Scales a number of channels and rounds it to a multiple of the divisor.

    The original code of V1, and `keras.applications` after it, take one step
    up where rounding loses more than a tenth; the released code has no such
    rule. Of all models only the first stages of B3 and Lite3 differ.

    Args:
        filters: before scaling.
        model_config: with `width_coefficient`, `depth_divisor`, `min_depth`
            and, where it has it, `round_limit`: the least part of the scaled
            number that rounding may leave, None for no limit.
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


def round_repeats(repeats: int, depth_coefficient: float | None) -> int:
    """Scales a number of blocks and rounds it up."""
    return int(math.ceil((depth_coefficient or 1.0) * repeats))


def expand_stages(model_config: Mapping) -> list[list[BlockArgs]]:
    """Returns the blocks of each stage, scaled, with `num_repeat` 1.

    Args:
        model_config: the section `model` of a configuration. Its
            `fused_stages`, if not None, makes the blocks of the first stages
            Fused-MBConv and all others MBConv, whatever the block strings
            say: the paper's ablation (arXiv 2104.00298, table 3). With
            `fix_head_stem` the stem keeps its width, and the first and the
            last stage their number of blocks: EfficientNet-Lite.

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
    input_filters = round_filters(args.input_filters, model_config)
    first = dataclasses.replace(
        args,
        num_repeat=1,
        input_filters=args.input_filters
        if fixed and is_first
        else input_filters,
        output_filters=round_filters(args.output_filters, model_config),
    )
    rest = dataclasses.replace(
        first, input_filters=first.output_filters, strides=1
    )
    repeats = args.num_repeat
    if not fixed:
        repeats = round_repeats(repeats, model_config["depth_coefficient"])
    return [first] + [rest] * (repeats - 1)


def expand_blocks(model_config: Mapping) -> list[BlockArgs]:
    """Returns the blocks of all stages in one list; see `expand_stages`."""
    return [block for stage in expand_stages(model_config) for block in stage]
