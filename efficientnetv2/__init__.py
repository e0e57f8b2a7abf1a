"""EfficientNetV2 with progressive learning, on Keras 3 and TensorFlow."""

import importlib
import sys
import types
from typing import TYPE_CHECKING

import wrapt

from efficientnetv2 import backend

if TYPE_CHECKING:
    from efficientnetv2.api import evaluate, export, train
    from efficientnetv2.catalog import (
        list_datasets,
        list_models,
        list_recipes,
        list_weights,
    )
    from efficientnetv2.config import load as load_config
    from efficientnetv2.models.weights import (
        to_keras_applications,
        to_reference_checkpoint,
    )
    from efficientnetv2.serving.predict import predict
    from efficientnetv2.zoo import build_model, feature_pyramid, load_weights

__version__ = "0.1.0"
__all__ = [
    "build_model",
    "evaluate",
    "export",
    "feature_pyramid",
    "list_datasets",
    "list_models",
    "list_recipes",
    "list_weights",
    "load_config",
    "load_weights",
    "predict",
    "to_keras_applications",
    "to_reference_checkpoint",
    "train",
]

_MODULES = {
    "list_datasets": ("catalog", "list_datasets"),
    "list_models": ("catalog", "list_models"),
    "list_recipes": ("catalog", "list_recipes"),
    "list_weights": ("catalog", "list_weights"),
    "load_config": ("config", "load"),
    "train": ("api", "train"),
    "evaluate": ("api", "evaluate"),
    "export": ("api", "export"),
    "predict": ("serving.predict", "predict"),
}
# The first imports the others.
_WITH_LAYERS = ("blocks", "kernels")


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _MODULES.get(name, ("zoo", name))
    with backend.importing():
        module = importlib.import_module(f"{__name__}.{module}")
    return getattr(module, attribute)


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value) -> None:
        # The modules `train` and `predict` do not hide the functions.
        if name not in __all__ or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@wrapt.when_imported("keras")
def _register_layers(_) -> None:
    """Lets `keras.models.load_model` know the layers of this package.

    Keras is not imported for it: whoever loads a model imports it, before
    this package or after. Where one of the modules with layers imports Keras,
    it is about to register them itself.
    """
    modules = [f"{__name__}.models.{name}" for name in _WITH_LAYERS]
    if not any(name in sys.modules for name in modules):
        importlib.import_module(modules[0])
