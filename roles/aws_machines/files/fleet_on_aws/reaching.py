"""Wait until new machines have booted, let us in, and have been set up by cloud-init."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from .errors import AwsError

AT_ONCE = 16
TRY_EVERY_S = 1.0
#: What cloud-init may have complained of besides is no concern; the end of the machine is.
READY = "cloud-init status --wait >/dev/null; systemctl is-active neurofleet-expiry.timer"


def wait(config: str, names: list[str], limit_s: float) -> None:
    """Wait for machines.

    Parameters
    ----------
    config : str
        The file with which ssh finds them.
    names : list of str
    limit_s : float
        For all of them together [s].

    Raises
    ------
    AwsError
        Some did not let us in; they are named, with ssh's reason.
    """
    until = time.monotonic() + limit_s
    with ThreadPoolExecutor(AT_ONCE) as pool:
        reasons = [*pool.map(lambda name: _wait_for(config, name, until), names)]
    failed = {name: why for name, why in zip(names, reasons, strict=True) if why}
    if failed:
        told = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise AwsError(
            f"not reached within {limit_s:g} s: {told}. See what the machine says with `aws ec2"
            " get-console-output`; one that is broken, end with `aws ec2 terminate-instances`."
            " Then run the same command again."
        )


def _wait_for(config: str, name: str, until: float) -> str:
    """Return why a machine cannot be reached, nothing if it can."""
    ssh = ["ssh", "-F", config, "-o", "BatchMode=yes", "-o", "ControlPath=none", name]
    why = "it did not answer"
    while time.monotonic() < until:
        left = max(1.0, until - time.monotonic())
        try:
            done = subprocess.run(
                [*ssh, READY],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=left,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "cloud-init does not end"
        if done.returncode == 0:
            return ""
        if done.returncode != 255:
            return "cloud-init gave it no end: see `cloud-init status --long` on it"
        why = _last(done.stderr)
        if "REMOTE HOST IDENTIFICATION" in done.stderr or "verification failed" in why:
            return "its host key is not the one that it was given"
        time.sleep(TRY_EVERY_S)
    return why


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].strip()
