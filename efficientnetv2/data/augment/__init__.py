"""Image augmentation policies on batches of uint8 images."""

from efficientnetv2.data.augment.policies import (
    AUTO_AUGMENT_POLICIES,
    POLICIES,
    RAND_AUGMENT_OPS,
    auto_augment,
    auto_augment_draws,
    distort,
    draws,
    level_to_arg,
    rand_augment,
    rand_augment_draws,
)

__all__ = [
    "AUTO_AUGMENT_POLICIES",
    "POLICIES",
    "RAND_AUGMENT_OPS",
    "auto_augment",
    "auto_augment_draws",
    "distort",
    "draws",
    "level_to_arg",
    "rand_augment",
    "rand_augment_draws",
]
