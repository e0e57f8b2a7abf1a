"""Names and numbers of augmentation that host and accelerator share."""

import numpy as np

RAND_AUGMENT_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
"""The operations RandAugment draws from, each with the same probability."""

POLICIES = ("randaug", "autoaug", "ra_aa")
"""The names that `distort` and `draws` know."""

FILL = 128
"""Grey level of the pixels that an operation uncovers or cuts out."""

LUMA = (0.2989, 0.587, 0.114)
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0.0))
"""The largest float32 below 0.5, which rounds ties away from zero."""
