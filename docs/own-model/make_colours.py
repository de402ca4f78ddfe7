"""Makes a small classifier, models/colours.onnx, its labels, and pictures for it. docs/own-model.md says what for.

It stands for any ONNX classifier, and differs from the usual ones wherever a manifest can say so: it sees 48 × 32 px, its
axes are batch, row, column, colour, blue comes first, colours are -1..1, and its answer is probabilities already. It tells
which of eight colours is nearest to the mean of the picture.

    usage: make_colours.py        writes models/ and pictures/ into the current folder
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

WIDTH, HEIGHT = 48, 32

# Red, green, blue, each 0 or 1.
COLOURS = {
    "black": (0, 0, 0),
    "white": (1, 1, 1),
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
}

# How much surer a nearer colour is.
SHARPNESS = 1.0


def model() -> onnx.ModelProto:
    """probability = softmax(-SHARPNESS · |mean - colour|²), less what is the same for every colour."""
    colours = np.array([colour[::-1] for colour in COLOURS.values()], np.float32) * 2 - 1
    weight, bias = 2 * SHARPNESS * colours.T, -SHARPNESS * (colours**2).sum(axis=1)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["likeness"]),
        helper.make_node("Softmax", ["likeness"], ["probability"], axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "colours",
        [value("image", TensorProto.FLOAT, ["N", HEIGHT, WIDTH, 3])],
        [value("probability", TensorProto.FLOAT, ["N", len(COLOURS)])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight), "weight"),
            numpy_helper.from_array(bias, "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def main() -> None:
    models, pictures = Path("models"), Path("pictures")
    for folder in (models, pictures):
        folder.mkdir(exist_ok=True)
    made = model()
    onnx.checker.check_model(made, full_check=True)
    (models / "colours.onnx").write_bytes(made.SerializeToString(deterministic=True))
    (models / "colours.labels.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    for name, colour in COLOURS.items():
        Image.new("RGB", (300, 200), tuple(230 * part + 10 for part in colour)).save(pictures / f"{name}.png")
    Image.new("RGB", (200, 300), (128, 128, 128)).save(pictures / "grey.png")


if __name__ == "__main__":
    main()
