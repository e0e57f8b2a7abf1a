"""The sub-commands of `efficientnetv2`; see `cli` for their form."""

import importlib

from efficientnetv2.cli import Command

# Name to what it does, in the order in which they are needed.
NAMES = {
    "train": "Train, evaluate, write the report and a SavedModel.",
    "eval": "Evaluate a run, or published weights.",
    "predict": "Predict the classes of images.",
    "demo": "Try a model in the browser.",
    "export": "Write a run's model for Keras, LiteRT or ONNX.",
    "report": "Rewrite the HTML report of a run.",
    "runs": "List and compare runs.",
    "data": "List, preview and export datasets.",
    "models": "List models, with accuracy, size and cost.",
    "find_lr": "Find a learning rate with a few steps at rising rates.",
    "study": "Train the arms of an ablation study, and report on them.",
    "benchmark": "Measure the speed of training and inference.",
    "completion": "Print the completion script of a shell.",
}
_MODULES = {
    "predict": "predict",
    "demo": "predict",
    "runs": "lists",
    "data": "lists",
    "models": "lists",
    "study": "study",
    "benchmark": "study",
    "completion": "completion",
}


def load_command(name: str) -> Command:
    """Returns a command; imports no TensorFlow."""
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'run')}")
    return getattr(module, "evaluate" if name == "eval" else name)
