"""The L5PC evaluator for Arbor; this file is copied beside upstream's ``l5pc_evaluator.py``.

Upstream writes its dendritic recording sites with Arbor's old word ``restrict``, which
no Arbor that BluePyOpt works with understands; it is called ``restrict-to`` now.
"""

from __future__ import annotations

from typing import Any


def create() -> Any:
    """Return upstream's evaluator, with recording sites that Arbor understands."""
    import l5pc_evaluator

    evaluator = l5pc_evaluator.create(sim="arb")
    for protocol in evaluator.fitness_protocols.values():
        for recording in protocol.recordings:
            site = recording.location
            if hasattr(site, "locset"):
                site.locset = site.locset.replace("(restrict ", "(restrict-to ")
    return evaluator
