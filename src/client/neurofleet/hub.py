"""Ask an ipyparallel hub, apart from the client that works."""

from __future__ import annotations


def known_tasks(connection_file: str, timeout_s: float) -> set[str]:
    """Return the message ids of all tasks that the hub has queued or running.

    Parameters
    ----------
    connection_file : str
        The client's connection file.
    timeout_s : float
        How long the hub may take to answer a new client [s].
    """
    import ipyparallel

    with ipyparallel.Client(connection_file, timeout=timeout_s) as client:
        status = client.queue_status(verbose=True)
    known: set[str] = set(status.get("unassigned", ()))
    for engine_id, queues in status.items():
        if isinstance(engine_id, int):
            known.update(queues["tasks"])
            known.update(queues["queue"])
    return known
