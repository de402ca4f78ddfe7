"""Runs pip so that a person sees what is being fetched, and when it fails, which package and what to do about it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

# pip's words for a package it begins with, and for a file it takes from the network or from its own cache.
COLLECTING = re.compile(r"Collecting (?P<package>[^\s;]+)")
TAKING = re.compile(r"\s*(?P<verb>Downloading|Using cached) (?P<file>[^\s/]+\.(?:whl|tar\.gz|zip))(?P<size> \(.*\))?")
# How pip names a package that it finds no version of.
MISSING = re.compile(r"No matching distribution found for (?P<package>[^\s;]+)")
# pip's words, before a package fails, when the network is at fault.
NETWORK = re.compile(r"Retrying|from versions: none|Connection|timed out|Name or service|SSLError|ProxyError")

# What is repeated of pip's words: that many lines, of that many characters at most.
LINES_SHOWN = 12
LINE_LENGTH = 240


class FetchError(Exception):
    """A package could not be had; the text says which one and what to do."""


def say(text: str) -> None:
    """Progress for a person, on stderr."""
    print(f"dev: {text}", file=sys.stderr, flush=True)


def pip(python: Path, *arguments: str) -> None:
    """Runs `python -m pip …` and reports each package as it comes. Settings from PIP_* and pip.conf hold."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    package = "the first package"
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # pip inherits the lock on .tools/: should only this process be killed, the next run waits for pip to end.
        close_fds=False,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if found := COLLECTING.match(line):
                package = found["package"]
            elif found := TAKING.match(line):
                package = "==".join(found["file"].removesuffix(".tar.gz").split("-")[:2])
                origin = "fetching" if found["verb"] == "Downloading" else "from pip's cache:"
                say(f"  {origin} {package}{found['size'] or ''}")
            elif "Retrying" in line:
                say(f"  {package}: the package index does not answer; trying again")
    if process.returncode != 0:
        raise FetchError(explain(package, lines))


def explain(package: str, lines: list[str]) -> str:
    """Says which package failed and what to do, from what pip printed."""
    text = "\n".join(lines)
    words = [line.strip() for line in lines if line.lstrip().startswith(("ERROR:", "Got "))]
    if missing := MISSING.search(text):
        package = missing["package"]
    if "DO NOT MATCH THE HASHES" in text:
        reason = "what was served is not the file that is pinned"
        advice = (
            "Run this again with PIP_NO_CACHE_DIR=1, in case the copy in pip's cache is damaged. If that fails too, "
            "your package index serves another file: do not use it."
        )
    elif "No space left on device" in text:
        reason = "the disk is full"
        advice = "Free about 1 GB, also where TMPDIR points, and run this again."
    elif NETWORK.search(text):
        reason = "the package index could not be reached, or has nothing for this machine"
        advice = "Check the network (and PIP_INDEX_URL, PIP_CERT, HTTPS_PROXY where yours needs them), and run this again."
    elif missing:
        reason = f"the package index has no such build for Python {platform.python_version()} on {platform.platform()}"
        advice = "Use Python 3.11 to 3.14 on Linux or macOS; if PIP_INDEX_URL is set, see whether that index has it."
    else:
        reason = "pip failed, with the words above"
        advice = "Run this again."
        words = lines
    shown = [line[:LINE_LENGTH] for line in words[-LINES_SHOWN:]]
    return "\n".join([*shown, f"cannot get {package}: {reason}. {advice}"])
