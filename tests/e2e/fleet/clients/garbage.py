"""Send random bytes to ports of a machine: ADDRESS PORT..."""

import contextlib
import os
import socket
import sys

for port in map(int, sys.argv[2:]):
    for size in (1, 64, 100_000):
        with socket.create_connection((sys.argv[1], port), timeout=5) as connection:
            connection.settimeout(0.2)
            with contextlib.suppress(OSError):  # it may hang up
                connection.sendall(os.urandom(size))
                connection.recv(1000)
