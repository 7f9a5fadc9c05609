"""``ipcontroller`` that encrypts and signs: ipyparallel leaves out the one for the other.

    python -m neurofleet.backends.signed_controller [OPTIONS OF ipcontroller]

With CURVE alone, who has seen the server's public key may connect; the signing key, in the
same file, keeps out whoever has only seen that.
"""

from __future__ import annotations

import secrets

from ipyparallel.controller.app import IPController


class SignedController(IPController):  # type: ignore[misc]
    """The controller, with a key of its own for signing messages."""

    name = "ipcontroller"

    def load_secondary_config(self) -> None:
        """Give messages a key, after CURVE has taken it away."""
        super().load_secondary_config()
        self.config.Session.key = secrets.token_hex(32).encode()


if __name__ == "__main__":
    SignedController.launch_instance()
