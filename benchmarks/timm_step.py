"""The training step of PyTorch Image Models' EfficientNetV2-B0.

    python benchmarks/timm_step.py --size=64 --batch=64

In the memory layout channels_last, the faster one. PyTorch and PyTorch Image
Models are no requirement of this project: without them the script says so.
"""

import argparse
import enum
import importlib.util
import sys
import types

import timing


class _Absent(types.ModuleType):
    """A module all of whose names are classes that do nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return enum.Enum(
                name, "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS"
            )
        return type(name, (), {})


def _import_timm():
    """Imports timm, on a machine without torchvision as well.

    It imports torchvision for its data and for pretrained layers; a training
    step on images in memory uses nothing of it.
    """
    if importlib.util.find_spec("torchvision") is None:
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.models",
            "torchvision.models.feature_extraction",
            "torchvision.ops",
            "torchvision.ops.misc",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            sys.modules[name] = _Absent(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    import timm

    return timm


def main() -> None:
    options = timing.parse(argparse.ArgumentParser(description=__doc__))
    try:
        import torch

        timm = _import_timm()
    except ImportError as error:
        timing.skip(
            f"PyTorch Image Models was not measured: {error} in "
            f"{sys.executable}."
        )
        return
    images, labels = timing.training_batch(options.batch, options.size)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(labels)
    model = timm.create_model(
        "tf_efficientnetv2_b0",
        num_classes=timing.CLASSES,
        drop_rate=0.2,
        drop_path_rate=0.2,
    )
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.RMSprop(
        model.parameters(), 1e-3, alpha=0.9, momentum=0.9, eps=1e-3
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    timing.show(
        timing.images_per_second(step, options.batch, options.seconds),
        torch=torch.__version__,
        timm=timm.__version__,
    )


if __name__ == "__main__":
    main()
