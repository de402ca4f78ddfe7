#!/usr/bin/env python3
"""Makes objects.json: what the whole MobileNetV2 answers in Python, by ONNX Runtime and Pillow, on the pictures of .tools/views.

    .tools/venv/bin/python tests/golden/make_objects.py .tools/models .tools/views > tests/golden/objects.json

The preprocessing is torchvision's ImageClassification(crop_size=224, resize_size=256) written out; nothing of Causeway is
used but the manifest's numbers. Only numbers are written, no picture: of each picture the SHA-256 of its pixels, so that a
test knows that it has the same one, and the five best labels by their place with their probabilities.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
from PIL import Image

TOP = 5


def prepared(picture: Image.Image, spec: dict) -> np.ndarray:
    """The model's input, f32 [1,3,H,W]: Resize, CenterCrop, ToTensor and Normalize of torchvision."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    resize, (crop_width, crop_height) = spec["resize"], spec["size"]
    scaled = int(resize * long / short)
    size = (resize, scaled) if width <= height else (scaled, resize)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - crop_width) / 2.0), round((size[1] - crop_height) / 2.0)
    picture = picture.crop((left, top, left + crop_width, top + crop_height))
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    normal = (pixels - np.array(spec["mean"], np.float32)) / np.array(spec["std"], np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def softmax(numbers: np.ndarray) -> np.ndarray:
    powers = np.exp(numbers.astype(np.float64) - numbers.max())
    return powers / powers.sum()


def main(models: Path, views: Path) -> None:
    manifest = tomllib.loads((models / "mobilenet_v2.toml").read_text())
    session = onnxruntime.InferenceSession(models / manifest["file"])
    spec, output = manifest["input"], manifest["output"]["name"]
    lines = []
    for path in sorted(views.glob("*.png")):
        picture = Image.open(path).convert("RGB")
        (logits,) = session.run([output], {spec["name"]: prepared(picture, spec)})
        probabilities = softmax(logits[0])
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        golden = {
            "pixels": hashlib.sha256(np.asarray(picture).tobytes()).hexdigest(),
            "top": [[int(place), round(float(probabilities[place]), 6)] for place in best],
        }
        lines.append(f"  {json.dumps(path.name)}: {json.dumps(golden, separators=(',', ':'))}")
    head = {"onnxruntime": onnxruntime.__version__, "pillow": PIL.__version__, "model": manifest["sha256"]}
    pictures = ",\n".join(lines)
    print(f'{json.dumps(head, indent=1)[:-2]},\n "pictures": {{\n{pictures}\n }}\n}}')


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
