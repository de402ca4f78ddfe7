"""What the Python workers do between taking a message and giving the next: the same work as the stages of the same names, in
numpy, OpenCV and ONNX Runtime, as such a pipeline is commonly written. Messages are dicts; how they travel is the queues'."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Message = dict
Work = Callable[[Message], list[Message]]

# Where the five landmarks of an aligned face lie, px: as in stages/preprocess/src/align.rs.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)
STRIDES = (8, 16, 32)
INPUT_SIZE, MIN_SCORE, MAX_OVERLAP, LARGE = 640, 0.7, 0.3, 0.75
GATE_SCORE, GATE_SIZE, GATE_SHARPNESS, GATE_TURN = 0.8, 24.0, 20.0, 0.9
THRESHOLD, MARGIN = 0.40, 0.05
# Seconds without a new outcome after which no more is waited for.
PATIENCE = 20.0


def now() -> int:
    """Unix time, ns."""
    return time.time_ns()


def capture(spec: dict) -> Iterator[Message]:
    """The photos of the folder in the order of their names, or as many bodies of zeros as asked for."""
    if spec["workload"] == "faces":
        for path in sorted(Path(spec["photos"]).iterdir()):
            image = path.read_bytes()
            yield {"item": path.name, "captured_at": now(), "image": image}
    else:
        for number in range(spec["items"]):
            yield {"item": str(number), "captured_at": now(), "image": bytes(spec["bytes"])}


def work_of(stage: str, spec: dict) -> Work:
    """What a stage does with one message."""
    if spec["workload"] != "faces":
        return {"preprocess": same, "extract": same}.get(stage, lambda message: [outcome(stage, message)])
    makers = {"preprocess": Preprocess, "extract": Extract, "classify": Classify, "cluster": Cluster}
    return makers[stage](spec)


def same(message: Message) -> list[Message]:
    """A stage without a model: the body goes on."""
    return [message]


def outcome(stage: str, message: Message, **more) -> Message:
    """What a last stage gives: small, with the time at which it was known."""
    known = {key: message.get(key) for key in ("item", "part", "captured_at", "box")}
    return {"stage": stage, **known, **more, "done_at": now()}


def session(spec: dict, model: str):
    """One session, one thread, which sleeps between runs: as the stages' own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(f"{spec['models']}/{model}.onnx", options, ["CPUExecutionProvider"])


