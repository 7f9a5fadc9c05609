"""Send the hub the same message twice, and one that is too large: ADDRESS."""

import sys
from pathlib import Path

import zmq
from jupyter_client.session import Session

from neurofleet.hub import HubAddress, registered_engines

FILE = "/var/lib/neurofleet/ipython/profile_neurofleet/security/ipcontroller-engine.json"
#: What is much more than any message of ours [bytes].
LARGE = 300_000_000

address = HubAddress.from_file(Path(FILE))
session = Session(
    packer="json", unpacker="json", key=address.session_key, signature_scheme=address.scheme
)
with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    socket.linger = 0
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
    socket.curve_serverkey = address.server_key
    socket.connect(address.url)
    frames = session.serialize(session.msg("connection_request"))
    socket.send_multipart(frames)
    print("answered" if socket.poll(10_000) else "silent")
    socket.recv_multipart()
    socket.send_multipart(frames)
    print("answered" if socket.poll(3_000) else "dropped")
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.send_multipart([b"<IDS|MSG>", b"0" * 64, *[b"x" * (LARGE // 4)] * 4])
    print("cut off" if monitor.poll(10_000) else "taken")
    socket.disable_monitor()
if registered_engines(address) is None:
    sys.exit("the hub does not answer any more")
