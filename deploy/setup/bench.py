"""Brings what only `./dev bench` and one test need into .tools/bench: the Python that peers and a stranger run in. The servers
are there already: nats-server in .tools/venv, redis-server from the system (deploy/setup/system.txt)."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from fetch import FetchError, pip, say
from tools import DEPLOY, TOOLS, SetupError, Step, ensure, wait_for

BENCH = TOOLS / "bench"
REQUIREMENTS = DEPLOY / "requirements-bench.txt"
SOURCE = DEPLOY / "requirements-bench-source.txt"


def make_venv(folder: Path) -> None:
    """A virtual environment with what the two files pin, by hash; what comes as a source archive is built by what came before."""
    venv.create(folder, with_pip=True, symlinks=True)
    pinned = ("install", "--no-deps", "--require-hashes")
    pip(folder / "bin/python", *pinned, "-r", str(REQUIREMENTS))
    pip(folder / "bin/python", *pinned, "--no-build-isolation", "-r", str(SOURCE))


def main() -> None:
    """Makes the environment unless it is there and made from these very pins."""
    with (TOOLS / "lock").open("w") as lock:
        wait_for(lock)
        if not (BENCH / "bin/python").exists():
            (BENCH / ".stamp").unlink(missing_ok=True)
        ensure(Step(BENCH, "the bench's Python peers", [REQUIREMENTS, SOURCE, Path(__file__)], make_venv, in_place=True))


if __name__ == "__main__":
    try:
        main()
    except (SetupError, FetchError, OSError, subprocess.CalledProcessError) as error:
        for line in str(error).splitlines():
            say(line)
        sys.exit(1)
