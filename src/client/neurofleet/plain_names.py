"""Names for files and directories, made of what people call things."""

from __future__ import annotations

import hashlib
import re

#: Longest name that is made, without its hash [bytes]: a file's may have 255.
LONGEST = 120
_OTHER = re.compile(r"[^\w.,+=@-]+")


def plain_name(text: str) -> str:
    """Return a text as one part of a path, the same for the same text and no other.

    A text that is one already stays as it is. Whatever leads out of a directory, is no part of
    a name or too long is replaced, and a short hash is added, so that two texts do not meet.
    """
    short = _OTHER.sub("_", text).encode()[:LONGEST].decode(errors="ignore")
    plain = short.lstrip(".-") or "_"
    return plain if plain == text else f"{plain}-{short_hash(text)}"


def short_hash(text: str) -> str:
    """Return six letters and digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]
