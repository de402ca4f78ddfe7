"""Builds the container images of Causeway: one a stage, the operator's command, and the broker. Called by `./dev images`.

What an image holds follows from the checkout: a stage is a folder of stages/, it carries the models that a file of
pipelines/ gives it, and the model engine if its manifest names causeway-inference.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "deploy/Containerfile"
MODELS = ROOT / ".tools/models"
ENGINES = ["docker", "podman"]

# What every image holds beside ours (Apache-2.0): glibc and libgcc, which our programs are linked to.
LIBRARIES = {"LGPL-2.1-or-later", "GPL-3.0-or-later WITH GCC-exception-3.1"}
ENGINE_LICENCE = "MIT"  # ONNX Runtime; libstdc++, which it loads, is libgcc's
FFMPEG_LICENCE = "GPL-3.0-or-later"  # as its own -L says of this build


class ImageError(Exception):
    """The images cannot be built; the text says why and what to do."""


@dataclass(frozen=True)
class Image:
    """One image: what is built, and what it carries."""

    name: str
    target: str
    models: list[str]
    licences: list[str]
    description: str


def main() -> None:
    """Builds each image that was asked for, then prints how large they are."""
    arguments = parse()
    engine = arguments.engine or find_engine()
    images = [image for image in all_images() if not arguments.images or image.name in arguments.images]
    for image in images:
        print(f"dev: building {arguments.prefix}/{image.name}:{arguments.tag}", file=sys.stderr, flush=True)
        subprocess.run(build_command(engine, image, arguments), check=True, cwd=ROOT)
    print(table(engine, [f"{arguments.prefix}/{image.name}:{arguments.tag}" for image in images]))


def parse() -> argparse.Namespace:
    """The arguments; names of images are checked."""
    known = [image.name for image in all_images()]
    parser = argparse.ArgumentParser(
        prog="./dev images",
        description="Builds the container images: one a stage, the `causeway` command, and nats-server.",
        epilog="What follows -- goes to the engine's build command: ./dev images -- --network host",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"which [default: all: {', '.join(known)}]")
    parser.add_argument("--prefix", default="localhost/causeway", help="what their names begin with [%(default)s]")
    parser.add_argument("--tag", default=version(), help="[%(default)s]")
    parser.add_argument("--profile", default="release", help="Cargo's profile; dev compiles faster [%(default)s]")
    parser.add_argument("--rust-image", metavar="IMAGE", help="the image to compile in [rust:1.95-bookworm]")
    parser.add_argument("--engine", choices=ENGINES, help="[the first that answers]")
    own, engines = split(sys.argv[1:])
    arguments = parser.parse_args(own)
    arguments.more = engines
    for name in arguments.images:
        if name not in known:
            parser.error(f"there is no image `{name}`; there are {', '.join(known)}")
    return arguments


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what stands behind `--`."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def all_images() -> list[Image]:
    """Every image that there is."""
    carried = models_by_stage()
    stages = sorted(path.parent.name for path in (ROOT / "stages").glob("*/Cargo.toml"))
    images = [
        Image(
            name=stage,
            target="stage",
            models=sorted(carried.get(stage, ())),
            licences=licences(carried.get(stage, ()), engine=has_engine(stage), ffmpeg=stage == "capture"),
            description=f"The stage {stage} of Causeway: AI pipelines split between edge and cloud, over NATS JetStream",
        )
        for stage in stages
    ]
    # `enrol` finds and embeds faces itself.
    enrols = sorted(carried.get("preprocess", set()) | carried.get("extract", set()))
    command = "The command of Causeway: applies a pipeline, keeps a site, enrols, shows what is stored"
    images.append(Image("causeway", "causeway", enrols, licences(enrols, engine=True), command))
    broker = "nats-server with JetStream, as the checkout of Causeway pins it"
    images.append(Image("nats-server", "nats-server", [], ["Apache-2.0"], broker))
    return images


def models_by_stage() -> dict[str, set[str]]:
    """The models that the files of pipelines/ give to each stage, by what the stage uses."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / "pipelines").glob("*.toml")):
        if file.name == "Cargo.toml":
            continue
        for name, stage in tomllib.loads(file.read_text()).get("stage", {}).items():
            if "model" in stage:
                found.setdefault(stage.get("uses", name), set()).add(stage["model"])
    return found


