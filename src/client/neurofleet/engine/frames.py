"""Messages between processes, whole or not at all, read without waiting for their rest."""

from __future__ import annotations

import os
import struct

_LENGTH = struct.Struct("!Q")
#: The most that is read at once [bytes].
READ_BYTES = 1 << 20


def send(number: int, content: bytes) -> None:
    """Write one message to a descriptor.

    Raises
    ------
    OSError
        Nobody reads it.
    """
    head = _LENGTH.pack(len(content))
    if len(content) < READ_BYTES:
        rest = memoryview(head + content)
    else:
        _write(number, memoryview(head))
        rest = memoryview(content)
    _write(number, rest)


def _write(number: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(number, rest) :]


class Messages:
    """What arrives on a descriptor, taken apart into messages.

    Parameters
    ----------
    number : int
        The descriptor.

    Attributes
    ----------
    ended : bool
        Whether the other side has closed it; what came of an unfinished message is nothing.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.ended = False
        self._arrived = bytearray()

    def read(self) -> bool:
        """Take in what is there, waiting if the descriptor does; tell whether there was any."""
        try:
            some = os.read(self.number, READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            some = b""
        self._arrived += some
        self.ended = not some
        return bool(some)

    def next(self) -> bytes | None:
        """Return the next message that is complete."""
        if len(self._arrived) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._arrived)[0]
        if len(self._arrived) < end:
            return None
        message = bytes(memoryview(self._arrived)[_LENGTH.size : end])
        del self._arrived[:end]
        return message

    def wait(self) -> bytes:
        """Return the next message.

        Raises
        ------
        EOFError
            The other side has closed the descriptor.
        """
        while (message := self.next()) is None:
            if not self.read() and self.ended:
                raise EOFError("the other side has ended")
        return message
