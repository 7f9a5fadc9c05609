"""A model bundle: a directory, an evaluator factory, and a hash of both.

The bundle is what travels to a host that has not seen the model: once per host, as
one archive. Everything else refers to it by its hash, so two hosts that agree on
the hash evaluate the same files with the same arguments.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from neurofleet import files, source_scan
from neurofleet.errors import ModelError
from neurofleet.files import as_object, json_value, open_plain

FORMAT = 1
#: Written into the run directory of an optimisation.
RUN_MARKER = "neurofleet-run.json"
#: What only run directories have, of an optimisation and of a run over items; a directory that
#: holds one of them is never part of a model.
RUN_MARKERS = (RUN_MARKER, "items.sqlite")
#: Largest sum of file sizes that is sent to hosts [bytes].
LARGEST_BUNDLE = 512 * 1024 * 1024
#: Largest tar that is unpacked: those files and what tar adds to each [bytes].
LARGEST_ARCHIVE = 2 * LARGEST_BUNDLE
#: What version control, Python, NEURON's compiler and BluePyOpt leave in a model
#: directory, and what must not change a model's hash.
NEVER_PACKED = (
    ".*",
    "__pycache__",
    "*.pyc",
    "x86_64",
    "i686",
    "arm64",
    "aarch64",
    "ppc64le",
    "checkpoints",
    "figures",
    "*.egg-info",
    "neurofleet-runs",
)


@dataclass(frozen=True)
class EvaluatorSpec:
    """How to get an evaluator out of a model directory.

    Parameters
    ----------
    factory : str
        ``module:callable``; the callable returns a ``bluepyopt.evaluators.Evaluator``.
    search : tuple of str
        Directories inside the bundle that are put in front of ``sys.path``.
    kwargs : mapping
        Keyword arguments of the callable; JSON values only.
    mechanisms : tuple of str or None
        Directories inside the bundle whose ``*.mod`` files are compiled; ``None``
        finds them (``mechanisms.to_compile``).
    """

    factory: str
    search: tuple[str, ...] = (".",)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    mechanisms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        module, _, name = self.factory.partition(":")
        dotted = [*module.split("."), *name.split(".")]
        if not all(part.isidentifier() for part in dotted):
            raise ModelError(
                f"{self.factory!r} is not of the form module:callable",
                remedy="Name the evaluator's factory, for example l5pc_evaluator:create",
            )
        for inside in (*self.search, *(self.mechanisms or ())):
            if PurePosixPath(inside).is_absolute() or ".." in PurePosixPath(inside).parts:
                raise ModelError(
                    f"{inside!r} leads out of the model directory",
                    remedy="Name a directory inside it, relative to its top",
                )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form; ``from_json`` is its inverse."""
        return {
            "factory": self.factory,
            "search": list(self.search),
            "kwargs": dict(self.kwargs),
            "mechanisms": None if self.mechanisms is None else list(self.mechanisms),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvaluatorSpec:
        """Rebuild a spec from ``as_json``; a ``ValueError`` if it is of another form."""
        data = as_object(data)
        mechanisms = None if data["mechanisms"] is None else files.texts(data, "mechanisms")
        return cls(
            factory=files.text(data, "factory"),
            search=files.texts(data, "search"),
            kwargs=as_object(data["kwargs"]),
            mechanisms=mechanisms,
        )


@dataclass(frozen=True)
class Bundle:
    """A packed model.

    Attributes
    ----------
    name : str
        The model directory's own name, for people.
    spec : EvaluatorSpec
    digest : str
        SHA-256 over the evaluator spec and every file's path, executable bit and content.
    archive : bytes
        gzipped tar: ``bundle.json`` (what the digest is taken of) and ``model/``.
    modules : frozenset of str
        Top-level modules that the evaluator's code imports and the bundle does not hold.
    """

    name: str
    spec: EvaluatorSpec
    digest: str
    archive: bytes = field(repr=False)
    modules: frozenset[str] = field(default=frozenset(), repr=False)


def pack(directory: Path, spec: EvaluatorSpec, *, exclude: Iterable[str] = ()) -> Bundle:
    """Pack a model directory.

    Parameters
    ----------
    directory : Path
        The model's top directory.
    spec : EvaluatorSpec
    exclude : iterable of str
        Further shell patterns of names or relative paths to leave out.

    Raises
    ------
    ModelError
        The directory is missing, unreadable, too large, or holds a link out of itself.
    """
    if not os.path.isdir(directory):  # noqa: PTH112 - Path's raises for a name that is too long
        raise ModelError(
            f"there is no model directory {str(directory)!r}",
            remedy="Name the directory that holds the model's files",
        )
    root = Path(os.path.realpath(directory))
    packed: list[tuple[str, bool, bytes]] = []
    total = 0
    try:
        for path in _walk(root, (*NEVER_PACKED, *exclude)):
            status = path.stat()
            total += status.st_size
            if total > LARGEST_BUNDLE:
                raise ModelError(
                    f"the model directory {str(directory)!r} holds more than"
                    f" {LARGEST_BUNDLE // 2**20} MiB",
                    remedy="Leave out what the evaluator does not read with --exclude PATTERN",
                )
            with open_plain(path) as file:
                content = file.read()
            name = path.relative_to(root).as_posix()
            packed.append((name, bool(status.st_mode & stat.S_IXUSR), content))
    except OSError as error:
        where = os.path.relpath(error.filename or root, root)
        raise ModelError(
            f"the model file {where!r} cannot be read ({error.strerror})",
            remedy="Make it readable, or leave it out with --exclude",
        ) from error
    if not packed:
        raise ModelError(
            f"the model directory {str(directory)!r} is empty",
            remedy="Name the directory that holds the model's files",
        )
    manifest = {
        "format": FORMAT,
        "evaluator": spec.as_json(),
        "files": [
            [name, executable, hashlib.sha256(content).hexdigest()]
            for name, executable, content in packed
        ],
    }
    text = _canonical(manifest)
    return Bundle(
        name=root.name,
        spec=spec,
        digest=hashlib.sha256(text).hexdigest(),
        archive=_archive(text, packed),
        modules=_imported(spec, {name: content for name, _, content in packed}),
    )


def _imported(spec: EvaluatorSpec, contents: Mapping[str, bytes]) -> frozenset[str]:
    """Return the modules outside the bundle that its evaluator's code imports, also late."""
    places = [PurePosixPath(one) for one in dict.fromkeys((*spec.search, "."))]
    outside, seen, waiting = set(), set(), [spec.factory.partition(":")[0]]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        found = [
            file
            for end in range(1, len(parts) + 1)
            for place in places
            for tail in ("/".join(parts[:end]) + ".py", "/".join([*parts[:end], "__init__.py"]))
            if (file := (place / tail).as_posix()) in contents
        ]
        if not found and not any(_holds(contents, place / parts[0]) for place in places):
            outside.add(parts[0])
        for file in found:
            if file in seen:
                continue
            seen.add(file)
            # A file that is no Python is told of when it is imported.
            with contextlib.suppress(SyntaxError, ValueError):
                package = _package_of(file, places)
                waiting += source_scan.of_source(contents[file], package).modules
    return frozenset(outside)


def _holds(contents: Mapping[str, bytes], directory: PurePosixPath) -> bool:
    return any(name.startswith(f"{directory.as_posix()}/") for name in contents)


def _package_of(file: str, places: Iterable[PurePosixPath]) -> str:
    """Return the package that a file's relative imports start from, by its longest place."""
    path = PurePosixPath(file)
    above = [place for place in places if path.is_relative_to(place)]
    place = max(above, key=lambda one: len(one.parts))
    return ".".join(path.relative_to(place).parent.parts)


def unpack(archive: bytes, digest: str, target: Path) -> EvaluatorSpec:
    """Write a bundle's files below ``target`` and return its evaluator spec.

    Nothing is written unless the archive is exactly the one the digest names: every
    member must be a file that the manifest lists, with the content that it lists.

    Raises
    ------
    ModelError
        The archive is damaged, or is not the one that ``digest`` names.
    """
    try:
        contents: dict[str, bytes] = {}
        total = 0
        with tarfile.open(fileobj=io.BytesIO(_decompressed(archive)), mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is None:
                    raise ValueError(f"{member.name!r} is not a plain file")
                total += member.size  # a sparse file may be of any size
                if total > LARGEST_ARCHIVE:
                    raise ValueError(f"it holds more than {LARGEST_ARCHIVE // 2**20} MiB")
                contents[member.name] = stream.read()
        text = contents.pop("bundle.json")
        if hashlib.sha256(text).hexdigest() != digest:
            raise ValueError("its manifest is another model's")
        manifest = as_object(json_value(text))
        listed = {f"model/{name}": (exe, sha) for name, exe, sha in manifest["files"]}
        if listed.keys() != contents.keys():
            raise ValueError("its files are not those it lists")
        for name, content in contents.items():
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts or len(inside.parts) < 2:
                raise ValueError(f"{name!r} leads out of the bundle")
            if "\0" in name or any(f"model/{above}" in contents for above in _above(inside)):
                raise ValueError(f"{name!r} is not a file name")
            if hashlib.sha256(content).hexdigest() != listed[name][1]:
                raise ValueError(f"{name!r} has another content than listed")
        spec = EvaluatorSpec.from_json(manifest["evaluator"])
    except ModelError:
        raise
    except Exception as error:  # tarfile raises anything
        raise ModelError(
            f"the archive of model {digest[:12]} is not usable: {error}",
            remedy="Send it again from the machine that has the model directory",
        ) from error
    for name, content in contents.items():
        path = target / PurePosixPath(name).relative_to("model")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if listed[name][0] else 0o644)
    return spec


def _decompressed(archive: bytes) -> bytes:
    """Return the tar in an archive, which may claim to be of any size."""
    try:
        with gzip.open(io.BytesIO(archive)) as stream:
            tar = stream.read(LARGEST_ARCHIVE + 1)
    except zlib.error as error:
        raise ValueError(f"it is not what was compressed: {error}") from error
    if len(tar) > LARGEST_ARCHIVE:
        raise ValueError(f"it holds more than {LARGEST_ARCHIVE // 2**20} MiB")
    return tar


def _above(path: PurePosixPath) -> Iterator[str]:
    """Yield the directories above a file, below the bundle's ``model``."""
    for above in path.relative_to("model").parents:
        if above.parts:
            yield above.as_posix()


def _walk(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below ``root`` that are packed, in one order on every machine."""

    def left_out(path: Path) -> bool:
        relative = path.relative_to(root).as_posix()
        return any(
            fnmatch.fnmatch(path.name, pattern) or fnmatch.fnmatch(relative, pattern)
            for pattern in patterns
        )

    def stop(error: OSError) -> NoReturn:
        raise error

    for folder, folders, names in os.walk(root, onerror=stop):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not left_out(here / name)
            and not any((here / name / marker).exists() for marker in RUN_MARKERS)
        )
        for name in sorted([*names, *(n for n in folders if (here / n).is_symlink())]):
            path = here / name
            if left_out(path):
                continue
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise ModelError(
                    f"the model file {path.relative_to(root).as_posix()!r} is a link out of"
                    " the model directory",
                    remedy="Put the file itself there, or leave it out with --exclude",
                )
            if path.is_symlink() and path.is_dir():
                raise ModelError(
                    f"the model's {path.relative_to(root).as_posix()!r} is a link to a directory",
                    remedy="Put the directory itself there, or leave it out with --exclude",
                )
            if path.is_file():
                yield path


def _canonical(data: Any) -> bytes:
    try:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the evaluator's keyword arguments are not JSON ({error})",
            remedy='Give an object such as {"etype": "cNAD_ltb"}',
        ) from error


def _archive(manifest: bytes, files: list[tuple[str, bool, bytes]]) -> bytes:
    """Return the same bytes for the same files, whenever and by whomever packed."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        named = [(f"model/{name}", executable, content) for name, executable, content in files]
        for name, executable, content in [("bundle.json", False, manifest), *named]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if executable else 0o644
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)