def has_engine(stage: str) -> bool:
    """Whether a stage is linked to the code that loads ONNX Runtime."""
    manifest = tomllib.loads((ROOT / "stages" / stage / "Cargo.toml").read_text())
    return "causeway-inference" in manifest.get("dependencies", {})


def licences(models, *, engine: bool, ffmpeg: bool = False) -> list[str]:
    """The licences of all that is in an image, ours first."""
    others = set(LIBRARIES)
    if ffmpeg:
        others.add(FFMPEG_LICENCE)
    if engine:
        others.add(ENGINE_LICENCE)
    for model in models:
        others.add(tomllib.loads((MODELS / f"{model}.toml").read_text())["licence"])
    return ["Apache-2.0", *sorted(others - {"Apache-2.0"})]


def build_command(engine: str, image: Image, arguments: argparse.Namespace) -> list[str]:
    """The engine's command that builds an image."""
    values = {
        "STAGE": image.name,
        "MODELS": " ".join(image.models),
        "PROFILE": arguments.profile,
        "VERSION": version(),
        "REVISION": revision(),
        "SOURCE": source(),
        "LICENCES": " AND ".join(image.licences),
        "DESCRIPTION": image.description,
    }
    if arguments.rust_image:
        values["RUST_IMAGE"] = arguments.rust_image
    command = [engine, "build", "--file", str(CONTAINERFILE), "--target", image.target]
    for name, value in values.items():
        command += ["--build-arg", f"{name}={value}"]
    if engine == "podman":
        # An OCI image has no place for a health check; layers are kept, as docker does unasked.
        command += ["--format", "docker", "--layers"]
    return [*command, *arguments.more, "--tag", f"{arguments.prefix}/{image.name}:{arguments.tag}", "."]


def find_engine() -> str:
    """The first engine that is there and answers."""
    for engine in ENGINES:
        if shutil.which(engine) and subprocess.run([engine, "info"], capture_output=True).returncode == 0:
            return engine
    raise ImageError(
        "no container engine answers: install Docker (and start it) or Podman, and run this again.\n"
        "`docker info` or `podman info` says what is wrong with one that is there."
    )


def table(engine: str, names: list[str]) -> str:
    """How large each image is."""
    inspected = subprocess.run([engine, "image", "inspect", *names], check=True, capture_output=True, text=True)
    lines = [f"{'image':48} {'MB':>7}"]
    lines += [f"{name:48} {each['Size'] / 1e6:7.1f}" for name, each in zip(names, json.loads(inspected.stdout))]
    return "\n".join(lines)


def version() -> str:
    """The version of the workspace."""
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def revision() -> str:
    """The commit, and whether the checkout differs from it."""
    commit = git("rev-parse", "HEAD") or "unknown"
    return commit + ("-dirty" if git("status", "--porcelain") else "")


def source() -> str:
    """Where the source is: the origin, if it is an address that others can use; without a user and password."""
    address = git("config", "--get", "remote.origin.url")
    found = re.fullmatch(r"(https://|ssh://git@|git@)(?:[^@/]*@)?(.+)", address)
    return found[1] + found[2] if found else ""


def git(*words: str) -> str:
    """What git says; nothing where there is no git."""
    try:
        said = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
    except FileNotFoundError:
        return ""
    return said.stdout.strip()


if __name__ == "__main__":
    try:
        main()
    except ImageError as error:
        for line in str(error).splitlines():
            print(f"dev: {line}", file=sys.stderr)
        sys.exit(1)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
