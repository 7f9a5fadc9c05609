"""AWS for the tests: moto's server, with what moto leaves out.

* Every call of the playbooks is written down; the policy in docs/aws.md is compared with it.
* Calls can be made to fail as AWS fails them, or be held while whoever made them is killed.
* A launch template's settings reach the machine, as on AWS; moto drops most of them.
* There is a price list, in the price list's own format; moto has none.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

import botocore.session
from botocore.serialize import create_serializer
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

Environ = dict[str, Any]
Start = Callable[..., Any]

#: Price per unit [USD], by one attribute of the product.
PRICES = {
    "t3.small": 0.0208,
    "c7i.large": 0.0892,
    "c7i.xlarge": 0.1785,
    "gp3": 0.0952,
    "VPCPublicIPv4Address": 0.005,
}
#: What moto says of spot prices is as old as it is low; this is what the tests reckon with.
SPOT_USD = 0.00001
CALLER = "192.0.2.10"


@dataclass
class Fault:
    """A call that fails, or is held.

    Attributes
    ----------
    action : str
        Such as ``RunInstances``.
    code, message : str
        What AWS says; without a code the call is carried out.
    where : dict
        Parts of the call that must end so.
    fleet : str
        Name of the fleet that the call is for; empty for any.
    times : int
        How often; -1 is for ever.
    hold : bool
        The answer of the call, which is carried out, is kept back until it is released.
    status : int
        Of HTTP.
    """

    action: str
    code: str = ""
    message: str = "as the test wants it"
    where: dict[str, str] = field(default_factory=dict)
    fleet: str = ""
    times: int = 1
    hold: bool = False
    status: int = 400


class Cloud:
    """A WSGI application.

    Parameters
    ----------
    extra : callable
        Answers the paths below ``/_cloud/`` that this does not know.
    """

    def __init__(self, extra: Callable[[str, dict[str, Any]], Any]) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._extra = extra
        self._lock = threading.Lock()
        self.calls: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.held: list[str] = []
        self._release = threading.Event()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if path == "/_cloud/address":
            return _plain(start, CALLER)
        if path.startswith("/_cloud/"):
            answer = self._asked(path.removeprefix("/_cloud/"), json.loads(body or "{}"))
            return _plain(start, json.dumps(answer))
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if target.startswith("AWSPriceListService."):
            return self._prices(target.partition(".")[2], json.loads(body), start)
        form = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = form.get("Action", "")
        service = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split("/")
        if "by-hand" not in environ.get("HTTP_USER_AGENT", ""):
            self._note(f"{service[3] if len(service) > 3 else 'unknown'}:{action}")
        fault = self._fault(action, form)
        if fault and fault.code:
            return _error(start, fault)
        if action == "RunInstances":
            body = urlencode(_with_template(form, service[2])).encode()
            environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input"] = BytesIO(body)
        answer = [*self._moto(environ, start)]
        if fault and fault.hold:
            with self._lock:
                self.held.append(f"{fault.fleet}:{action}")
            self._release.wait(150)
        return answer

    def _asked(self, path: str, data: dict[str, Any]) -> Any:
        if path == "calls":
            return self.calls
        if path == "held":
            return self.held
        if path == "faults":
            with self._lock:
                self.faults = [Fault(**entry) for entry in data["faults"]]
                self.held.clear()
            self._release.set()
            self._release = threading.Event()
            return [asdict(fault) for fault in self.faults]
        return self._extra(path, data)

    def _note(self, call: str) -> None:
        with self._lock:
            self.calls[call] = self.calls.get(call, 0) + 1

    def _fault(self, action: str, form: dict[str, str]) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                fits = all(form.get(key, "").endswith(text) for key, text in fault.where.items())
                fits = fits and (not fault.fleet or _is_for(fault.fleet, form))
                if fault.action in (action, "*") and fault.times and fits:
                    fault.times -= 1
                    return fault
        return None

    def _prices(self, operation: str, asked: dict[str, Any], start: Start) -> Iterable[bytes]:
        self._note(f"pricing:{operation}")
        fault = self._fault(operation, {})
        if fault:
            start(f"{fault.status} failed", [("Content-Type", "application/x-amz-json-1.1")])
            return [json.dumps({"__type": fault.code, "message": fault.message}).encode()]
        filters = {entry["Field"]: entry["Value"] for entry in asked["Filters"]}
        key = next(filters[f] for f in ("instanceType", "volumeApiName", "group") if f in filters)
        found = [_product(key, filters["regionCode"], PRICES[key])] if key in PRICES else []
        start("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
        return [json.dumps({"FormatVersion": "aws_v1", "PriceList": found}).encode()]


def _product(key: str, region: str, price: float) -> str:
    """Return an entry as the price list has it: JSON in JSON."""
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{price:.10f}"}}
    free = {"unit": "Hrs", "pricePerUnit": {"USD": "0.0000000000"}}
    usage = "EUC1-PublicIPv4:InUseAddress" if key.startswith("VPC") else f"EUC1-BoxUsage:{key}"
    return json.dumps(
        {
            "product": {"attributes": {"regionCode": region, "usagetype": usage}},
            "terms": {
                "OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension, "A.B.D": free}}}
            },
        }
    )


_MODEL = botocore.session.get_session().get_service_model("ec2")
_SERIALIZER = create_serializer("ec2", include_validation=False)


def _with_template(form: dict[str, str], region: str) -> dict[str, str]:
    """Return the call with its launch template's settings where it has none of its own."""
    name = form.get("LaunchTemplate.LaunchTemplateName")
    if not name:
        return form
    backend = ec2_backends[DEFAULT_ACCOUNT_ID][region]
    template = backend.describe_launch_templates(template_names=[name])[0]
    data = json.loads(json.dumps(template.latest_version().data))
    settings = _SERIALIZER.serialize_to_request(
        _typed(data), _MODEL.operation_model("RunInstances")
    )
    return {**settings["body"], **form}


def _typed(value: Any) -> Any:
    """Return moto's copy of a template with numbers and truths as such."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if value in ("true", "false"):
        return value == "true"
    return value


def _is_for(fleet: str, form: dict[str, str]) -> bool:
    """Tell whether a call has to do with a fleet: its name is in some value."""
    return any(value == fleet or value.startswith(f"{fleet}-") for value in form.values())


def _plain(start: Start, text: str) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]


def _error(start: Start, fault: Fault) -> Iterable[bytes]:
    start(f"{fault.status} failed", [("Content-Type", "text/xml")])
    said = f"<Code>{escape(fault.code)}</Code><Message>{escape(fault.message)}</Message>"
    errors = f"<Errors><Error>{said}</Error></Errors><RequestID>0</RequestID>"
    return [f"<?xml version='1.0'?><Response>{errors}</Response>".encode()]
