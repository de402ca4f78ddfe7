"""Turns a block-quantised model of the OpenCV Zoo into a plain float32 ONNX file.

The Zoo publishes YuNet and SFace with int8 weights and one scale for each block of weights (opset 21, files named
`*_int8bq.onnx`). ONNX Runtime loads these but refuses to run them: tensors with a single scale carry a `block_size`
attribute too. The weights are constants, so this script computes once, offline, what the graph would compute at each
run,

    weight = (quantised - zero_point) * scale

and writes a graph of opset 13 without DequantizeLinear. On the way it folds BatchNormalization into the convolution
or matrix product before it, drops Dropout (the identity when a model is used), and gives the batch, and for a
detector the picture's height and width, a free size.

Same input, same bytes out: no clock, no randomness, no library version is written into the file, and every
operation is one IEEE 754 operation for each element.

    usage: convert_opencv_zoo.py IN.onnx OUT.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

# The newest operator set in which every operator that is left means what it means in the original.
OPSET = 13
# The first IR version that ONNX Runtime 1.24 and every later one reads without a warning.
IR_VERSION = 8
# BatchNormalization's `epsilon` where the node states none; the ONNX operator specification.
DEFAULT_EPSILON = 1e-5

# A tensor known before the model runs, by the name under which the nodes ask for it.
Constants = dict[str, np.ndarray]


def convert(source: Path, target: Path) -> None:
    """Reads the block-quantised `source` and writes the float32 model `target`."""
    graph = onnx.load(source).graph
    constants: Constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    nodes = fold_constants(list(graph.node), constants)
    nodes = fold_batch_norms(nodes, constants)
    for node in nodes:
        suit_old_opset(node, constants)
        free_batch_of_head(node, constants)

    used = {name for node in nodes for name in node.input}
    inputs = [value for value in graph.input if value.name in used and value.name not in constants]
    outputs = list(graph.output)
    free_sizes(inputs, outputs, is_detector=any(node.op_type == "Resize" for node in nodes))

    weights = [
        numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items() if name in used
    ]
    model = helper.make_model(
        helper.make_graph(nodes, graph.name or "model", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="causeway",
    )
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


def fold_constants(nodes: list[NodeProto], constants: Constants) -> list[NodeProto]:
    """Computes each node whose inputs are all known into `constants`; returns the nodes that are left."""
    left: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        is_known = all(name in constants for name in node.input if name)
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
        elif node.op_type == "Dropout":
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and is_known:
            constants[node.output[0]] = dequantise(
                *(constants[name] for name in node.input if name),
                axis=attributes.get("axis", 1),
                block=attributes.get("block_size", 0),
            )
        elif node.op_type == "Reshape" and is_known:
            data, shape = (constants[name] for name in node.input)
            constants[node.output[0]] = data.reshape(shape.tolist())
        else:
            left.append(node)
    return left


def dequantise(
    quantised: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None, *, axis: int, block: int
) -> np.ndarray:
    """DequantizeLinear on numpy arrays, in its three forms: one scale for each block of `block` elements along `axis`,
    one for each index of `axis`, or one for the whole tensor."""
    zero = np.zeros_like(scale) if zero_point is None else zero_point.astype(np.float32)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    elif block and scale.ndim == quantised.ndim:
        # The last block may be cut short by the tensor's edge.
        span = range(quantised.shape[axis])
        scale, zero = (np.repeat(each, block, axis).take(span, axis) for each in (scale, zero))
    else:
        along_axis = [1] * quantised.ndim
        along_axis[axis] = -1
        scale, zero = scale.reshape(along_axis), zero.reshape(along_axis)
    return ((quantised.astype(np.float32) - zero) * scale).astype(np.float32)


def fold_batch_norms(nodes: list[NodeProto], constants: Constants) -> list[NodeProto]:
    """Merges each BatchNormalization into the Conv or Gemm before it, where nothing else reads that one's output.

    BatchNormalization(x) = (x - mean) * k + beta with k = gamma / sqrt(variance + epsilon); on x = W·v + b that is
    (k·W)·v + (b - mean)·k + beta: the same layer with other weights. Computed in float64, stored as float32.
    """
    readers: dict[str, int] = {}
    for name in (name for node in nodes for name in node.input):
        readers[name] = readers.get(name, 0) + 1

    left: list[NodeProto] = []
    maker: dict[str, NodeProto] = {}
    for node in nodes:
        layer = maker.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if layer is not None and layer.op_type in ("Conv", "Gemm") and readers[node.input[0]] == 1:
            fold_batch_norm(layer, node, constants)
            maker[layer.output[0]] = layer
        else:
            left.append(node)
            maker.update((name, node) for name in node.output)
    return left


def fold_batch_norm(layer: NodeProto, norm: NodeProto, constants: Constants) -> None:
    """Makes `layer` compute what `norm` would make of its output."""
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), DEFAULT_EPSILON)
    gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in norm.input[1:5])
    k = gamma / np.sqrt(variance + epsilon)

    weight = constants[layer.input[1]].astype(np.float64)
    bias = constants[layer.input[2]].astype(np.float64) if len(layer.input) > 2 else np.zeros_like(mean)
    # Output channels are the first axis of a Conv's weight and of a transposed Gemm's, else the last.
    is_first = layer.op_type == "Conv" or any(a.name == "transB" and a.i for a in layer.attribute)
    weight = weight * (k.reshape([-1] + [1] * (weight.ndim - 1)) if is_first else k)

    weight_name, bias_name = layer.output[0] + "_W", layer.output[0] + "_B"
    constants[weight_name] = weight.astype(np.float32)
    constants[bias_name] = ((bias - mean) * k + beta).astype(np.float32)
    layer.input[:] = [layer.input[0], weight_name, bias_name]
    layer.output[0] = norm.output[0]


def suit_old_opset(node: NodeProto, constants: Constants) -> None:
    """Rewrites what SFace, exported for an early opset, says in ways that opset 13 does not allow."""
    if node.op_type == "BatchNormalization":
        kept = [a for a in node.attribute if a.name != "spatial"]
        del node.attribute[:]
        node.attribute.extend(kept)
    if node.op_type == "PRelu" and constants[node.input[1]].ndim == 1:
        # One slope for each channel: [C] becomes [C,1,1], so that it spreads over height and width.
        constants[node.input[1]] = constants[node.input[1]].reshape(-1, 1, 1)


def free_batch_of_head(node: NodeProto, constants: Constants) -> None:
    """YuNet's heads reshape to [1, -1, k], which fixes the batch at one; 0 means "as in the input"."""
    shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
    if shape is not None and shape.shape == (3,) and shape[0] == 1:
        constants[node.input[1]] = np.array([0, -1, shape[2]], np.int64)


def free_sizes(inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], *, is_detector: bool) -> None:
    """Names the sizes that the weights do not fix: the batch N; in a detector, the picture's H and W and the number of
    places that each head looks at."""
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "N"
        if is_detector:
            dims[2].dim_param, dims[3].dim_param = "H", "W"
    for value in outputs:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "N"
        if len(dims) == 3:
            dims[1].dim_param = f"places_{value.name}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: convert_opencv_zoo.py IN.onnx OUT.onnx")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
