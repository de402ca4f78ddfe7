#!/usr/bin/env python3
"""Makes faces.json: what OpenCV's own FaceDetectorYN and FaceRecognizerSF see on the demo's photos and on lfw10x10.

    pip install opencv-python-headless==4.12.0.88
    python tests/golden/make.py DETECTOR.onnx RECOGNIZER.onnx .tools/photos ../shared/faces/lfw10x10 > tests/golden/faces.json

The two models are OpenCV Zoo's block-quantised originals, out of .tools/carriers: not our conversion, so that the golden
values judge it too. Only numbers are written, no picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np

# As in stages/preprocess/src/detector.rs and pipelines/src/options.rs.
INPUT_SIZE = 640
MIN_SCORE = 0.7
MAX_OVERLAP = 0.3
LARGE = 0.75

# One row of FaceDetectorYN: box (x, y, w, h), five landmarks, score.
Faces = np.ndarray


class Reference:
    """OpenCV's detector and recogniser."""

    def __init__(self, detector: str, recognizer: str) -> None:
        # Every place, also those that overlap: `detect` suppresses them by OpenCV's rule.
        self.detector = cv2.FaceDetectorYN.create(detector, "", (320, 320), MIN_SCORE, 1.0)
        self.recognizer = cv2.FaceRecognizerSF.create(recognizer, "")

    def look(self, photo: np.ndarray, size: int) -> Faces:
        """All places that see a face in a photo whose longer side is scaled to `size` px: by area down, bilinear up."""
        height, width = photo.shape[:2]
        scale = size / max(height, width)
        sampling = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = cv2.resize(photo, (round(width * scale), round(height * scale)), interpolation=sampling)
        self.detector.setInputSize(scaled.shape[1::-1])
        _, faces = self.detector.detect(scaled)
        if faces is None:
            return np.zeros((0, 15), np.float32)
        faces[:, :14] /= scale
        return faces

    def detect(self, photo: np.ndarray) -> Faces:
        """The faces of both looks, the largest first. The second look is for faces too large for the first."""
        second = self.look(photo, INPUT_SIZE // 2)
        is_large = second[:, 2:4].max(axis=1) > LARGE * max(photo.shape[:2])
        places = np.concatenate([self.look(photo, INPUT_SIZE), second[is_large]])
        kept: list[np.ndarray] = []
        for place in places[np.argsort(-places[:, 14], kind="stable")]:
            if all(overlap(better, place) <= MAX_OVERLAP for better in kept):
                kept.append(place)
        return np.array(sorted(kept, key=lambda face: -face[2] * face[3]))

    def feature(self, photo: np.ndarray, face: np.ndarray) -> np.ndarray:
        """The L2-normalised vector of a face."""
        vector = self.recognizer.feature(self.recognizer.alignCrop(photo, face[None]))[0]
        return vector / np.linalg.norm(vector)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    start = np.maximum(a[:2], b[:2])
    end = np.minimum(a[:2] + a[2:4], b[:2] + b[2:4])
    both = np.prod(np.maximum(end - start, 0))
    return float(both / (np.prod(a[2:4]) + np.prod(b[2:4]) - both))


def largest_centred(faces: Faces, photo: np.ndarray) -> np.ndarray:
    """The face that a labelled photo is of: area less twice the squared distance from the centre, px²."""
    middle = np.array(photo.shape[1::-1]) / 2
    away = ((faces[:, :2] + faces[:, 2:4] / 2 - middle) ** 2).sum(axis=1)
    return faces[np.argmax(faces[:, 2] * faces[:, 3] - 2 * away)]


def numbers(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]


def golden(reference: Reference, photo: np.ndarray, face: np.ndarray) -> dict:
    return {
        "bounds": numbers(face[:4], 3),
        "score": round(float(face[14]), 5),
        "landmarks": [numbers(point, 3) for point in face[4:14].reshape(5, 2)],
        "feature": numbers(reference.feature(photo, face), 4),
    }


def main(detector: str, recognizer: str, demo: Path, lfw: Path) -> None:
    reference = Reference(detector, recognizer)
    photos: dict[str, list[dict]] = {}
    for folder, only_main in ((demo, False), (lfw, True)):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")):
            photo = cv2.imread(str(path), cv2.IMREAD_COLOR)
            faces = reference.detect(photo)
            if only_main:
                faces = [largest_centred(faces, photo)]
            name = f"{'demo' if folder == demo else 'lfw10x10'}/{path.relative_to(folder)}"
            photos[name] = [golden(reference, photo, face) for face in faces]
    # One photo a line: the file is long, a difference stays readable.
    lines = ",\n".join(f'  {json.dumps(name)}: {json.dumps(faces, separators=(",", ":"))}' for name, faces in photos.items())
    print(f'{{\n "opencv": "{cv2.__version__}",\n "input_size": {INPUT_SIZE},\n "photos": {{\n{lines}\n }}\n}}')


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
