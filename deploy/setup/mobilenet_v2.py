"""Turns torchvision's weights of MobileNetV2 into an ONNX file, without PyTorch.

The weights are torchvision's `mobilenet_v2-b0353104.pth` (ImageNet-1k, IMAGENET1K_V1): a file of torch.save's first form,
five pickles in a row and then the numbers of each storage. The pickles are read with an unpickler that can build nothing
but what such a file of weights holds.

The graph is that of torchvision.models.mobilenet_v2 (Sandler et al. 2018, arXiv:1801.04381, table 2): BatchNormalization
is folded into the convolution before it, Dropout is left out (the identity when a model is used), and the batch is free.
Tensors are called after torchvision's modules, so that a pipeline can name one to cut at: `features.10.out`, `pool`.

    input   f32 [N,3,224,224]  RGB, 0..1, less the mean, divided by the standard deviation of ImageNet
    logits  f32 [N,1000]

Same input, same bytes out: no clock, no randomness, no library version is written into the file.

    usage: mobilenet_v2.py IN.pth OUT.onnx
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# As in convert_opencv_zoo.py.
OPSET = 13
IR_VERSION = 8

# torch.nn.BatchNorm2d's default, which torchvision keeps.
EPSILON = 1e-5

# First of a file by torch.save: its MAGIC_NUMBER.
MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}

# Of each row of table 2: expansion, channels, how often, stride of the first.
BLOCKS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
CHANNELS_AT_START = 32
CLASSES = 1000

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Stored:
    """A tensor as it is pickled: a view of a storage whose numbers come later in the file."""

    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class WeightsUnpickler(pickle.Unpickler):
    """Reads the pickles of a file of weights; a name of anything else is refused, so nothing of it is run."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: Stored(storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not what a file of weights holds")

    def persistent_load(self, pid: tuple) -> str:
        _, dtype, key, *_ = pid
        self.dtypes[key] = np.dtype(DTYPES[dtype])
        return key


def read_weights(path: Path) -> Weights:
    """The weights by their names in torchvision."""
    with path.open("rb") as file:
        if WeightsUnpickler(file).load() != MAGIC:
            raise ValueError(f"{path} is no file of torch.save's first form")
        for _ in ("version of the form", "sizes of C types"):
            WeightsUnpickler(file).load()
        unpickler = WeightsUnpickler(file)
        tensors: dict[str, Stored] = unpickler.load()
        storages = {}
        for key in WeightsUnpickler(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            dtype = unpickler.dtypes[key]
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: array_of(tensor, storages) for name, tensor in tensors.items()}


def array_of(tensor: Stored, storages: Weights) -> np.ndarray:
    """A tensor that lies row-major and without gaps, as every weight does."""
    expected = tuple(int(np.prod(tensor.size[axis + 1 :])) for axis in range(len(tensor.size)))
    if tensor.stride != expected:
        raise ValueError(f"a tensor of shape {tensor.size} has the strides {tensor.stride}")
    count = int(np.prod(tensor.size))
    return storages[tensor.storage][tensor.offset : tensor.offset + count].reshape(tensor.size)


@dataclass
class Builder:
    """A graph that grows node by node. Each method takes the name of a tensor and gives the name of the next."""

    weights: Weights
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, conv: str, norm: str, name: str, *, stride: int = 1, group: int = 1) -> str:
        """A convolution with the BatchNormalization behind it folded in: computed in float64, stored as float32."""
        kernel = self.weights[f"{conv}.weight"].astype(np.float64)
        gamma, beta, mean, variance = (
            self.weights[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        k = gamma / np.sqrt(variance + EPSILON)
        side = kernel.shape[-1]
        return self.node(
            "Conv",
            [
                x,
                self.constant(f"{name}.w", (kernel * k[:, None, None, None]).astype(np.float32)),
                self.constant(f"{name}.b", (beta - mean * k).astype(np.float32)),
            ],
            name,
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[side // 2] * 4,
            group=group,
        )

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, "zero", "six"], f"{x}.relu6")

    def block(self, x: str, index: int, expansion: int, channels: tuple[int, int], stride: int) -> str:
        """An inverted residual: expand (1 × 1), filter each channel (3 × 3), project (1 × 1), and add what came in where
        the shape is the same."""
        parts, name = f"features.{index}.conv", f"features.{index}"
        before, after = channels
        y, at = x, 0
        if expansion != 1:
            y = self.relu6(self.conv(y, f"{parts}.0.0", f"{parts}.0.1", f"{name}.expand"))
            at = 1
        y = self.conv(y, f"{parts}.{at}.0", f"{parts}.{at}.1", f"{name}.dw", stride=stride, group=before * expansion)
        y = self.conv(self.relu6(y), f"{parts}.{at + 1}", f"{parts}.{at + 2}", f"{name}.project")
        if stride == 1 and before == after:
            y = self.node("Add", [x, y], f"{name}.out")
        return y


def build(weights: Weights) -> onnx.ModelProto:
    """The whole model."""
    graph = Builder(weights)
    graph.constant("zero", np.float32(0))
    graph.constant("six", np.float32(6))

    x = graph.relu6(graph.conv("input", "features.0.0", "features.0.1", "features.0", stride=2))
    index, before = 1, CHANNELS_AT_START
    for expansion, after, repeats, first_stride in BLOCKS:
        for repeat in range(repeats):
            x = graph.block(x, index, expansion, (before, after), first_stride if repeat == 0 else 1)
            index, before = index + 1, after
    x = graph.relu6(graph.conv(x, "features.18.0", "features.18.1", "features.18"))
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "average")], "pool", axis=1)
    classifier = [graph.constant(f"classifier.{part}", weights[f"classifier.1.{part}"]) for part in ("weight", "bias")]
    graph.node("Gemm", [x, *classifier], "logits", transB=1)

    value = helper.make_tensor_value_info
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mobilenet_v2",
            [value("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
            [value("logits", TensorProto.FLOAT, ["N", CLASSES])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="causeway",
    )


def convert(source: Path, target: Path) -> None:
    """Reads the weights `source` and writes the model `target`."""
    model = build(read_weights(source))
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: mobilenet_v2.py IN.pth OUT.onnx")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
