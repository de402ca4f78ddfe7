"""Writes the seeds of the corpus, out of the repository's own files and of pictures made here: `seed-*` in corpus/TARGET.

    . .tools/env && python tests/fuzz/seeds.py

What fuzzing found stands beside them under other names and is left alone.
"""

import io
import json
import struct
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
LONGEST = 4096


def seed(target: str, name: str, content: bytes) -> None:
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    assert len(content) <= LONGEST, f"{target}/{name} has {len(content)} bytes"
    (folder / f"seed-{name}").write_bytes(content)


# bincode as schemas/src/codec.rs writes it: little endian, numbers of fixed width, lengths and variants before what they are of.


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def floats(values) -> bytes:
    return struct.pack("<Q", len(values)) + struct.pack(f"<{len(values)}f", *values)


CAPTURE = text("door") + text("a.jpg") + struct.pack("<QQQ", 3, 4, 5)
REGION = struct.pack("<6f", 10, 20, 80, 100, 0.9, 50) + struct.pack("<Q", 1) + struct.pack("<2f", 1, 2) + struct.pack("<II", 640, 480)


def change(number: int, vector, cluster: int, merges=()) -> bytes:
    identity = lambda value: bytes([value] * 16)
    merged = struct.pack("<Q", len(merges)) + b"".join(identity(one) for one in merges)
    body = identity(number) + text("s") + floats(vector) + CAPTURE + REGION
    body += identity(cluster) + struct.pack("<f", 0.5) + merged
    return struct.pack("<H", len(body)) + body


def bodies() -> None:
    golden = ROOT / "schemas" / "golden"
    kinds = ["frame.v1", "crop.v1", "feature.v1", "decision.v1", "decision.v2", "assignment.v1", "empty.v1", "dead.v1"]
    for which, kind in enumerate(kinds):
        for codec, end in ((0, "bin"), (128, "json")):
            file = golden / f"{kind}.{end}"
            if file.exists():
                seed("bodies", f"{kind}-{end}", bytes([which + codec]) + file.read_bytes())
    seed("bodies", "change", b"\x08" + change(1, [0.6, 0.8], 1)[2:])
    seed("bodies", "person", b"\x89" + (golden / "person.json").read_bytes())
    seed("inputs", "feature", b"\0" + (golden / "feature.v1.bin").read_bytes())
    for which in (1, 2):
        crop = CAPTURE + REGION + struct.pack("<II", 2, 1) + struct.pack("<Q", 6) + bytes(range(6))
        seed("inputs", f"crop-{which}", bytes([which]) + crop)


def changes() -> None:
    one, other = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    seed("changes", "two-clusters", change(1, one, 1) + change(2, other, 2) + change(3, one, 1))
    seed("changes", "merge", change(1, one, 1) + change(2, other, 2) + change(3, one, 1, [2]) + change(4, other, 1))
    seed("changes", "empty-vector", change(1, [], 1) + change(2, [], 1))
    seed("changes", "foreign", change(1, [float("nan")] * 3, 9, [1, 9, 8]) + b"\x05\0junk!")


def faces() -> None:
    def head(width, height, off, numbers):
        return bytes([width, height, off]) + struct.pack(f"<{len(numbers)}f", *numbers)

    seed("faces", "square", head(64, 64, 0, [1.0, 0.2, -0.3, 0.5, 0.1, 0.9, 2.0]))
    seed("faces", "wide", head(255, 3, 0, [0.9, 3.0, 1.5]))
    seed("faces", "no-numbers", head(33, 65, 0, [float("nan"), float("inf"), 1.0, -float("inf"), 88.0, 1e30]))
    seed("faces", "fewer-places", head(64, 64, 0x80, [1.0, 0.5]))
    seed("faces", "more-places", head(64, 64, 0x7F, [1.0, 0.5]))


def gallery() -> None:
    person = (ROOT / "schemas" / "golden" / "person.json").read_bytes()
    other = json.dumps({"name": "Bob", "space": "s", "vectors": [[1, 0], [0, 1]], "photos": [], "enrolled_at": 0}).encode()
    seed("gallery", "people", b"a" + person + b"\nb" + other + b"\nb\na" + other)
    seed("gallery", "no-vectors", b"a" + other.replace(b"[[1, 0], [0, 1]]", b"[[], [1]]") + b"\na{}\na[")


HEADERS = b"".join(
    [
        b"NATS/1.0\r\nNats-Msg-Id: 6wnh8zegqqnykccwbcjay92cvy.g0\r\nCauseway-Id: 6wnh8zegqqnykccwbcjay92cvy\r\n",
        b"Causeway-Root: 231s0stjah0cbnrk1j0j9nwsgg\r\nCauseway-Part: 2/3,1/2\r\nCauseway-Generation: 1\r\n",
        b"Causeway-Stage: preprocess\r\nCauseway-Parent: 231s0stjah0cbnrk1j0j9nwsgg\r\n",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nSubject: faces.crop.edge.a\r\n",
    ]
)


