"""Lock the packages that somebody's models need, by hash, so that they go with neurofleet's own.

    lock_packages.py FILE [--beside LOCK] [--check DIRECTORY]

FILE is a requirements file. What it names, and what that needs, is resolved so that every package
of LOCK (requirements/fleet.txt) keeps its version, and written with hashes beside FILE, to its name
with .lock.txt at its end. What was made of the same FILE and the same LOCK is left as it is. Hashes
that FILE has are kept. With --check nothing is changed: what would be is written to DIRECTORY.
Prints path, checksum and whether it was made anew as JSON.

Standard library only: it runs in Ansible's own Python. uv is fetched by hash the first time.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

OURS = Path(__file__).resolve().parents[3] / "requirements"
#: How a lock of ours begins; nothing else is written over.
MARK = "# Locked by neurofleet"
#: The oldest Python that neurofleet runs on; what is locked goes with it and with later ones.
PYTHON = "3.11"
#: What uv says, for people who have not called it.
PLAINER = (
    (r"No solution found when resolving dependencies( for split \(.*?\))?\s*", ""),
    (r"\{[^}]*\}", ""),
    (r",? ?(and |so )?we can conclude that your requirements are unsatisfiable", ""),
    (r"[Bb]ecause ", ""),
)
#: How long fetching uv, or resolving, may take [s].
LIMIT_S = 600.0
#: What is shown of a resolver's reasons [characters].
LONGEST_REASON = 1200

HASH = re.compile(r"--hash[= ]\s*([a-z0-9]+:[0-9a-f]+)")
#: What names no package of an index: paths, and repositories.
NO_PACKAGE = re.compile(r"^[./~]|^[a-z]:\\\\|\.whl$|(^|@\s*)(file:|(git|hg|svn|bzr)\+)|^[^\s;@]+/")
PACKAGE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*($|[<>=!~(;@]|--hash)")
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*===?\s*([^\s;,]+)")


def fail(what: str, code: int = 2) -> NoReturn:
    """End with one line."""
    print(f"error: {' '.join(what.split())}", file=sys.stderr)
    sys.exit(code)


def canonical(name: str) -> str:
    """Return a package's name as the index has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass
class Wanted:
    """What a requirements file and those that it includes ask for."""

    #: Versions of neurofleet's own packages, by name.
    own: dict[str, list[str]]
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    #: By name and version, where the file has some.
    hashes: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def logical_lines(content: str) -> Iterator[tuple[int, str]]:
    """Yield lines with what continues them, without comments, and where they begin."""
    begun, text = 0, ""
    for number, line in enumerate(content.splitlines(), start=1):
        begun = begun or number
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if bare.endswith("\\"):
            text += bare[:-1] + " "
            continue
        if (text + bare).strip():
            yield begun, (text + bare).strip()
        begun, text = 0, ""
    if text.strip():
        yield begun, text.strip()


def read(path: Path, wanted: Wanted, above: tuple[Path, ...] = ()) -> Wanted:
    """Take note of a file, and refuse what cannot be locked."""
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8-sig")
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror}). Name a requirements file.")
    except UnicodeDecodeError:
        fail(f"{path} is not text in UTF-8. Save it as such.")
    wanted.digest.update(hashlib.sha256(raw).digest())
    for number, line in logical_lines(content):
        where = f"{path}, line {number}"
        option, _, value = (
            re.sub(r"^(-[rcefi])\s*", r"\1 ", line).replace("=", " ", 1).partition(" ")
        )
        if option in ("-r", "--requirement", "-c", "--constraint"):
            included = path.parent / value.strip()
            if included.resolve() in above:
                fail(f"{where}: it includes itself. Remove that line.")
            read(included, wanted, (*above, path.resolve()))
        elif option == "--require-hashes":
            continue
        elif line.startswith("-") and option not in ("-e", "--editable"):
            fail(
                f"{where}: {option} belongs into the environment, since locks name no index. Set"
                " UV_DEFAULT_INDEX or UV_FIND_LINKS, and PIP_INDEX_URL or PIP_FIND_LINKS."
            )
        elif line.startswith("-") or NO_PACKAGE.search(line):
            fail(
                f"{where}: {line} is a file or a repository, which no other machine has."
                " Your own code needs no package: keep it beside the model. Or build a wheel of it,"
                " put it where UV_FIND_LINKS and PIP_FIND_LINKS say, and give its name here."
            )
        elif not PACKAGE.match(line):
            fail(f"{where}: {line!r} is no package. Write a name, or a name==version.")
        pinned = PINNED.match(line)
        if pinned:
            key = canonical(pinned[1]), pinned[2]
            ours = wanted.own.get(key[0])
            if ours and key[1] not in ours and "*" not in key[1]:
                fail(
                    f"{where}: {line.split(' ')[0]}, but neurofleet itself has {key[0]}"
                    f" {' or '.join(ours)}. Leave that version out, or take one that goes with it."
                )
            wanted.hashes.setdefault(key, []).extend(HASH.findall(line))
    return wanted


