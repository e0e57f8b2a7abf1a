"""One module per sub-command of `efficientnetv2`; see `cli` for their form."""

import importlib
from types import ModuleType

# Name to what it does, in the order in which they are needed.
NAMES = {
    "train": "Train, evaluate, write the report and a SavedModel.",
    "eval": "Evaluate a run, or published weights.",
    "predict": "Predict the classes of images.",
    "demo": "Try a model in the browser.",
    "export": "Write a run's model for Keras, LiteRT or ONNX.",
    "report": "Write the HTML report of a run anew.",
    "runs": "List and compare runs.",
    "data": "List, preview and export datasets.",
    "models": "List models, with accuracy, size and cost.",
    "find_lr": "Find a learning rate by a few steps at rising rates.",
    "study": "Train the arms of an ablation study, and report on them.",
    "benchmark": "Measure the speed of training and inference.",
    "completion": "Print the completion script of a shell.",
}


def load(name: str) -> ModuleType:
    """Returns the module of a command; imports no TensorFlow."""
    return importlib.import_module(f"{__name__}.{name}")
