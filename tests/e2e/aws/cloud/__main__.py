"""``python tests/e2e/aws/cloud``: AWS for the tests, until it is told to end.

Prints the endpoint when it is ready. Ends, with all its machines, when its stdin is closed, so
it does not outlive whoever started it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).with_name("images.json")
os.environ["MOTO_AMIS_PATH"] = str(IMAGES)
os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "true"
os.environ["MOTO_ENABLE_KEYPAIR_VALIDATION"] = "true"
os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"
sys.path.insert(0, str(Path(__file__).parent))
# The program that boots the machines of make fleet.
sys.path.append(str(Path(__file__).parents[4] / "roles/local_machines/files"))

from app import Cloud  # noqa: E402 - moto reads its settings when it is imported
from instances import Instances  # noqa: E402
from metadata import ADDRESS, Metadata  # noqa: E402
from moto.core import DEFAULT_ACCOUNT_ID  # noqa: E402
from moto.ec2.models import ec2_backends  # noqa: E402
from moto.ec2.models.instances import StateReason  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402


def main() -> None:
    """Serve until stdin is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--region", default="eu-central-1")
    parser.add_argument("--network", help="boot machines on a bridge with this network")
    parser.add_argument("--bridge", default="neurofleet2")
    arguments = parser.parse_args()
    instances: Instances | None = None
    if arguments.network:
        directory = Path(tempfile.mkdtemp(prefix="neurofleet-aws-")) / "machines"
        instances = Instances(directory, arguments.region, arguments.network, arguments.bridge)
    metadata = Metadata(instances.by_address if instances else lambda _address: None)

    def asked(path: str, data: dict[str, Any]) -> Any:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][arguments.region]
        if path == "notice":
            metadata.notices[data["id"]] = {"action": "terminate", "time": data["time"]}
            return {}
        if path == "trouble":
            return instances.trouble if instances else []
        if path == "take":  # a spot machine, as AWS does
            backend.terminate_instances([data["id"]])
            backend.get_instance(data["id"]).state_reason = StateReason(
                "Server.SpotInstanceTermination: taken back", "Server.SpotInstanceTermination"
            )
            return {}
        if path == "terminate":
            backend.terminate_instances([data["id"]])
            return {}
        if path == "console":
            return instances.console(data["id"]) if instances else ""
        if path == "asked":
            return metadata.asked_at
        raise LookupError(path)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    api = make_server("127.0.0.1", 0, Cloud(asked), threaded=True)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    try:
        if instances:
            instances.prepare()
            service = make_server(ADDRESS, 80, metadata, threaded=True)
            threading.Thread(target=service.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{api.server_port}", flush=True)
        sys.stdin.read()
    finally:
        if instances:
            instances.close()
            parent = directory.parent
            if parent.is_dir():
                parent.rmdir()


if __name__ == "__main__":
    main()
