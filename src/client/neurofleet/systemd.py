"""Tell systemd about this service; nothing happens where there is no systemd."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Send states such as ``READY=1``, ``WATCHDOG=1``, ``STATUS=...`` (see sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.sendall("\n".join(lines).encode())
