"""What this machine has found out about a model: kept beside it, with a checksum.

It is only a convenience: what is not there, or damaged, is found out anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofleet.atomic import write_whole
from neurofleet.files import as_object, read_object

logger = logging.getLogger(__name__)


def remember(file: Path, content: Mapping[str, Any]) -> None:
    """Keep an object, if there is room for it."""
    kept = {"content": content, "sha256": _checksum(content)}
    try:
        write_whole(file, json.dumps(kept).encode())
    except OSError as error:
        logger.info("%s is found out anew next time (%s)", file.name, error.strerror or error)


def recall(file: Path) -> dict[str, Any] | None:
    """Return the object that was kept, bit for bit; ``None`` if there is none, or a damaged one."""
    try:
        kept = read_object(file)
        content = as_object(kept.get("content"))
    except (OSError, ValueError):
        return None
    return content if kept.get("sha256") == _checksum(content) else None


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
