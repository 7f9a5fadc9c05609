"""Connect to the hub with a connection file whose secret NAME is another: FILE NAME."""

import json
import os
import sys
import tempfile
from pathlib import Path

import ipyparallel
import zmq

with tempfile.TemporaryDirectory() as folder:
    wrong = Path(folder) / "ipcontroller-client.json"
    content = json.loads(Path(sys.argv[1]).read_text())
    # As good a key as the right one, which it is not.
    content[sys.argv[2]] = zmq.curve_keypair()[0].decode()
    with os.fdopen(os.open(wrong, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        json.dump(content, file)
    try:
        ipyparallel.Client(str(wrong), timeout=5)
    except TimeoutError as error:
        sys.exit(f"refused: {error}")
