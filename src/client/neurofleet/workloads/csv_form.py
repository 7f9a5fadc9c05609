"""How a CSV file is laid out, and what a cell of it means.

A number is decimal digits of ASCII with an optional sign, point and exponent, blanks around
it. ``float()`` takes more (``1_1`` is 11 there), and silently: so it is only asked for what
is a number already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from neurofleet.errors import UsageError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: What a number consists of, blanks included; of such a text float() takes what NUMBER takes.
IN_NUMBERS = b"0123456789+-.eE \t\n\r\f\v\x1c\x1d\x1e\x1f"
#: How people and programs write that there is no value; in small letters.
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "?"})
#: Separators that have a name.
NAMED = {"tab": "\t", "\\t": "\t", "space": " "}
#: What cannot separate numbers, apart from letters and digits.
NO_SEPARATOR = "\"'+-._#"


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return cell.strip().casefold() in MISSING


@dataclass(frozen=True)
class Form:
    """How a file is laid out.

    Attributes
    ----------
    separator : str
        One character, or one of ``NAMED``.
    decimal : str
        ``.`` or ``,``.
    drop : sequence of str
        Columns that are left out.
    drop_missing : bool
        Whether lines without a value in some column are left out, instead of refused.
    """

    separator: str = ","
    decimal: str = "."
    drop: Sequence[str] = ()
    drop_missing: bool = False

    def __post_init__(self) -> None:
        """Refuse what separates nothing."""
        mark = self.mark
        plain = len(mark) == 1 and mark.isascii() and (mark.isprintable() or mark == "\t")
        if not plain or mark.isalnum() or mark in NO_SEPARATOR:
            raise UsageError(
                f"--separator {self.separator!r} cannot separate numbers",
                remedy="Give one character such as ';', or tab or space",
            )
        if self.decimal not in (".", ","):
            raise UsageError(
                f"--decimal {self.decimal!r} is not a decimal sign", remedy="Give '.' or ','"
            )
        if self.decimal == mark:
            raise UsageError(
                f"--decimal {self.decimal!r} and --separator {mark!r} are the same character",
                remedy="Name what separates the columns, such as --separator ';'",
            )

    @property
    def mark(self) -> str:
        """The character between two cells."""
        return NAMED.get(self.separator, self.separator)

    def number(self, cell: str) -> float | None:
        """Return the number in a cell, ``None`` if it is none or too large for a float64."""
        text = cell.strip() if cell.isascii() else cell
        if self.decimal == ",":
            text = "" if "." in text else text.replace(",", ".")
        value = float(text) if NUMBER.fullmatch(text) else math.inf
        return value if math.isfinite(value) else None

    def numbers(self, cells: Sequence[str]) -> list[float] | None:
        """Return the numbers in many cells, at once; ``None`` if not all are."""
        together = "".join(cells)
        if self.decimal == ",":
            if "." in together:
                return None
            cells, together = [cell.replace(",", ".") for cell in cells], together.replace(",", "")
        if not together.isascii() or together.encode().translate(None, IN_NUMBERS):
            return None
        try:
            values = list(map(float, cells))
        except ValueError:
            return None
        return values if all(map(math.isfinite, values)) else None

    def instead_of(self, cell: str) -> str:
        """Return which option would make a number of a cell; empty if none."""
        text = cell.strip()
        if self.decimal == "," and NUMBER.fullmatch(text):
            return "If the point is the decimal sign, leave --decimal out"
        if self.decimal == "." and NUMBER.fullmatch(text.replace(",", ".", 1)):
            also = " and what separates the columns, as in --separator ';'"
            return "If the comma is the decimal sign, give --decimal ," + also * (self.mark == ",")
        return ""
