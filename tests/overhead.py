"""What traces cost: the face pipeline over the same photos with and without a collector, in turn, in one run.

    . .tools/env; python3 tests/overhead.py [--rounds 5] [--copies 20] [--bin target/release] [--pipeline pipelines/faces.toml]

Each round runs off, on, on, off (so that a machine that slows down or warms up costs both the same), each run with a store of
its own. The collector is a real one on the same machine, which takes some of the throughput for itself. Prints the photos a second
of every run and on ÷ off, of the throughput and of the processor time, as the median of the rounds with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measures and prints."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--copies", type=int, default=20, help="copies of each of the demo's photos")
    arguments.add_argument("--bin", type=Path, default=ROOT / "target/release")
    arguments.add_argument("--pipeline", type=Path, default=ROOT / "pipelines/faces.toml")
    arguments.add_argument("--ratio", default="1", help="share of traces that are sampled")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = copied(Path(folder) / "photos", args.copies)
        with collector() as endpoint:
            env = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": args.ratio,
            }
            run(args, photos, {})  # caches are warm for both
            rounds = []
            for number in range(args.rounds):
                off, on, on_again, off_again = (run(args, photos, extra) for extra in ({}, env, env, {}))
                rounds.append(tuple((a + b) / (c + d) for a, b, c, d in zip(on, on_again, off, off_again, strict=True)))
                print(f"round {number + 1}: off {off[0]:.2f} on {on[0]:.2f} {on_again[0]:.2f} off {off_again[0]:.2f} photos/s, "
                      f"on ÷ off {rounds[-1][0]:.4f}, of processor time {rounds[-1][1]:.4f}", flush=True)
    for what, ratios in zip(("throughput", "processor time"), zip(*rounds, strict=True), strict=True):
        print(f"{what}, on ÷ off: median {statistics.median(ratios):.4f}, {min(ratios):.4f} to {max(ratios):.4f}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def copied(folder: Path, copies: int) -> Path:
    """The demo's photos, each several times under another name."""
    folder.mkdir()
    for photo in sorted((Path(os.environ["CAUSEWAY_PHOTOS"]) / "input").iterdir()):
        for copy in range(copies):
            shutil.copy(photo, folder / f"{copy}-{photo.name}")
    return folder


def run(args: argparse.Namespace, photos: Path, env: dict[str, str]) -> tuple[float, float]:
    """Photos a second from the start of the stages to the last outcome, and processor seconds of all processes but the collector."""
    with tempfile.TemporaryDirectory() as home:
        command = [args.bin / "causeway", "up", args.pipeline, "--input", photos, "--home", home, "--until-drained", "--json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(done.stderr)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return json.loads(done.stdout.splitlines()[-1])["run"]["photos_per_s"], cpu


class collector:
    """rotel, which takes spans and throws them away."""

    def __enter__(self) -> str:
        self.ports = [free_port(), free_port()]
        self.child = subprocess.Popen(
            [os.environ["CAUSEWAY_ROTEL"], "start", "--exporter", "blackhole",
             "--otlp-grpc-endpoint", f"127.0.0.1:{self.ports[0]}", "--otlp-http-endpoint", f"127.0.0.1:{self.ports[1]}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.ports[0]), timeout=1).close()
                return f"http://127.0.0.1:{self.ports[0]}"
            except OSError:
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.child.terminate()
        self.child.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
