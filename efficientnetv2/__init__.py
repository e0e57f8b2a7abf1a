"""EfficientNetV2 with progressive learning, on Keras 3 and TensorFlow."""

import importlib
import sys

__version__ = "0.1.0"
__all__ = [
    "build_model",
    "feature_pyramid",
    "load_weights",
    "to_keras_applications",
    "to_reference_checkpoint",
]


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module("efficientnetv2.zoo"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Imported by a program, the layers are registered at once, so that
# `keras.models.load_model` knows them. The commands (`python -m
# efficientnetv2.main`, during whose search argv[0] is '-m') show a mistake in
# their flags first, without waiting for TensorFlow.
if sys.argv[:1] != ["-m"]:
    from efficientnetv2 import zoo as _zoo  # noqa: F401
