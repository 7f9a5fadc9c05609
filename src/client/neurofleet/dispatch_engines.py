"""The engines of the task farm: who is there, who may have tasks, whose results count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from neurofleet.dispatch_state import Engine, remote_failure
from neurofleet.errors import FleetError
from neurofleet.farm import ByName, Preparation

logger = logging.getLogger(__name__)

#: Names one answer of one engine: its number, its identity, and what it is being prepared for.
Asked = tuple[int, str, int]


class Roster:
    """The engines that a client knows, each being prepared, ready, or left out.

    ipyparallel drops an engine that is gone in a thread of its own, at any moment: so who
    is there is asked of the client each time, and never remembered.

    Parameters
    ----------
    preparation : Preparation or None
    answered : callable
        Called in another thread with an ``Asked`` and ipyparallel's result of that call,
        both of which are to be handed to ``take``.
    """

    def __init__(
        self, preparation: Preparation | None, answered: Callable[[Asked, Any], None]
    ) -> None:
        self._preparation = preparation
        self._answered = answered
        self._client: Any = None
        self._engines: dict[int, Engine] = {}
        self._turn = 0
        self._ready_once: set[str] = set()

    def __len__(self) -> int:
        """Return how many engines there are, ready or not."""
        return len(self._engines)

    @property
    def size(self) -> int:
        """Number of engines that are ready."""
        return sum(engine.ready for engine in self._engines.values())

    @property
    def settled(self) -> int:
        """Number of engines that are ready or left out."""
        return sum(engine.ready or engine.left_out is not None for engine in self._engines.values())

    @property
    def why_none(self) -> FleetError | None:
        """Why all engines are left out, ``None`` unless they are."""
        reasons = [engine.left_out for engine in self._engines.values()]
        return reasons[0] if reasons and None not in reasons else None

    @property
    def present(self) -> dict[int, str]:
        """The identities of the engines that the client has at this moment, by number."""
        return dict(self._client._engines)

    def connect(self, client: Any) -> None:
        """Begin anew with a client."""
        self._client = client
        self._engines.clear()

    def prepare_for(self, preparation: Preparation) -> None:
        """Have every engine prepared anew, for something else."""
        self._preparation = preparation
        self._turn += 1
        self._ready_once.clear()
        for number, engine in list(self._engines.items()):
            engine.left_out = None
            self._ask(number, engine, None)

    def prepare_again(self, identity: str) -> None:
        """Have an engine prepared that said it is not."""
        for number, engine in list(self._engines.items()):
            if engine.identity == identity and engine.ready:
                self._ask(number, engine, None)

    def follow(self) -> int:
        """Notice who came and went, and have who came prepared; return how many are there."""
        present = self.present
        for number in [n for n, e in self._engines.items() if present.get(n) != e.identity]:
            del self._engines[number]
        for number, identity in present.items():
            if number not in self._engines:
                self._engines[number] = Engine(identity)
                self._ask(number, self._engines[number], None)
        return len(present)

    def take(self, asked: Asked, answer: Any) -> None:
        """Take an engine's preparation one call further."""
        number, identity, turn = asked
        engine = self._engines.get(number)
        if engine is not None and engine.identity == identity and turn == self._turn:
            self._ask(number, engine, answer)

    def targets(self, not_on: str) -> tuple[list[int], bool]:
        """Return the engines that may have a task, and whether they are all there are.

        Parameters
        ----------
        not_on : str
            A host to be avoided while there is another one; empty is none.
        """
        present = self.present
        ready = [n for n, e in self._engines.items() if e.ready and present.get(n) == e.identity]
        elsewhere = [n for n in ready if not_on and self._engines[n].host != not_on]
        return elsewhere or ready, not elsewhere and len(ready) == len(present)

    def hosts(self) -> dict[str, str]:
        """Return the host of each engine, by its identity; empty if that is not known."""
        return {engine.identity: engine.host for engine in self._engines.values()}

    def vouches_for(self, identity: str) -> bool | None:
        """Tell whether an engine's results count; ``None`` while that is not known.

        The scheduler may give a task to an engine that has just come. What it computes
        counts when it turns out to be one that may have tasks.
        """
        self.follow()
        if identity in self._ready_once:
            return True
        there = (engine for engine in self._engines.values() if engine.identity == identity)
        return None if any(engine.left_out is None for engine in there) else False

    def _ask(self, number: int, engine: Engine, answer: Any) -> None:
        engine.ready = False
        try:
            if answer is not None:
                answer = answer.get(timeout=0)
            if isinstance(answer, dict):
                engine.host = str(answer.get("host", ""))
            call = self._preparation.request(answer) if self._preparation else None
            if call is None:
                engine.ready = True
                self._ready_once.add(engine.identity)
                return
            function, *args = call
            asked = self._client[number].apply_async(ByName.of(function), *args)
        except Exception as error:
            # Gone meanwhile, or the whole connection is: the next look finds that out.
            if self._client._closed or self.present.get(number) != engine.identity:
                return
            cause = error if isinstance(error, FleetError) else remote_failure(error)
            engine.left_out = cause
            logger.warning("engine %d is left out: %s", number, cause)
            return
        name = (number, engine.identity, self._turn)
        asked.add_done_callback(lambda done: self._answered(name, done))


def ask(
    client: Any, engines: Iterable[int], function: Callable[..., Any], *args: Any
) -> dict[int, Any]:
    """Call a function on engines, each by its number; one that has just gone is not asked.

    Parameters
    ----------
    client : ipyparallel.Client
    engines : iterable of int
    function : callable
        Importable on the engines.
    args
        Its arguments.

    Returns
    -------
    dict of int to ipyparallel.AsyncResult
    """
    asked = {}
    for number in engines:
        try:
            asked[number] = client[number].apply_async(ByName.of(function), *args)
        except Exception:
            if number in client.ids:
                raise
    return asked
