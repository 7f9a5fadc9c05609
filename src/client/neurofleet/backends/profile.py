"""Engines of a controller that somebody else started: a fleet's, or ``ipcluster``'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurofleet.errors import EnginesUnreachable, first_line
from neurofleet.hub import read_client_connection
from neurofleet.manifest import Manifest

#: How long the controller has to answer [s].
HUB_TIMEOUT_S = 10


class ProfileEngines:
    """The engines of an IPython profile's running cluster.

    Parameters
    ----------
    profile : str or None
        The profile's name; ``None`` is the fleet's, else IPython's default profile.
    fleet : Manifest or None
        The fleet that this machine is the head of.
    """

    def __init__(self, profile: str | None, fleet: Manifest | None = None) -> None:
        self._profile = profile
        self._fleet = fleet if fleet and profile in (None, fleet.profile) else None
        self.name = f"profile {profile or 'default'}"
        if self._fleet:
            self.name = f"fleet {self._fleet.name}"
        self.connection_file = ""
        self.expected = 1

    def answers(self) -> bool:
        """Tell whether the profile's controller answers and has engines."""
        try:
            client = self.connect()
        except EnginesUnreachable:
            return False
        with client:
            return bool(client.ids)

    def connect(self) -> Any:
        """Return a client of the running controller."""
        import ipyparallel

        try:
            file = self._fleet.client_file if self._fleet else _connection_file(self._profile)
            self.connection_file = str(file)
            read_client_connection(file)
            return ipyparallel.Client(self.connection_file, timeout=HUB_TIMEOUT_S)
        except (OSError, TimeoutError, ValueError) as error:
            whose = f"the {self.name}" if self._fleet else f"the IPython {self.name}"
            raise EnginesUnreachable(
                f"no controller answers for {whose} ({first_line(error)})",
                remedy=self._remedy(error),
            ) from error

    def _remedy(self, error: BaseException) -> str:
        if self._fleet is None:
            return (
                "Start one (ipcluster start), name another with IPYTHON_PROFILE,"
                " or use --backend local"
            )
        if isinstance(error, PermissionError):
            return (
                "Have your account added to the fleet's group (fleet_members in the inventory)"
                " and log in again, or use --backend local"
            )
        return "See systemctl status ipcontroller on this machine, or use --backend local"

    def tend(self, _engines: int) -> bool:
        """Leave the engines to who started them."""
        return True

    def close(self) -> None:
        """Leave everything running."""


def _connection_file(profile: str | None) -> Path:
    """Return the path of the profile's client connection file, which must exist."""
    from IPython.core.profiledir import ProfileDir, ProfileDirError
    from IPython.paths import get_ipython_dir

    try:
        found = ProfileDir.find_profile_dir_by_name(get_ipython_dir(), profile or "default")
    except ProfileDirError as error:
        raise FileNotFoundError(str(error)) from error
    path = Path(found.security_dir) / "ipcontroller-client.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    return path