class Preprocess:
    """Finds faces (YuNet, two looks), turns them upright, leaves out the poor ones."""

    def __init__(self, spec: dict) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.cv2, self.session = cv2, session(spec, "yunet")
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, message: Message) -> list[Message]:
        cv2 = self.cv2
        picture = cv2.imdecode(np.frombuffer(message["image"], np.uint8), cv2.IMREAD_COLOR)
        longest = max(picture.shape[:2])
        faces = self.look(picture, INPUT_SIZE)
        faces += [face for face in self.look(picture, INPUT_SIZE // 2) if max(face[0][2:]) > LARGE * longest]
        faces = suppress(faces)
        faces.sort(key=lambda face: -face[0][2] * face[0][3])
        crops = []
        for box, score, points in faces:
            aligned = cv2.warpAffine(picture, similarity(points), (112, 112), flags=cv2.INTER_LINEAR)
            if self.is_good(box, score, points, aligned):
                crops.append((box, aligned))
        rest = {key: message[key] for key in ("item", "captured_at")}
        if not crops:
            return [outcome("empty", rest)]
        # Red first, as the embedding model wants it.
        return [
            {**rest, "part": f"{i + 1}/{len(crops)}", "box": box, "pixels": aligned[:, :, ::-1].tobytes()}
            for i, (box, aligned) in enumerate(crops)
        ]

    def look(self, picture: np.ndarray, size: int) -> list[tuple]:
        cv2 = self.cv2
        height, width = picture.shape[:2]
        scale = size / max(height, width)
        w, h = max(round(width * scale), 1), max(round(height * scale), 1)
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        seen = cv2.resize(picture, (w, h), interpolation=way) if (w, h) != (width, height) else picture
        columns, rows = -(-w // 32) * 32, -(-h // 32) * 32
        input_ = np.zeros((1, 3, rows, columns), np.float32)
        input_[0, :, :h, :w] = seen.transpose(2, 0, 1)
        heads = dict(zip(self.names, self.session.run(None, {"input": input_}), strict=True))
        faces = []
        for stride in STRIDES:
            score = np.sqrt(
                heads[f"cls_{stride}"][0, :, 0].clip(0, 1) * heads[f"obj_{stride}"][0, :, 0].clip(0, 1)
            )
            for place in np.flatnonzero(score >= MIN_SCORE):
                row, column = divmod(int(place), columns // stride)
                dx, dy, dw, dh = heads[f"bbox_{stride}"][0, place]
                cx, cy, bw, bh = (column + dx) * stride, (row + dy) * stride, np.exp(dw) * stride, np.exp(dh) * stride
                points = (heads[f"kps_{stride}"][0, place].reshape(5, 2) + (column, row)) * stride / scale
                box = [float(v) / scale for v in (cx - bw / 2, cy - bh / 2, bw, bh)]
                faces.append((box, float(score[place]), points))
        return suppress(faces)

    def is_good(self, box: list[float], score: float, points: np.ndarray, aligned: np.ndarray) -> bool:
        cv2 = self.cv2
        sharpness = cv2.Laplacian(cv2.cvtColor(aligned, cv2.COLOR_BGR2GRAY), cv2.CV_64F).var()
        eyes, aside = points[1] - points[0], points[2] - (points[0] + points[1]) / 2
        turn = abs(float(aside @ eyes / (eyes @ eyes)))
        return (
            score >= GATE_SCORE and min(box[2:]) >= GATE_SIZE and sharpness >= GATE_SHARPNESS and turn <= GATE_TURN
        )


def similarity(points: np.ndarray) -> np.ndarray:
    """The 2 × 3 matrix that takes the landmarks nearest to the template (Umeyama 1991)."""
    source = points.astype(np.float64)
    from_mean, to_mean = source.mean(0), TEMPLATE.mean(0)
    a, b = source - from_mean, TEMPLATE - to_mean
    spread = (a * a).sum()
    real, imaginary = (a * b).sum() / spread, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / spread
    turn = np.array([[real, -imaginary], [imaginary, real]])
    return np.hstack([turn, (to_mean - turn @ from_mean)[:, None]])


def suppress(faces: list[tuple]) -> list[tuple]:
    """Of faces that overlap the one with the best score; the best first."""
    kept: list[tuple] = []
    for face in sorted(faces, key=lambda face: -face[1]):
        if all(overlap(better[0], face[0]) <= MAX_OVERLAP for better in kept):
            kept.append(face)
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0.0) * max(h, 0.0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


class Extract:
    """A vector of each aligned face (SFace)."""

    def __init__(self, spec: dict) -> None:
        self.session = session(spec, "sface")

    def __call__(self, message: Message) -> list[Message]:
        pixels = np.frombuffer(message.pop("pixels"), np.uint8).reshape(112, 112, 3)
        input_ = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        vector = self.session.run(["fc1"], {"data": input_})[0][0]
        return [{**message, "vector": (vector / np.linalg.norm(vector)).astype(np.float32)}]


class Classify:
    """The nearest person of the gallery, or nobody."""

    def __init__(self, spec: dict) -> None:
        people = json.loads(Path(spec["people"]).read_text())
        self.names = [person["name"] for person in people]
        self.vectors = [np.array(person["vectors"], np.float32) for person in people]

    def __call__(self, message: Message) -> list[Message]:
        scores = [float((vectors @ message["vector"]).max()) for vectors in self.vectors]
        best = max(range(len(scores)), key=scores.__getitem__, default=None)
        if best is None:
            return [outcome("classify", message, label=None, score=0.0)]
        others = [score for at, score in enumerate(scores) if at != best]
        sure = scores[best] >= THRESHOLD and (not others or scores[best] - max(others) >= MARGIN)
        return [outcome("classify", message, label=self.names[best] if sure else None, score=scores[best])]


class Cluster:
    """Average link, one face at a time: it joins the cluster whose mean cosine is highest, or founds one."""

    def __init__(self, _spec: dict) -> None:
        self.sums, self.counts = np.zeros((0, 128), np.float32), np.zeros(0, np.float32)

    def __call__(self, message: Message) -> list[Message]:
        vector = message["vector"]
        means = (self.sums @ vector) / self.counts if len(self.counts) else np.zeros(0)
        cluster = int(means.argmax()) if len(means) and means.max() >= THRESHOLD else len(self.counts)
        if cluster == len(self.counts):
            self.sums = np.vstack([self.sums, vector])
            self.counts = np.append(self.counts, np.float32(1))
        else:
            self.sums[cluster] += vector
            self.counts[cluster] += 1
        return [outcome("cluster", message, cluster=cluster, vector=[float(number) for number in vector])]
