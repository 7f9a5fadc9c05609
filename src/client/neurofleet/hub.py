"""What only the hub knows: which engines are registered, which tasks it has.

Where possible it is asked in a message, without a client: an ``ipyparallel.Client`` opens
six connections and a thread; engines and the controller's watch ask every few seconds,
and engines can reach the registration port only.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.files import count, read_object, text, words

#: How long the hub has to answer [s].
ANSWER_TIMEOUT_S = 5.0
#: Length of a CURVE key as text [characters].
CURVE_KEY = 40
#: Ways to write messages that jupyter_client knows by name.
PACKERS = ("json", "orjson", "msgpack", "pickle")
#: Ways of ZeroMQ's to send messages.
TRANSPORTS = ("tcp://", "ipc://")
#: What clients have connections for, besides the registration.
CLIENT_CHANNELS = ("control", "mux", "task", "iopub", "notification", "broadcast")


@dataclass(frozen=True)
class HubAddress:
    """Where the hub listens and how it is spoken to.

    Attributes
    ----------
    url : str
        Of the registration port, which clients and engines share.
    server_key : bytes
        The hub's CURVE public key; empty without CURVE.
    session_key : bytes
        Signs messages.
    scheme : str
        How they are signed.
    """

    url: str
    server_key: bytes
    session_key: bytes
    scheme: str

    @classmethod
    def from_connection(cls, info: Mapping[str, Any]) -> HubAddress:
        """Take what is needed from a connection file's content."""
        return cls(
            url=f"{info['interface']}:{info['registration']}",
            server_key=(info.get("curve_serverkey") or "").encode(),
            session_key=info["key"].encode(),
            scheme=info["signature_scheme"],
        )

    @classmethod
    def of_client(cls, client: Any) -> HubAddress:
        """Take a client's own way to its hub, through a tunnel if it has one."""
        import zmq

        return cls(
            url=client._query_socket.getsockopt(zmq.LAST_ENDPOINT).decode(),
            server_key=client.curve_serverkey or b"",
            session_key=client.session.key,
            scheme=client.session.signature_scheme,
        )

    @classmethod
    def from_file(cls, path: Path) -> HubAddress:
        """Read a connection file.

        Raises
        ------
        OSError
            It cannot be read.
        ValueError
            It is no connection file.
        """
        return cls.from_connection(read_connection(path))


def read_connection(path: Path, channels: Sequence[str] = ()) -> dict[str, Any]:
    """Return a connection file's content, checked as far as ipyparallel relies on it.

    Parameters
    ----------
    path : Path
    channels : sequence of str
        What has a port besides the registration.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is no connection file.
    """
    content = read_object(path)
    for key in ("interface", "signature_scheme", "location"):
        text(content, key)
    words(content, "key")  # empty where ipyparallel has CURVE only
    signs, _, how = content["signature_scheme"].partition("-")
    if signs != "hmac" or how not in hashlib.algorithms_available:
        raise ValueError("its signature_scheme is not one of hmac's")
    if not content["interface"].startswith(TRANSPORTS):
        raise ValueError("its interface is not an address")
    for channel in ("registration", *channels):
        if not 0 < count(content, channel) < 65536:
            raise ValueError(f"{channel!r} is not a port")
    if content.get("curve_serverkey") and len(words(content, "curve_serverkey")) != CURVE_KEY:
        raise ValueError("its curve_serverkey is not a key")
    # It becomes a word of ssh's command line.
    if content.get("ssh") and not re.fullmatch(r"[\w.@:][\w.@:-]*", words(content, "ssh")):
        raise ValueError("its ssh is not a host")
    return content


def read_client_connection(path: Path) -> dict[str, Any]:
    """Return a clients' connection file; raises as ``read_connection``."""
    content = read_connection(path, CLIENT_CHANNELS)
    text(content, "task_scheme")
    for key in ("pack", "unpack"):
        if text(content, key) not in PACKERS:  # any other is a module to import
            raise ValueError(f"its {key} is not one of {', '.join(PACKERS)}")
    return content


def registered_engines(
    address: HubAddress, timeout_s: float = ANSWER_TIMEOUT_S
) -> Mapping[int, str] | None:
    """Return the registered engines' numbers and names, ``None`` if the hub does not answer.

    Every question has a connection of its own: one that was open when the hub's machine
    lost its power would stay silent for as long as TCP is patient.
    """
    with _connection(address) as (socket, session):
        return _engines(socket, session, timeout_s)


def unregister_engine(address: HubAddress, engine: int, linger_s: float = 2.0) -> None:
    """Tell the hub that an engine is gone, so that its work is given to others at once."""
    with _connection(address, linger_s) as (socket, session):
        session.send(socket, "unregistration_request", content={"id": engine})


@contextlib.contextmanager
def _connection(address: HubAddress, linger_s: float = 0.0) -> Iterator[tuple[Any, Any]]:
    import zmq
    from jupyter_client.session import Session

    session = Session(
        packer="json", unpacker="json", key=address.session_key, signature_scheme=address.scheme
    )
    # Leaving the context waits until what was sent has gone, linger_s at most.
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = int(linger_s * 1000)
        if address.server_key:
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            socket.curve_serverkey = address.server_key
        socket.connect(address.url)
        yield socket, session


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


def queues(
    address: HubAddress, timeout_s: float = ANSWER_TIMEOUT_S
) -> Mapping[int, tuple[int, int]] | None:
    """Return every engine's unfinished and finished tasks, ``None`` if the hub does not say.

    Asked for the queues of all engines, the hub also tells those of engines that are gone.
    """
    with _connection(address) as (socket, session):
        engines = _engines(socket, session, timeout_s)
        if not engines:
            return None if engines is None else {}
        wanted = {"targets": list(engines), "verbose": False}
        content = _answer(socket, session, timeout_s, "queue_request", wanted)
    if content.get("status") != "ok":
        return None
    found = {number: content[str(number)] for number in engines}
    return {n: (queue["queue"] + queue["tasks"], queue["completed"]) for n, queue in found.items()}


def _engines(socket: Any, session: Any, timeout_s: float) -> Mapping[int, str] | None:
    engines = _answer(socket, session, timeout_s, "connection_request").get("engines")
    return None if engines is None else {int(number): name for number, name in engines.items()}


def _answer(
    socket: Any,
    session: Any,
    timeout_s: float,
    question: str,
    content: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ask, and return the answer's content; nothing if there is no answer."""
    import zmq

    session.send(socket, question, content=content)
    if not socket.poll(int(timeout_s * 1000), zmq.POLLIN):
        return {}
    _, reply = session.recv(socket)
    return dict((reply or {}).get("content", {}))
