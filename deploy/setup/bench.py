"""Brings what only `./dev bench` needs into .tools/bench: the Python that its peers run in. The servers are there already:
nats-server in .tools/venv, redis-server from the system (deploy/setup/system.txt)."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from fetch import FetchError, pip, say
from tools import DEPLOY, TOOLS, SetupError, Step, ensure, wait_for

BENCH = TOOLS / "bench"
REQUIREMENTS = DEPLOY / "requirements-bench.txt"


def make_venv(folder: Path) -> None:
    """A virtual environment with what requirements-bench.txt pins, by hash."""
    venv.create(folder, with_pip=True, symlinks=True)
    pip(folder / "bin/python", "install", "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS))


def main() -> None:
    """Makes the environment unless it is there and made from these very pins."""
    with (TOOLS / "lock").open("w") as lock:
        wait_for(lock)
        if not (BENCH / "bin/python").exists():
            (BENCH / ".stamp").unlink(missing_ok=True)
        ensure(Step(BENCH, "the bench's Python peers", [REQUIREMENTS, Path(__file__)], make_venv, in_place=True))


if __name__ == "__main__":
    try:
        main()
    except (SetupError, FetchError, OSError, subprocess.CalledProcessError) as error:
        for line in str(error).splitlines():
            say(line)
        sys.exit(1)
