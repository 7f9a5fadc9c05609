"""Where engines come from. All that the dispatcher knows of it is ``EngineSource``."""

from __future__ import annotations

from typing import Any, Protocol


class EngineSource(Protocol):
    """Something that has ipyparallel engines.

    Attributes
    ----------
    name : str
        For people: ``local``, ``profile mylab``.
    connection_file : str
        The client's connection file, once connected.
    expected : int
        Engines that should be there before work begins.
    """

    name: str
    connection_file: str
    expected: int

    def connect(self) -> Any:
        """Return an ``ipyparallel.Client``; starts what has to be started.

        Called again after the connection was lost; the earlier client is then dead.

        Raises
        ------
        EnginesUnreachable
            No controller answers within the source's own limit.
        """

    def tend(self, engines: int, /) -> bool:
        """Replace engines that have died, if that is the source's to do.

        Called often, with the number of registered engines. Returns False when the
        controller is known to be gone, so that ``connect`` has to be called again.
        """

    def close(self) -> None:
        """End what was started; nothing else. Safe to call twice."""
