"""What AWS tells a spot machine that it will take back: about two minutes before it does.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from datetime import UTC, datetime

from neurofleet.files import as_object, json_value, words

#: How long the metadata service may take [s].
ANSWER_S = 2.0
#: How long a token is good for [s]; a new one is taken when it has ended.
TOKEN_S = 3600

# The metadata service is beside the machine: a proxy knows nothing of it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Metadata:
    """The metadata service of EC2, asked with a token (IMDSv2)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""

    def taken_at(self) -> float | None:
        """Return when this machine will be taken, in seconds since 1970 [s].

        Returns
        -------
        float or None
            ``None`` when AWS has said nothing, or does not answer.
        """
        try:
            return _moment(self._get("/latest/meta-data/spot/instance-action"))
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token has ended: another one, next time
                self._token = ""
            return None
        except (OSError, http.client.HTTPException):
            return None

    def _get(self, path: str) -> str:
        if not self._token:
            seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
            self._token = self._ask("/latest/api/token", "PUT", seconds)
        return self._ask(path, "GET", {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self._url + path, method=method, headers=headers)
        with _opener.open(request, timeout=ANSWER_S) as answer:
            return str(answer.read(10_000).decode(errors="replace"))


def _moment(text: str) -> float | None:
    """Return the time in a notice; one that cannot be read means now."""
    try:
        notice = as_object(json_value(text))
        if notice.get("action") == "none":
            return None
        time = datetime.strptime(words(notice, "time"), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return datetime.now(UTC).timestamp()
    return time.replace(tzinfo=UTC).timestamp()
