"""The metadata service of the machines: what EC2 serves at 169.254.169.254.

Tokens are required, as launch templates of the fleet say, with one exception: cloud-init takes
a booted container for no machine of AWS, and asks without one. On AWS it asks with one.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Any

ADDRESS = "169.254.169.254"
#: What cloud-init calls itself, and the library through which it asks for the rest.
CLOUD_INIT = ("Cloud-Init/", "python-requests/")
#: Versions of the service that somebody may ask for, besides ``latest``.
VERSIONS = ("2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23")


class Metadata:
    """A WSGI application.

    Parameters
    ----------
    find : callable
        Returns moto's instance with an address, ``None`` if there is none.
    """

    def __init__(self, find: Callable[[str], Any]) -> None:
        self._find = find
        self._tokens: dict[str, str] = {}
        self._lock = threading.Lock()
        self.notices: dict[str, dict[str, str]] = {}
        self.asked_at: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        address = environ["REMOTE_ADDR"]
        instance = self._find(address)
        parts = [part for part in environ["PATH_INFO"].split("/") if part]
        if instance is None:
            return _answer(start, 404, "no such machine")
        if environ["REQUEST_METHOD"] == "PUT" and parts[-2:] == ["api", "token"]:
            if not environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"):
                return _answer(start, 400, "")
            token = secrets.token_urlsafe(32)
            with self._lock:
                self._tokens[token] = address
            return _answer(start, 200, token)
        token = environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN", "")
        by_cloud_init = environ.get("HTTP_USER_AGENT", "").startswith(CLOUD_INIT)
        if self._tokens.get(token) != address and not by_cloud_init:
            return _answer(start, 401, "")
        if not parts:
            return _answer(start, 200, "\n".join([*VERSIONS, "latest"]))
        if parts[0] not in (*VERSIONS, "latest"):
            return _answer(start, 404, "")
        return self._content(instance, parts[1:], start)

    def _content(
        self, instance: Any, parts: list[str], start: Callable[..., Any]
    ) -> Iterable[bytes]:
        if parts == ["user-data"]:
            data = instance.user_data
            return _answer(start, 200 if data else 404, base64.b64decode(str(data or "")).decode())
        if parts[:1] == ["dynamic"]:
            document = {"instanceId": instance.id, "region": instance.region_name}
            return _answer(start, 200, json.dumps(document))
        if parts[:1] != ["meta-data"]:
            return _answer(start, 404, "")
        if parts[1:2] == ["spot"]:
            with self._lock:
                self.asked_at[instance.id] = self.asked_at.get(instance.id, 0) + 1
        if parts[1:] == ["public-keys"]:
            return _answer(start, 200, f"0={instance.key_name}")
        found: Any = self._tree(instance)
        for part in parts[1:]:
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            return _answer(start, 404, "")
        if isinstance(found, dict):
            found = "\n".join(f"{k}/" if isinstance(v, dict) else k for k, v in found.items())
        return _answer(start, 200, found)

    def _tree(self, instance: Any) -> dict[str, Any]:
        key = instance.ec2_backend.describe_key_pairs([instance.key_name])[0]
        tree: dict[str, Any] = {
            "ami-id": instance.image_id,
            "instance-id": instance.id,
            "instance-type": instance.instance_type,
            "local-ipv4": instance.private_ip,
            "local-hostname": f"ip-{instance.private_ip.replace('.', '-')}",
            "placement": {"availability-zone": instance.placement.zone},
            "public-keys": {"0": {"openssh-key": key.public_key.strip()}},
        }
        if instance.public_ip:
            tree["public-ipv4"] = instance.public_ip
        if instance.id in self.notices:
            tree["spot"] = {"instance-action": json.dumps(self.notices[instance.id])}
        return tree


def _answer(start: Callable[..., Any], status: int, text: str) -> Iterable[bytes]:
    start(f"{status} said", [("Content-Type", "text/plain")])
    return [text.encode()]
