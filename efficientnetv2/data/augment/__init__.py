"""Image augmentation policies on batches of uint8 images."""

from efficientnetv2.data.augment.policies import AUTO_AUGMENT_POLICIES
from efficientnetv2.data.augment.policies import POLICIES
from efficientnetv2.data.augment.policies import RAND_AUGMENT_OPS
from efficientnetv2.data.augment.policies import auto_augment
from efficientnetv2.data.augment.policies import auto_augment_draws
from efficientnetv2.data.augment.policies import distort
from efficientnetv2.data.augment.policies import draws
from efficientnetv2.data.augment.policies import level_to_arg
from efficientnetv2.data.augment.policies import rand_augment
from efficientnetv2.data.augment.policies import rand_augment_draws

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
