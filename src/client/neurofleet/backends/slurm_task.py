"""One task of a Slurm job: an engine, started anew when something killed it.

    python -m neurofleet.backends.slurm_task [OPTIONS OF ipengine]

The engine works in a directory of its own on the node's disk. One that leaves by itself,
because its controller is gone, is not started again, and so the job ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

from neurofleet.backends.own_cluster import NO_DIRECTORY, SAFE_PATH

#: Starts after which the cause is something that starting again does not cure.
MOST_STARTS = 20


def main() -> int:
    """Run engines, one after the other; return the last one's exit code."""
    ending = False

    def end(_number: int, _frame: object) -> None:
        # Slurm tells every process of the job; the engine finishes its unit.
        nonlocal ending
        ending = True

    signal.signal(signal.SIGTERM, end)
    code = 0
    with tempfile.TemporaryDirectory(prefix="neurofleet-engine-") as folder:
        command = [
            *(sys.executable, "-P", "-m", "ipyparallel.engine", f"--work-dir={folder}"),
            # A shared file system may show the connection file late.
            *("--IPEngine.wait_for_url_file=60", "--IPEngine.timeout=60"),
            *("--IPEngine.max_heartbeat_misses=8", NO_DIRECTORY),
            *sys.argv[1:],
        ]
        for _ in range(MOST_STARTS):
            code = subprocess.call(command, env={**os.environ, **SAFE_PATH})
            if ending or code >= 0:
                break
            print(f"the engine was ended by signal {-code}: starting another", file=sys.stderr)
    return abs(code)


if __name__ == "__main__":
    sys.exit(main())
