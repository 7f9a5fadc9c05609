"""Pack the client's source, byte for byte the same whenever the source is.

    pack_client.py SOURCE DIRECTORY

SOURCE is the repository (or the installed collection). Writes
DIRECTORY/CHECKSUM/neurofleet-VERSION.tar.gz unless it is there, and prints its path,
version and checksum as JSON. Standard library only: it runs in Ansible's own Python.
"""

import gzip
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

#: What a build of the client needs.
TOP = ("pyproject.toml", "README.md", "LICENSE")
PACKAGE = "src/client/neurofleet"


def files(source: Path) -> list[Path]:
    """Return what is packed, in an order that does not depend on the file system."""
    package = [
        path
        for path in (source / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return sorted([*(source / name for name in TOP), *package])


def pack(source: Path, prefix: str) -> bytes:
    """Return a source distribution, without times, owners or modes of this machine."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files(source):
            content = path.read_bytes()
            member = tarfile.TarInfo(f"{prefix}/{path.relative_to(source).as_posix()}")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def main() -> None:
    """Pack, and say what was packed."""
    source, directory = Path(sys.argv[1]), Path(sys.argv[2])
    text = (source / PACKAGE / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        sys.exit(f"error: {source / PACKAGE / '__init__.py'} says no __version__")
    archive = pack(source, f"neurofleet-{found[1]}")
    checksum = hashlib.sha256(archive).hexdigest()
    target = directory / checksum[:16] / f"neurofleet-{found[1]}.tar.gz"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(archive)
        partial.replace(target)
    print(json.dumps({"path": str(target), "version": found[1], "checksum": checksum}))


if __name__ == "__main__":
    main()