def own_packages(lock: Path) -> dict[str, list[str]]:
    """Return the versions in neurofleet's own lock, by name; there may be one for each Python."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text().splitlines():
        if match := PINNED.match(line):
            found.setdefault(canonical(match[1]), []).append(match[2])
    return found


def uv() -> Path:
    """Return uv, which is fetched by hash unless it was."""
    lock = OURS / "uv.txt"
    name = f"uv-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neurofleet"
    program = cache / name / "bin" / "uv"
    if program.exists():
        return program
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
    except OSError as error:
        fail(f"{cache} cannot be written ({error.strerror}). Make room there.", 1)
    try:
        run([sys.executable, "-m", "venv", str(folder)], "an environment for uv cannot be made")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
        run([str(folder / "bin" / "python"), *install], "uv cannot be fetched")
        try:
            folder.rename(cache / name)
        except OSError:  # another process was faster
            if not program.exists():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return program


def run(command: list[str], failure: str) -> str:
    """Run a program and return what it says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        fail(f"{failure} within {LIMIT_S:.0f} s. See that the package index is reachable.", 1)
    if done.returncode:
        fail(f"{failure}: {reasons(done.stderr)}", 1)
    return done.stdout


def reasons(said: str) -> str:
    """Return what a program says of an error as one line, without hints for its own options."""
    kept = []
    for line in said.split("\n\nhint:")[0].splitlines():
        if not line.startswith("WARNING") and line.strip():
            kept.append(re.sub(r"^(error|cause):\s*", "", line.strip(), flags=re.IGNORECASE))
    text = " ".join(kept) or "it says nothing"
    for pattern, plain in PLAINER:
        text = re.sub(pattern, plain, text)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def resolve(file: Path, fleet: Path, before: str) -> str:
    """Return the packages that are needed besides neurofleet's own, with versions and hashes."""
    command = [
        str(uv()),
        "pip",
        "compile",
        "--quiet",
        "--no-cache",
        "--no-config",
        "--no-header",
        "--no-annotate",
    ]
    command += ["--no-emit-index-url", "--universal", "--python-version", PYTHON]
    command += ["--generate-hashes", "--only-binary", ":all:", "--constraint", str(fleet)]
    for name in own_packages(fleet):
        command += ["--no-emit-package", name]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.txt"
        found.write_text(before)  # what need not change stays
        run(
            [*command, "--output-file", str(found), str(file)],
            f"the packages in {file} cannot be installed beside neurofleet's own, whose"
            f" versions ({fleet.name}) are kept",
        )
        return found.read_text()


def locked(file: Path, text: str, hashes: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    """Yield the blocks of a lock, with the hashes that the file has where it has some."""
    for block in re.split(r"\n(?=\S)", text.strip()):
        if not block or block.startswith("#"):
            continue
        pinned = PINNED.match(block)
        known = HASH.findall(block)
        if not known or (pinned is None and " @ " not in block):
            fail(f"{file}: {block.splitlines()[0]} cannot be locked by hash. Name a package.")
        own = hashes.get((canonical(pinned[1]), pinned[2])) if pinned else None
        first = block.partition(" \\\n")[0]
        yield " \\\n".join([first, *(f"    --hash={one}" for one in own or known)])


def main() -> None:
    """Lock, and say where."""
    parser = argparse.ArgumentParser(description="Lock the packages that models need.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--beside", type=Path, default=OURS / "fleet.txt")
    parser.add_argument("--check", type=Path)
    given = parser.parse_args()
    file, fleet = given.file, given.beside
    wanted = read(file, Wanted(own_packages(fleet)))
    lock = file.with_name(f"{file.stem}.lock.txt")
    ours = hashlib.sha256(fleet.read_bytes()).hexdigest()
    head = f"{MARK} from {file.name}, with all that its packages need besides neurofleet's own.\n"
    head += f"# Made again when that file or {fleet.name} changes; keep it beside the file.\n"
    head += f"# {wanted.digest.hexdigest()[:32]} {ours[:32]}\n"
    before = lock.read_text() if lock.exists() else head
    if not before.startswith(MARK):
        fail(f"{lock} is there and is no lock of neurofleet's. Rename {file.name}, or that file.")
    made = not (lock.exists() and before.startswith(head))
    if made:
        blocks = locked(file, resolve(file, fleet, before), wanted.hashes)
        content = head + "".join(f"{block}\n" for block in blocks)
        target = given.check / lock.name if given.check else lock
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name[:40]}.{os.getpid()}")
            partial.write_text(content)
            partial.replace(target)
        except OSError as error:
            fail(f"{target} cannot be written ({error.strerror}). Make room there.", 1)
        lock = target
    checksum = hashlib.sha256(lock.read_bytes()).hexdigest()
    print(json.dumps({"path": str(lock.resolve()), "checksum": checksum, "made": made}))


if __name__ == "__main__":
    main()
