"""Give every engine a nap, and print where they were taken: SECONDS FILE.

An engine that takes its nap makes the file.
"""

import sys

import ipyparallel


def nap(seconds: float, file: str) -> str:
    import pathlib
    import socket
    import time

    pathlib.Path(file).touch()
    time.sleep(seconds)
    return socket.gethostname()


client = ipyparallel.Client(profile="neurofleet", timeout=30)
count = len(client.ids)
napping = client.load_balanced_view().map_async(
    nap, [float(sys.argv[1])] * count, [sys.argv[2]] * count
)
print(*sorted(napping.get(timeout=60)))
