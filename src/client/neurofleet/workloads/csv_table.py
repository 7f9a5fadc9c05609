"""A person's CSV file as numbers, or a refusal with the file's own line.

What has nothing but numbers goes through numpy's own reader, which is as fast as any and as
strict as ``csv_form`` is. Every other file, and every file that this one refuses, is read
cell by cell, because only that tells where something is.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet.errors import UsageError
from neurofleet.files import open_input
from neurofleet.workloads.csv_form import NUMBER, Form, is_missing

if TYPE_CHECKING:
    import numpy as np

#: What separators are called in a message.
CALLED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
#: So much of a file's content is shown in a message [characters].
SHOWN = 40


@dataclass(frozen=True)
class Table:
    """A file's numbers.

    Attributes
    ----------
    names : tuple of str
        Of the columns.
    values : numpy.ndarray
        float64, (lines, columns).
    left_out : tuple of int
        Lines of the file, from 1, that were left out because a value is missing there.
    """

    names: tuple[str, ...]
    values: np.ndarray
    left_out: tuple[int, ...]


def read_table(path: Path, target: str, form: Form) -> Table:
    """Return a file's numbers.

    Parameters
    ----------
    path : Path
        UTF-8, with or without a byte order mark; its first line has the columns' names.
    target : str
        A column that must be there.
    form : Form

    Raises
    ------
    UsageError
        The file, a column or a value cannot be used; says where, and which option reads it.
    """
    if target in form.drop:
        raise UsageError(
            f"--drop {shlex.quote(target)} would leave out the target",
            remedy="Drop other columns, or name another --target",
        )
    try:
        with open_input(path, "utf-8-sig", newline="", errors="surrogateescape") as file:
            lines = list(file)
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be read ({error.strerror or error})",
            remedy="Name a CSV file with a header line",
        ) from error
    reader = _Reader(path, lines, form, target)
    table = reader.quickly() or reader.exactly()
    if len(table.values) < 2 or len(table.names) < 2:
        raise UsageError(
            f"{str(path)!r} has {len(table.values)} observations of {len(table.names)} columns",
            remedy="A forest needs at least two observations, the target and another column",
        )
    return table


class _Reader:
    """Reads the lines of one file."""

    def __init__(self, path: Path, lines: list[str], form: Form, target: str) -> None:
        self._path, self._lines, self._form, self._target = path, lines, form, target
        self._rows = self._split()
        first = next(self._rows, (0, []))
        self._header_ends = self._line
        header = [name.strip() for name in first[1]]
        while header and not header[-1]:  # a separator at the end of every line
            header.pop()
        self._width = len(header)
        self._check(header, first[1])
        self._kept = [n for n, name in enumerate(header) if name not in form.drop]
        self._names = tuple(header[n] for n in self._kept)

    def quickly(self) -> Table | None:
        """Return the table if each line is plain numbers as numpy's reader takes them."""
        import numpy as np

        mark = self._form.mark
        if self._form.decimal != "." or mark == " ":
            return None

        def plain() -> Iterator[str]:
            for line in self._lines[self._header_ends :]:
                if line.count(mark) != self._width - 1 or '"' in line or not line.isascii():
                    raise ValueError("not a plain line")
                yield line

        if len(self._lines) == self._header_ends:
            return None
        try:
            values = np.loadtxt(plain(), delimiter=mark, comments=None, usecols=self._kept, ndmin=2)
        except ValueError:
            return None
        return Table(self._names, values, ()) if np.isfinite(values).all() else None

    def exactly(self) -> Table:
        """Return the table, or raise where it is wrong."""
        import numpy as np

        rows: list[np.ndarray] = []
        left_out: list[int] = []
        for number, row in self._rows:
            cells = self._cells(number, row)
            if self._form.drop_missing and any(is_missing(cell) for cell in cells):
                left_out.append(number)
                continue
            values = self._form.numbers(cells)
            if values is None:
                raise self._wrong(number, cells)
            rows.append(np.array(values))
        table = np.array(rows).reshape(len(rows), len(self._names))
        return Table(self._names, table, tuple(left_out))

    def _split(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each row that has something, with the line on which it begins, from 1."""
        self._line = 0
        reader = csv.reader(
            self._text(), delimiter=self._form.mark, skipinitialspace=True, strict=True
        )
        while True:
            begins = self._line + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UsageError(
                    f"line {begins} of {str(self._path)!r} is not CSV ({error})",
                    remedy="See whether a quotation mark is opened there and not closed",
                ) from error
            if any(cell and not cell.isspace() for cell in row):
                yield begins, row

    def _text(self) -> Iterator[str]:
        """Yield the lines; refuse one that is no UTF-8."""
        for line in self._lines:
            self._line += 1
            if not line.isascii():
                try:
                    line.encode()
                except UnicodeEncodeError as error:
                    self._refuse_encoding(line[error.start])
            yield line

    def _refuse_encoding(self, escaped: str) -> None:
        byte = escaped.encode(errors="surrogateescape")[0]
        wide = self._line == 1 and byte in (0xFE, 0xFF)
        guess = "UTF-16" if wide else "LATIN1"
        raise UsageError(
            f"line {self._line} of {str(self._path)!r} is not UTF-8 (byte 0x{byte:02x})",
            remedy=f"Save the file as UTF-8; if it is {guess}, with: iconv -f {guess} -t UTF-8",
        )

    def _check(self, header: list[str], first: list[str]) -> None:
        """Refuse a header without the columns that are named, or with unclear names."""
        for name in (self._target, *self._form.drop):
            if name not in header:
                raise UsageError(
                    f"{str(self._path)!r} has no column {name!r}", remedy=self._has(header, first)
                )
        for name, times in Counter(header).items():
            if times > 1:
                raise UsageError(
                    f"{str(self._path)!r} has two columns {name!r}",
                    remedy="Give each column its own name",
                )
        if "" in header and "" not in self._form.drop:
            raise UsageError(
                f"column {header.index('') + 1} of {str(self._path)!r} has no name",
                remedy="Give it one, or leave it out with --drop ''",
            )

    def _has(self, header: list[str], first: list[str]) -> str:
        """Return what there is instead of a column, and which option would find it."""
        line = self._lines[self._header_ends - 1] if self._lines else ""
        if line.lstrip().startswith("#"):
            return "Its first line is a comment: remove it, and the # before the columns' names"
        for mark, called in CALLED.items():
            names = [name.strip().strip('"') for name in line.split(mark)]
            if mark != self._form.mark and len(names) > 1 and self._target in names:
                options = f"--separator {'tab' if mark == chr(9) else shlex.quote(mark)}"
                if mark != "," and any(
                    re.search(r"\d,\d", row) for row in self._lines[self._header_ends :][:20]
                ):
                    options += " --decimal ,"
                return f"Its columns are separated by {called}: give {options}"
        if first and all(NUMBER.fullmatch(cell.strip()) for cell in first):
            return "Its first line is numbers: put a line with the columns' names before it"
        return f"It has {', '.join(header) or 'none'}"[:300]

    def _cells(self, number: int, row: list[str]) -> list[str]:
        """Return the cells of the columns that are kept."""
        if len(row) > self._width and not any(cell.strip() for cell in row[self._width :]):
            row = row[: self._width]
        if len(row) != self._width:
            counted = f"{len(row)} value{'s' * (len(row) != 1)}, the header has {self._width}"
            remedy = "Mend that line"
            if row[0].lstrip().startswith("#"):
                remedy = "If it is a comment, remove it"
            elif self._form.mark == "," and len(row) > self._width:
                remedy += "; if the comma is the decimal sign, see --separator and --decimal"
            raise UsageError(f"line {number} of {str(self._path)!r} has {counted}", remedy=remedy)
        return [row[n] for n in self._kept]

    def _wrong(self, line: int, cells: Sequence[str]) -> UsageError:
        """Return what is wrong with a line that has a cell without a number."""
        wrong = (n for n, cell in enumerate(cells) if self._form.number(cell) is None)
        column = next(wrong)
        name, text = self._names[column], cells[column].strip()
        where = f"line {line} of {str(self._path)!r}"
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        drop = f"--drop {shlex.quote(name)}" if name != self._target else ""
        if is_missing(text):
            seen = f" but {shown!r}" if text else ""
            leave = f", or the column with {drop}" if drop else ""
            return UsageError(
                f"{where} has no value in column {name!r}{seen}",
                remedy=f"Mend that line, or leave such lines out with --drop-missing{leave}",
            )
        leave = f", or leave the column out with {drop}" if drop else ""
        return UsageError(
            f"{where} has {shown!r} in column {name!r}, which is not a number",
            remedy=self._form.instead_of(text) or f"Mend or remove that line{leave}",
        )
