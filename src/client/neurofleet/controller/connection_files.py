"""Keys and connection files, written before the controller starts for the first time.

    python -m neurofleet.controller.connection_files write [--dry-run] SETTINGS
    python -m neurofleet.controller.connection_files check SETTINGS

ipyparallel makes new keys and ports whenever a file is missing or two of them disagree,
and nobody else would know them. So both files are made here, from keys that are made
once and from ports that are settings, and compared with them before every start.

No key is ever printed. SETTINGS is a JSON file: ``schema_version`` 1, ``head_address``,
nine ``engine_ports``, six ``client_ports``, ``scheme`` (the task scheduler's), the paths
``keys_file``, ``engine_file``, ``client_file``, and the accounts ``user`` and ``group``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurofleet.errors import FleetError, UsageError
from neurofleet.files import count, entries, read_object, text
from neurofleet.hub import CLIENT_CHANNELS

#: The order in which ipyparallel hands out ports to channels.
ENGINE_CHANNELS = ("registration", "control", "mux", "task", "iopub", "hb_ping", "hb_pong")
#: Engine ports after those of ENGINE_CHANNELS: leaves of the broadcast scheduler.
BROADCAST_LEAVES = 2
#: Written by one role, read by the controller's user only.
KEYS_MODE = 0o400
#: Read by the fleet's group as well.
FILE_MODE = 0o640
#: What the settings and the file of keys must have.
TEXTS = ("head_address", "scheme", "keys_file", "engine_file", "client_file", "user", "group")
KEYS = ("curve_publickey", "curve_secretkey", "session_key")
REPAIR = "Run the playbook again: site.yml --tags ipython_profile,ipcontroller,ipengine"


def make_keys() -> dict[str, str]:
    """Return a CURVE key pair and a key that signs messages."""
    import zmq

    public, secret = zmq.curve_keypair()
    return {
        "curve_publickey": public.decode(),
        "curve_secretkey": secret.decode(),
        "session_key": secrets.token_hex(32),
    }


def connection_files(
    settings: Mapping[str, Any], keys: Mapping[str, str]
) -> dict[Path, dict[str, Any]]:
    """Return the content of the engines' and of the clients' connection file, by path."""
    engine_ports, client_ports = settings["engine_ports"], settings["client_ports"]
    if len(engine_ports) != len(ENGINE_CHANNELS) + BROADCAST_LEAVES:
        raise UsageError(
            f"{len(engine_ports)} engine_ports, not nine", remedy="See roles/fleet/defaults"
        )
    if len(client_ports) != len(CLIENT_CHANNELS):
        raise UsageError(
            f"{len(client_ports)} client_ports, not six", remedy="See roles/fleet/defaults"
        )
    common = {
        "ssh": "",
        "key": keys["session_key"],
        "curve_serverkey": keys["curve_publickey"],
        "location": settings["head_address"],
        "pack": "json",
        "unpack": "json",
        "signature_scheme": "hmac-sha256",
    }
    engine = {
        **common,
        "interface": f"tcp://{settings['head_address']}",
        **dict(zip(ENGINE_CHANNELS, engine_ports, strict=False)),
        "broadcast": engine_ports[len(ENGINE_CHANNELS) :],
    }
    client = {
        **common,
        "interface": "tcp://127.0.0.1",
        "registration": engine["registration"],
        "task_scheme": settings["scheme"],
        **dict(zip(CLIENT_CHANNELS, client_ports, strict=True)),
    }
    return {Path(settings["engine_file"]): engine, Path(settings["client_file"]): client}


def write(settings: Mapping[str, Any], *, dry_run: bool = False) -> list[str]:
    """Make what is missing or differs; return the names of the files that changed."""
    changed = []
    keys_file = Path(settings["keys_file"])
    keys = _read_keys(keys_file) if keys_file.exists() else None
    if keys is None:
        changed.append(keys_file.name)
        keys = make_keys()
    wanted = {keys_file: (keys, KEYS_MODE, settings["user"])} | {
        path: (content, FILE_MODE, "root")
        for path, content in connection_files(settings, keys).items()
    }
    for path, (content, mode, owner) in wanted.items():
        if path.exists() and _read(path) == content and _has_access(path, mode, owner, settings):
            continue
        if path.name not in changed:
            changed.append(path.name)
        if dry_run:
            continue
        try:
            _replace(path, content, mode, owner, settings["group"])
        except (OSError, LookupError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"{path} cannot be written ({why})", remedy=REPAIR) from error
    return changed


def check(settings: Mapping[str, Any]) -> None:
    """Compare the connection files with settings and keys.

    Raises
    ------
    UsageError
        One is missing or differs: the controller would make new keys and ports.
    """
    keys = _read_keys(Path(settings["keys_file"]))
    for path, content in connection_files(settings, keys).items():
        found = _read(path)
        differing = sorted(k for k in content.keys() | found if content.get(k) != found.get(k))
        if differing:
            raise UsageError(f"{path} differs in {', '.join(differing)}", remedy=REPAIR)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        # The text of a JSON error would quote the file.
        why = error.strerror if isinstance(error, OSError) else "no JSON object"
        remedy = REPAIR
        if not isinstance(error, OSError):
            remedy = f"Remove it; {REPAIR[0].lower()}{REPAIR[1:]}"
        raise UsageError(f"{path} cannot be read ({why})", remedy=remedy) from None


def _read_keys(path: Path) -> dict[str, Any]:
    keys = _read(path)
    if not all(isinstance(keys.get(name), str) and keys[name] for name in KEYS):
        # What stands there instead may be part of a key.
        raise UsageError(f"{path} lacks a key", remedy=f"Remove it. {REPAIR}")
    return keys


def _read_settings(path: Path) -> dict[str, Any]:
    settings = _read(path)
    try:
        for name in TEXTS:
            text(settings, name)
        for name in ("engine_ports", "client_ports"):
            for port in entries(settings, name):
                if not 0 < count({name: port}, name) < 65536:
                    raise ValueError(f"{port} is not a port")
    except ValueError as error:
        raise UsageError(f"{path} cannot be used: {error}", remedy=REPAIR) from error
    return settings


def _has_access(path: Path, mode: int, owner: str, settings: Mapping[str, Any]) -> bool:
    try:
        return (
            path.stat().st_mode & 0o7777 == mode
            and path.owner() == owner
            and path.group() == settings["group"]
        )
    except KeyError:  # a user or a group without a name
        return False


def _replace(path: Path, content: Mapping[str, Any], mode: int, owner: str, group: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        shutil.chown(partial, owner, group)
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="connection_files")
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("settings", type=Path)
    options = parser.parse_args(arguments)
    try:
        settings = _read_settings(options.settings)
        if options.action == "check":
            check(settings)
        else:
            print(json.dumps({"changed": write(settings, dry_run=options.dry_run)}))
    except FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
