"""The formats of an export, known without TensorFlow."""

import importlib.util
from collections.abc import Sequence

from efficientnetv2.declarative import suggest
from efficientnetv2.errors import UserError

# Format to the packages that it needs beyond the project's own: the name by
# which a package is imported, and by which it is installed.
_PACKAGES = {
    "saved_model": {},
    "keras": {},
    "litert": {"ai_edge_litert": "ai-edge-litert"},
    "onnx": {
        "onnx": "onnx",
        "tf2onnx": "tf2onnx",
        "onnxruntime": "onnxruntime",
    },
}
FORMATS = tuple(_PACKAGES)
DEFAULT = ("saved_model",)


def check(formats: Sequence[str]) -> None:
    """Raises a UserError for an unknown format or a missing package."""
    if not formats:
        raise UserError(f"No format given. Known: {', '.join(FORMATS)}.")
    for name in formats:
        if name not in FORMATS:
            raise UserError(
                f"Unknown format {name!r}." + suggest(name, list(FORMATS))
            )
        missing = [
            package
            for module, package in _PACKAGES[name].items()
            if importlib.util.find_spec(module) is None
        ]
        if missing:
            raise UserError(
                f"The format {name!r} needs {', '.join(missing)}, which is "
                f"not installed: pip install {' '.join(missing)}"
            )
