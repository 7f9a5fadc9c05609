"""Small things: commands, files, keys, locks, and what a person is told."""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

LOCK_TIMEOUT_S = 300.0


def say(text: str) -> None:
    """Report one change."""
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    """End with one message."""
    sys.exit(f"error: {text}")


def run(*command: str, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; what it said goes into the error."""
    done = subprocess.run(
        command, input=stdin, env=env, capture_output=True, text=True, timeout=1200, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-15:]
        fail(f"{shlex.join(command)} failed:\n" + "\n".join(said))
    return done.stdout


def read(path: Path) -> str:
    """Return a file's text, nothing if there is none."""
    return path.read_text() if path.exists() else ""


def write(path: Path, text: str) -> None:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.rename(path)


def new_key(path: Path, comment: str) -> None:
    """Make an SSH key pair, whole or not at all."""
    for part in (path, path.with_name(f"{path.name}.pub")):
        part.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", f"{path}.new")
    Path(f"{path}.new.pub").rename(f"{path}.pub")
    Path(f"{path}.new").rename(path)


def tail(path: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(read(path).splitlines()[-20:])


def unmount(path: Path) -> None:
    """Unmount everything at and below a path."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        point = line.split()[1].replace("\\040", " ")
        if point == str(path) or point.startswith(f"{path}/"):
            run("umount", "--lazy", point)


def remove_tree(path: Path) -> None:
    """Remove a directory, never what is mounted in it."""
    unmount(path)
    run("rm", "-rf", "--one-file-system", str(path))


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Let one process at a time change what a directory stands for."""
    # Outside the directory, which `down` removes.
    name = str(directory.resolve()).replace("/", "-").lstrip("-")
    with Path(f"/run/lock/{name}.lock").open("w") as file:
        until = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    fail(f"another process is changing {directory}. Wait for it or end it.")
                time.sleep(0.2)
        yield