def headers() -> None:
    seed("headers", "ours", HEADERS + b"Causeway-Kind: crop.v1\r\nContent-Type: application/x-bincode\r\n\r\n")
    seed("headers", "none", b"NATS/1.0\r\n\r\n")
    seed("headers", "continued", b"NATS/1.0\r\nA: b\r\n c\r\n\td\r\n\r\n")
    seed("headers", "status", b"NATS/1.0 503\r\n\r\n")
    seed("headers", "lone-return", b"NATS/1.0\r\nA: b\rc\r\n\r\n")
    seed("headers", "no-utf8", b"NATS/1.0\r\nA: \xff\r\n\r\n")


def toml() -> None:
    for file in sorted(ROOT.glob("pipelines/*.toml")) + sorted(ROOT.glob("pipelines/tests/**/*.toml")):
        content = file.read_bytes()
        if file.name != "Cargo.toml" and len(content) <= LONGEST:
            seed("pipeline", f"{file.parent.name}-{file.stem}", content)
    minimal = b'pipeline = "p"\n[stage.capture]\n[stage.preprocess]\nfrom = "capture"\nmodel = "yunet"\n'
    seed("pipeline", "overrides", minimal + b"\0preprocess.gate.min_score=0.5\0capture.fps=x\0nobody.a=1")
    test = b'[[test]]\nname = "t"\nstage = "preprocess"\ninput = "a.jpg"\nexpect = { count = 1 }\n'
    seed("pipeline", "with-test", minimal + test)
    for file in sorted((ROOT / "deploy" / "models").glob("*.toml")):
        lines = file.read_text().splitlines()
        name = next(line for line in lines if line.startswith("name"))
        manifest = "\n".join('name = "model"' if line == name else line for line in lines)
        seed("manifest", file.stem, manifest.encode())
    sha = "0" * 64
    classify = f"""name = "model"
version = "1"
file = "a.onnx"
sha256 = "{sha}"
task = "classify"
licence = "MIT"
source = "here"
[input]
name = "x"
size = [224, 224]
resize = 256
colour = "bgr"
layout = "nhwc"
divide_by = 1
mean = [0.1, 0.2, 0.3]
std = [1, 2, 3]
[output]
name = "y"
softmax = true
[labels]
file = "a.txt"
sha256 = "{sha}"
licence = "MIT"
source = "here"
"""
    seed("manifest", "classify", classify.encode() + b"\0cat\n dog \n")


def model() -> None:
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 2], [1, 2])
    branch = helper.make_graph([helper.make_node("Neg", ["b"], ["n"])], "then", [], [value("n")])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch),
        helper.make_node("Mul", ["d", "b"], ["y"]),
    ]
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [weight, condition], value_info=[value("a")])
    whole = helper.make_model(graph).SerializeToString()
    for name, (start, end) in {"whole": ("", ""), "to": ("", "a"), "from": ("b", ""), "between": ("a", "b")}.items():
        names = bytes([len(start)]) + start.encode() + bytes([len(end)]) + end.encode()
        seed("model", name, names + whole)


def packets() -> None:
    head = b"\0\nSMJPEG" + bytes(8) + b"_TXT\0\0\0\x03a=b" + b"_VID\0\0\0\x0c" + bytes(12) + b"HEND"
    frame = lambda ms, jpeg: b"vidD" + struct.pack(">II", ms, len(jpeg)) + jpeg
    seed("packets", "frames", b"\x07" + head + frame(0, b"first") + frame(40, b"") + frame(80, b"x" * 200) + b"DONE")
    seed("packets", "long", b"\x01" + head + b"vidD" + b"\xff" * 8 + b"more")
    seed("packets", "log", b"\x80rtsp://ada:secret@camera/1\n[rtsp @ 0x5] rtsp://ada:secret@camera/1: 401 Unauthorized")
    seed("packets", "duration", b"\x80a.mp4\n00:01:02.50, start: 0.000000, bitrate: 60 kb/s")


