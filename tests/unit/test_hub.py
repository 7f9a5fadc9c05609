"""What the hub of a real controller says of its engines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from neurofleet.backends.local import LocalEngines
from neurofleet.guards.idle import Idleness, asker
from neurofleet.hub import HubAddress, queues, unregister_engine


def until_queues_are(address: HubAddress, wanted: Mapping[int, tuple[int, int]]) -> None:
    """The hub learns of tasks from what passes by it."""
    deadline = time.monotonic() + 10
    while (found := queues(address)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_hub_tells_of_engines_and_their_tasks_and_none_counts_as_idle(tmp_path: Path) -> None:
    cluster = LocalEngines(1, tmp_path / "engines")
    try:
        client = cluster.connect()
        client.wait_for_engines(1, timeout=60)
        (number,) = client.ids
        (file,) = Path(cluster.connection_file).parent.glob("*engine.json")
        address = HubAddress.from_file(file)
        assert queues(address) == {number: (0, 0)}
        running = client.load_balanced_view().apply_async(time.sleep, 4)
        until_queues_are(address, {number: (1, 0)})
        head = Idleness(asker(file), None, now=0.0)
        worker = Idleness(asker(file), lambda: {number}, now=0.0)
        assert (head.seconds(100.0), worker.seconds(100.0)) == (0.0, 0.0)
        running.get(timeout=30)
        until_queues_are(address, {number: (0, 1)})
        # It has finished one since; after that there is nothing to do for the worker.
        assert worker.seconds(200.0) == 0.0
        assert (head.seconds(300.0), worker.seconds(300.0)) == (0.0, 100.0)
        client.close()
        # An engine that is gone counts no more: a head without engines has nothing to do.
        unregister_engine(address, number)
        until_queues_are(address, {})
        assert head.seconds(400.0) == 100.0
    finally:
        cluster.close()
