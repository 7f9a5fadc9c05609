"""``from neurofleet import Fleet``: engines for a Python program, wherever they come from."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from neurofleet import safe_point
from neurofleet.backends import EngineSource
from neurofleet.backends.choice import EngineChoice, engine_source
from neurofleet.backends.slurm import SlurmRequest
from neurofleet.dispatch import EngineFarm
from neurofleet.engine.job import Missing
from neurofleet.errors import FleetError, UsageError
from neurofleet.farm import FarmState
from neurofleet.fleet_map import ItemFailed, Stopped, Wanted, generators_kept, map_on

#: How long the plain client's hub may take to answer [s].
CLIENT_TIMEOUT_S = 30


class Fleet:
    """Engines, for as long as a ``with`` block lasts.

    >>> from neurofleet import Fleet
    >>> with Fleet.local(2) as fleet:
    ...     fleet.map(abs, [-1, 2, -3])
    [1, 2, 3]

    Made by ``Fleet.local``, ``Fleet.profile`` and ``Fleet.slurm``. In the main thread the
    signals that ask for a stop (SIGUSR1, SIGTERM) are listened for, unless the program
    handles them itself.
    """

    def __init__(self, choice: EngineChoice) -> None:
        self._choice = choice
        self._folder: Path | None = None
        self._source: EngineSource | None = None
        self._farm: EngineFarm | None = None
        self._client: Any = None
        self._watch: Callable[[FarmState], None] = _ignore
        self._listening = contextlib.ExitStack()

    @classmethod
    def local(cls, engines: int | None = None, *, timeout_s: float = 300.0) -> Fleet:
        """Engines on this machine's cores, which end with the block.

        Parameters
        ----------
        engines : int or None
            How many; ``None`` is one for each core that may be used.
        timeout_s : float
            How long to wait while no engine can be used [s].
        """
        return cls(EngineChoice("local", engines, None, timeout_s))

    @classmethod
    def profile(cls, name: str | None = None, *, timeout_s: float = 300.0) -> Fleet:
        """Engines of a controller that runs, which go on after the block.

        Parameters
        ----------
        name : str or None
            The IPython profile; ``None`` is this head's fleet, else the default profile.
        timeout_s : float
            How long to wait while no engine can be used [s].
        """
        return cls(EngineChoice("profile", None, name, timeout_s))

    @classmethod
    def slurm(
        cls,
        engines: int | None = None,
        *,
        partition: str | None = None,
        time: str | None = None,
        account: str | None = None,
        options: Sequence[str] = (),
        timeout_s: float = 300.0,
        queue_timeout_s: float = 86400.0,
    ) -> Fleet:
        """Engines of a Slurm job, which ends with the block.

        Parameters
        ----------
        engines : int or None
            How many, one core each; ``None`` is all tasks of the allocation that this
            program runs in.
        partition, time, account : str or None
            As sbatch takes them.
        options : sequence of str
            More options of sbatch, such as ``--mem-per-cpu=2G``.
        timeout_s : float
            How long to wait while the job runs and no engine can be used [s].
        queue_timeout_s : float
            How long the job may be pending [s].
        """
        request = SlurmRequest(partition, time, account, tuple(options), queue_timeout_s)
        return cls(EngineChoice("slurm", engines, None, timeout_s, request))

    def __enter__(self) -> Self:
        """Connect; at least one engine is there when this returns.

        Raises
        ------
        EnginesUnreachable, TooFewEngines
            No controller answers; no engine came within the limit.
        """
        if self._farm is not None:
            raise UsageError(
                "these engines are in use already", remedy="Make another Fleet for another block"
            )
        self._folder = Path(tempfile.mkdtemp(prefix=".neurofleet-", dir=self._choice.scratch))
        try:
            self._listening.enter_context(safe_point.listening())
            self._source, _ = engine_source(self._choice, self._folder / "engines")
            self._farm = EngineFarm(
                self._source,
                engine_timeout_s=self._choice.timeout_s,
                watch=lambda state: self._watch(state),
                is_not_ready=lambda result: isinstance(result, Missing),
            )
            self._farm.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engines; those that were started for this fleet end. Safe to call twice."""
        client, self._client = self._client, None
        if client is not None:
            client.close(linger=0)
        farm, self._farm = self._farm, None
        if farm is not None:
            farm.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._listening.close()

    def __len__(self) -> int:
        """Return how many engines can be used now."""
        return self._opened().size

    @property
    def client(self) -> Any:
        """A plain ``ipyparallel.Client`` of these engines, for those who want views."""
        import ipyparallel

        self._opened()
        assert self._source is not None
        if self._client is None or self._client._closed:
            self._client = ipyparallel.Client(
                self._source.connection_file, timeout=CLIENT_TIMEOUT_S
            )
        return self._client

    def map(
        self,
        function: Any,
        items: Iterable[Any],
        *,
        shared: Mapping[str, Any] | None = None,
        seed: int = 0,
        item_timeout_s: float | str | None = None,
        return_exceptions: bool = False,
        mechanisms: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        run_dir: str | os.PathLike[str] | None = None,
        keep_results: bool = False,
        retry_failed: bool = False,
        files_limit_mb: float = 100,
    ) -> list[Any]:
        """Call a function for each item, and return the results in the items' order.

        Items go to engines in batches that follow how long they take. Those of an engine
        that is lost are computed by another one. Python's ``random`` and numpy's generator
        are in this program afterwards as they were before.

        Parameters
        ----------
        function : callable
            Of one item. A lambda, a closure or a function of your own file is sent with
            its code.
        items : iterable
            What each call gets.
        shared : mapping or None
            Keyword arguments of all calls, sent once to each host.
        seed : int
            Item ``i``, from 0, draws from generators that are seeded by ``(seed, i)``.
        item_timeout_s : float, "none" or None
            Limit of one item [s]; no limit; or, ``None``, 20 times the longest item that
            ended, at least 120 s. While none has ended it is 600 s, and an item that
            reaches it is tried again with twice the limit.
        return_exceptions : bool
            Put an ``ItemFailed`` into the list for an item that failed, in place of
            raising the first one when all are done.
        mechanisms : path or None
            A directory with ``.mod`` files, which are sent along, compiled once for each
            host, and loaded before the function.
        verbose : bool
            Print what the calls print, each line with its item.
        run_dir : path or None
            Where results are kept: the same call again computes only what is missing or
            failed. Files that calls on other machines write are brought there.
        keep_results : bool
            Keep the results in ``run_dir`` although the code has changed since.
        retry_failed : bool
            Compute only items that have failed before; keep all results in ``run_dir``.
        files_limit_mb : float
            The most that is brought back of what one item wrote [MB].

        Raises
        ------
        UsageError
            Function, data or an item cannot be sent; says which item.
        ItemFailed
            The function raised, or took too long, or ended every engine that tried.
        Stopped
            A stop was asked for, by SIGUSR1 or SIGTERM; what had begun is kept in
            ``run_dir``. A program that does not catch it ends with exit code 130. Without
            ``run_dir``, where nothing is kept, it is ``Interrupted``.
        FleetError
            See its subclasses.
        """
        farm = self._opened()
        wanted = Wanted(
            function=function,
            shared=dict(shared or {}),
            seed=seed,
            limit_s=item_timeout_s,
            files_mb=files_limit_mb,
            verbose=verbose,
            mechanisms=None if mechanisms is None else Path(mechanisms),
            run_dir=None if run_dir is None else Path(run_dir).absolute(),
            keep_results=keep_results,
            retry_failed=retry_failed,
        )
        with generators_kept():
            values = map_on(farm, self._choice, wanted, items, self._watched)
        failed = [value for value in values if isinstance(value, ItemFailed)]
        if failed and not return_exceptions:
            raise failed[0]
        return values

    @contextlib.contextmanager
    def _watched(self, watch: Callable[[FarmState], None]) -> Iterator[None]:
        self._watch = watch
        try:
            yield
        finally:
            self._watch = _ignore

    def _opened(self) -> EngineFarm:
        if self._farm is None:
            raise UsageError("this fleet is closed", remedy="Use it inside: with Fleet... as fleet")
        return self._farm


def _ignore(_state: FarmState) -> None:
    """Tell nobody."""


__all__ = ["Fleet", "FleetError", "ItemFailed", "Stopped"]
