"""Writes slim.safetensors and io.npz, with PyTorch Image Models 1.0.

    python tests/testdata/timm/make.py

EfficientNetV2-B0 at width 0.125 and depth 0.3 with random weights in half
precision, images [2, 65, 49, 3] and the logits.
"""

import pathlib

import numpy as np
import timm.models.efficientnet as efficientnet
import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent


def main():
    torch.manual_seed(0)
    model = efficientnet._gen_efficientnetv2_base(
        "tf_efficientnetv2_b0",
        channel_multiplier=0.125,
        depth_multiplier=0.3,
        num_classes=5,
        pad_type="same",
        bn_eps=1e-3,
    ).eval()
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if "running_var" in name or ("bn" in name and "weight" in name):
            value.uniform_(0.5, 1.5)
        elif value.ndim > 1:
            value.normal_(0, (1.5 / np.prod(value.shape[1:])) ** 0.5)
        else:
            value.normal_(0, 0.2)
        state[name] = value.half()
    model.load_state_dict(state)
    save_file(state, FOLDER / "slim.safetensors")
    images = torch.rand(2, 3, 65, 49) * 2 - 1
    with torch.no_grad():
        logits = model(images)
    np.savez(
        FOLDER / "io.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        logits=logits.numpy(),
    )


if __name__ == "__main__":
    main()
