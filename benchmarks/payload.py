"""How large a task is on the wire; measured by benchmark and test, with ipyparallel's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def message_size(function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    """Return the bytes of all frames that submitting a call sends to the scheduler.

    Parameters
    ----------
    function : callable
    args : tuple
    """
    from ipyparallel.serialize import pack_apply_message
    from jupyter_client.session import Session

    session = Session(key=b"0" * 36)
    buffers = pack_apply_message(function, args, {})
    message = session.msg("apply_request", metadata={"targets": [], "after": [], "follow": []})
    frames = session.serialize(message)
    return sum(len(bytes(frame)) for frame in [*frames, *buffers])