def pictures() -> None:
    ramp = numpy.arange(24 * 17 * 3, dtype=numpy.uint32).reshape(17, 24, 3)
    colour = Image.fromarray((ramp * 7 % 256).astype(numpy.uint8))
    large = colour.resize((200, 90))

    def encoded(image, form, **options):
        out = io.BytesIO()
        image.save(out, form, **options)
        return out.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    for name, content in {
        "baseline.jpg": encoded(colour, "JPEG"),
        "progressive.jpg": encoded(colour, "JPEG", progressive=True),
        "444.jpg": encoded(colour, "JPEG", subsampling=0, restart_marker_blocks=1),
        "grey.jpg": encoded(colour.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "sideways.jpg": encoded(colour, "JPEG", exif=exif),
        "large.jpg": encoded(large, "JPEG", quality=20),
        "colour.png": encoded(colour.crop((0, 0, 9, 7)), "PNG"),
        "palette.png": encoded(colour.convert("P", palette=Image.ADAPTIVE, colors=5), "PNG"),
        "alpha.png": encoded(colour.crop((0, 0, 9, 7)).convert("RGBA"), "PNG"),
        "grey16.png": encoded(Image.fromarray((ramp[:5, :5, 0] * 999).astype(numpy.uint16)), "PNG"),
        "bits.png": encoded(colour.convert("1"), "PNG"),
        "lossy.webp": encoded(colour, "WEBP", quality=30),
        "lossless.webp": encoded(colour, "WEBP", lossless=True),
        "alpha.webp": encoded(colour.convert("RGBA"), "WEBP"),
        "moving.webp": encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)], duration=40),
        "some.gif": b"GIF89a and so on",
    }.items():
        seed("picture", name, content)
    seed("resample", "resize", struct.pack("<B4H6f", 0, 97, 61, 30, 61, *[0] * 6) + b"\x10\x80\xf0")
    seed("resample", "grow", struct.pack("<B4H6f", 0, 3, 5, 101, 7, *[0] * 6) + b"\x10\x80\xf0")
    seed("resample", "warp", struct.pack("<B4H6f", 1, 50, 40, 112, 112, 1.5, -0.2, 3, 0.2, 1.5, 4) + b"\x10\x80\xf0")
    seed("resample", "fit", struct.pack("<B4H6f", 2, 65, 40, 32, 32, *[0] * 6) + b"\x10\x80\xf0")
    seed("resample", "fit-resize", struct.pack("<B4H6f", 3, 40, 65, 32, 30, 36, *[0] * 5) + b"\x10\x80\xf0")
    seed("resample", "strip", struct.pack("<B4H6f", 2, 65535, 1, 32, 32, *[0] * 6) + b"\x10\x80\xf0")
    seed("resample", "thumbnail", struct.pack("<B4H6f", 4, 60, 45, 96, 1, -5, 7, 30, 20, 0, 0) + b"\x10\x80\xf0")


def quarantine() -> None:
    variant = lambda number: struct.pack("<I", number)
    duration = struct.pack("<QI", 1, 5)
    seed("quarantine", "put", b"\0" + variant(0) + text("people") + text("ada") + struct.pack("<QQ", 1, 2))
    seed("quarantine", "input", b"\0" + variant(4) + bytes(16) + b"\1" + text("crop.v1") + text("application/x-bincode"))
    runs = struct.pack("<Q", 1) + text("sface") + text("1") + duration * 2
    seed("quarantine", "answer", b"\0" + variant(2) + b"\1" + CAPTURE + variant(3) + text("why") + duration * 2 + runs)
    seed("quarantine", "unfit", b"\0" + variant(1) + text("no model"))
    lines = [
        {"table": "people", "key": "ada", "value": {"name": "Ada"}},
        {"id": "6wnh8zegqqnykccwbcjay92cvy", "kind": "empty.v1", "message": {"a": [1, None]}},
        {"outputs": [{"id": "6wnh8zegqqnykccwbcjay92cvy", "kind": "empty.v1", "message": 1}]},
        {"reject": {"reason": "unfit", "detail": "d"}},
        {"retry": "later"},
    ]
    for number, line in enumerate(lines):
        seed("quarantine", f"line-{number}", b"\x80" + json.dumps(line).encode())


def records() -> None:
    golden = ROOT / "schemas" / "golden"
    whole = b""
    for kind in ("frame.v1", "crop.v1", "feature.v1", "decision.v2", "assignment.v1", "empty.v1", "dead.v1"):
        # Two bytes that are 0 end a body: binary ones have them everywhere.
        body = (golden / f"{kind}.json").read_bytes()
        record = HEADERS + f"Causeway-Kind: {kind}\r\nContent-Type: application/json\r\n\r\n".encode() + b"\0\0" + body
        seed("records", kind, record)
        whole += record + b"\0\0" if kind in ("decision.v2", "assignment.v1", "empty.v1") else b""
    seed("records", "outcomes", whole)
    seed("records", "stranger", b"NATS/1.0\r\nCauseway-Kind: dead.v1\r\n\r\n\0\0\x1b[31mred\x1b[0m\r\n")


def status() -> None:
    drift = [{"at": 5, "stream": "faces_extract", "sort": "settings", "detail": "d", "mended": True}]
    counts = ["handled", "given", "empty", "dead", "retried", "skipped", "dropped", "rss"]
    beat = {"stage": "classify", "replica": "host-1", "pid": 1, "health": "", "state": "running", "busy_s": 0.5}
    beat |= {name: 7 for name in counts}
    lines = [drift, beat, beat | {"state": "waiting: faces_classify is full", "dropped": 9}]
    seed("status", "replicas", b"\n".join(json.dumps(line).encode() for line in lines))
    advisory = {"type": "max_deliver", "stream": "faces_extract", "consumer": "classify", "stream_seq": 7, "deliveries": 5}
    person = (ROOT / "schemas" / "golden" / "person.json").read_text()
    seed("status", "advisory", json.dumps(advisory).encode() + b"\n" + person.encode())


for make in (bodies, changes, faces, gallery, headers, toml, model, packets, pictures, quarantine, records, status):
    make()
