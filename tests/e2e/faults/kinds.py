"""The faults: what each one does to the fleet or to the client, and how long it lasts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from e2e.booted import HEAD, WORKERS, Fleet
from e2e.faults import power
from e2e.faults.disturbed import DisturbedRun
from e2e.processes import awaited
from neurofleet.status import WORTH_A_LINE_S

#: systemd's name of the controller's main process.
MAIN = "$(systemctl show --property=MainPID --value ipcontroller)"
#: Children of the controller: heart monitor, schedulers, hub's helpers.
CHILDREN = 8


@dataclass(frozen=True)
class Scene:
    """Where a fault happens.

    Attributes
    ----------
    fleet : Fleet
    run : DisturbedRun
        Which computes.
    chance : random.Random
        Decides what the fault leaves open.
    """

    fleet: Fleet
    run: DisturbedRun
    chance: random.Random

    @property
    def worker(self) -> str:
        """One of the workers."""
        return self.chance.choice(WORKERS)


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes
    ----------
    name : str
    inject : callable
        Does it, waits for as long as it lasts, and undoes what a hand would undo.
    lasts_s : float
        So long no work can be expected of what it hits [s].
    weight : int
        How often it is drawn in a campaign; 0 is by name only.
    """

    name: str
    inject: Callable[[Scene], None]
    lasts_s: float = 0.0
    weight: int = 1


def _engine(signal: str, whom: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        command = f"systemctl kill --signal={signal} --kill-who={whom} ipengine@1.service"
        scene.fleet.done(scene.worker, command)

    return inject


def _a_worker(scene: Scene) -> str:
    return scene.worker


def _the_head(_scene: Scene) -> str:
    return HEAD


def _paused(unit: str, where: Callable[[Scene], str], seconds: float) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        host = where(scene)
        scene.fleet.done(host, f"systemctl kill --signal=STOP {unit}")
        time.sleep(seconds)  # the fault's own length
        scene.fleet.done(host, f"systemctl kill --signal=CONT {unit}")

    return inject


def _power(back_after_s: float) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        worker = scene.worker
        power.off(worker)
        time.sleep(back_after_s)  # the fault's own length
        power.on(worker)

    return inject


def _all_workers_off(scene: Scene) -> None:
    for worker in WORKERS:
        power.off(worker)

    def told() -> bool:
        since = scene.run.status().get("waiting_since")
        return bool(since) and time.time() - since > 1.2 * WORTH_A_LINE_S

    awaited(lambda: not scene.run.running() or told(), 90, "the run says that it waits")
    back = scene.worker
    power.on(back)
    scene.run.wait_until_computing(hosts=1)
    power.on(next(worker for worker in WORKERS if worker != back))


def _cut(seconds: float) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        worker = scene.worker
        power.cable(worker, plugged=False)
        try:
            time.sleep(seconds)  # the fault's own length
        finally:
            power.cable(worker, plugged=True)

    return inject


def _controller(scene: Scene) -> None:
    scene.fleet.done(HEAD, f"kill -9 {MAIN}")


def _controllers_child(scene: Scene) -> None:
    number = scene.chance.randint(1, CHILDREN)
    # It may have been started anew a moment ago, and has not all of them yet.
    killed = f"kill -9 $(pgrep --parent {MAIN} | sed -n {number}p)"
    awaited(lambda: scene.fleet.ssh(HEAD, killed).code == 0, 60, f"child {number} is killed")


def _head_rebooted(scene: Scene) -> None:
    before = scene.fleet.boot(HEAD)
    scene.fleet.ssh(HEAD, "systemctl reboot")
    scene.run.client.ended(60)
    awaited(lambda: scene.fleet.boot(HEAD) not in ("", before), 90, "the head boots again")
    awaited(
        lambda: scene.fleet.ssh(HEAD, "systemctl is-active ipcontroller", limit_s=20).code == 0,
        90, "the controller is up",
    )  # fmt: skip
    scene.run.begin()


def _client(signal: str) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        scene.run.signal(signal)
        scene.run.begin()

    return inject


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("engine SIGKILL", _engine("KILL", "main"), weight=6),
        Fault("engine and nanny SIGKILL", _engine("KILL", "all"), weight=5),
        Fault("engine SIGSTOP 25 s", _paused("ipengine@1", _a_worker, 25), 25, weight=0),
        Fault("engine SIGSTOP 60 s", _paused("ipengine@1", _a_worker, 60), 60),
        Fault("worker off and on", _power(2), 2, weight=4),
        Fault("worker off for 60 s", _power(60), 60),
        Fault("both workers off, one back, the other", _all_workers_off, 45),
        Fault("worker cut off for 20 s", _cut(20), 20, weight=2),
        Fault("worker cut off for 5 min", _cut(300), 300, weight=0),
        Fault("controller SIGKILL", _controller, weight=4),
        Fault("controller's child SIGKILL", _controllers_child, weight=4),
        Fault("controller SIGSTOP 20 s", _paused("ipcontroller", _the_head, 20), 20, weight=0),
        Fault("controller SIGSTOP 60 s", _paused("ipcontroller", _the_head, 60), 60),
        Fault("head rebooted", _head_rebooted, 20, weight=1),
        Fault("client SIGKILL", _client("KILL"), weight=6),
        Fault("client SIGINT", _client("INT"), weight=3),
        Fault("client SIGTERM", _client("TERM"), weight=3),
    )
}
