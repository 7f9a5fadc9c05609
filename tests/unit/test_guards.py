"""The guard of a machine: wishes, notices, idleness, results; without systemd."""

from __future__ import annotations

import errno
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurofleet import guards
from neurofleet.errors import FleetError, TooFewEngines, UsageError, WorkloadFailed
from neurofleet.guards import expiry, extending, idle, service
from neurofleet.guards.spot import Metadata
from neurofleet.status import Status
from unit.support import no_room


def settings(tmp_path: Path, **changes: Any) -> guards.Settings:
    content = {
        "schema_version": 1,
        "on_head": False,
        "idle_s": 0,
        "ttl_s": 0,
        "connection_file": "/none",
        "metadata_url": "",
        "timer": "neurofleet-expiry.timer",
        "most_h": 10,
        "wishes": str(tmp_path),
        "results_below": [str(tmp_path)],
        **changes,
    }
    file = tmp_path / "guards.json"
    file.write_text(json.dumps(content))
    found = guards.read(file)
    assert found is not None
    return found


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ends that the timer was given."""
    given: list[float] = []
    monkeypatch.setattr(expiry, "put_off", lambda _timer, until: given.append(until))
    return given


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What systemctl was told."""
    told: list[tuple[str, ...]] = []

    def systemctl(*words: str, may_fail: bool = False) -> str:
        told.append(words)
        return ""

    monkeypatch.setattr(service, "systemctl", systemctl)
    monkeypatch.setattr(expiry, "ends_at", lambda _timer: float("inf"))
    return told


# -- settings and wishes -----------------------------------------------------------------


def test_settings_that_are_damaged_are_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "guards.json"
    assert guards.read(file) is None
    for text in ("", "[]", "{}", '{"schema_version": 2}'):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"cannot be used: .* site\.yml --tags guards"):
            guards.read(file)


def test_wish_is_taken_once_and_bounded(tmp_path: Path, ends: list[float]) -> None:
    mine = settings(tmp_path)
    assert expiry.take_wish(mine, now=1000.0) == ""
    (tmp_path / expiry.WISH).write_text('{"until": 5000}')
    assert "1970-01-01 01:23:20 UTC" in expiry.take_wish(mine, now=1000.0)
    assert expiry.take_wish(mine, now=1000.0) == ""
    (tmp_path / expiry.WISH).write_text('{"until": 1e18}')
    expiry.take_wish(mine, now=1000.0)
    assert ends == [5000.0, 1000.0 + 10 * 3600]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"until": "x"}', '{"until": NaN}', '{"until": 1}', "\0" * 2000]
)
def test_wish_that_is_none_changes_nothing(tmp_path: Path, ends: list[float], text: str) -> None:
    (tmp_path / expiry.WISH).write_text(text)
    assert "not done" in expiry.take_wish(settings(tmp_path), now=1000.0)
    assert not (tmp_path / expiry.WISH).exists()
    assert ends == []


def test_wish_that_is_a_link_or_a_pipe_is_not_followed(tmp_path: Path, ends: list[float]) -> None:
    mine = settings(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('{"until": 5000}')
    (tmp_path / expiry.WISH).symlink_to(elsewhere)
    assert "could not be read" in expiry.take_wish(mine, now=1000.0)
    os.mkfifo(tmp_path / expiry.WISH)
    assert "not done" in expiry.take_wish(mine, now=1000.0)
    assert not (tmp_path / expiry.WISH).exists()
    assert elsewhere.exists()
    assert ends == []


def test_asking_waits_until_the_guard_has_seen_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[float]
) -> None:
    mine = settings(tmp_path)
    monkeypatch.setenv("NEUROFLEET_GUARDS", str(tmp_path / "guards.json"))
    monkeypatch.setattr(expiry, "ends_at", lambda _timer: ends[-1])

    def take() -> None:
        while not ends:
            expiry.take_wish(mine, time.time())

    guard = threading.Thread(target=take)
    guard.start()
    until = time.time() + 3600
    assert expiry.ask_for(until, limit_s=10) == until
    guard.join()
    with pytest.raises(Exception, match="did not take the wish within"):
        expiry.ask_for(until, limit_s=0.1)


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.EACCES, UsageError, "fleet_members"),
        (errno.ENOENT, UsageError, "site.yml --tags guards"),
        (errno.ENOSPC, WorkloadFailed, "Make room on that machine"),
        (errno.EROFS, WorkloadFailed, "Make room on that machine"),
    ],
)
def test_asking_that_cannot_be_written_names_who_can_mend_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[FleetError],
    remedy: str,
) -> None:
    settings(tmp_path)
    monkeypatch.setenv("NEUROFLEET_GUARDS", str(tmp_path / "guards.json"))

    def write_whole(path: Path, _content: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(expiry, "write_whole", write_whole)
    with pytest.raises(kind) as caught:
        expiry.ask_for(time.time() + 3600)
    assert remedy in str(caught.value)
    assert ("fleet_members" in str(caught.value)) == (number == errno.EACCES)


def test_full_disk_ends_neither_the_guard_nor_a_wish_and_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(expiry, "systemctl", lambda *words: told.append(words))
    monkeypatch.setattr(expiry, "ends_at", lambda _timer: float("inf"))
    monkeypatch.setattr(expiry, "DROP_IN", tmp_path / "system")
    (tmp_path / "system").mkdir()
    until = time.time() + 3600
    (tmp_path / expiry.WISH).write_text(json.dumps({"until": until}))
    guard = service.Guard(settings(tmp_path))
    with no_room():
        for _ in range(3):
            guard.step()
    assert caplog.text.count("the end of this machine cannot be put off") == 1
    assert "Make room on this machine" in caplog.text
    assert told == []
    guard.step()
    assert told == [("daemon-reload",), ("restart", "neurofleet-expiry.timer")]
    assert not (tmp_path / expiry.WISH).exists()
    assert "as was asked for" in caplog.text
    drop_in = tmp_path / "system" / "neurofleet-expiry.timer.d" / "until.conf"
    assert expiry.shown(until) in drop_in.read_text()


def test_systemctl_that_cannot_be_run_or_answers_nothing_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkloadFailed, match=r"systemctl show failed .*No such file"):
        expiry.systemctl("show")
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(expiry, "SYSTEMCTL_S", 0.2)
    with pytest.raises(WorkloadFailed, match="timed out"):
        expiry.systemctl("show")
    program.write_text("#!/bin/sh\necho '{ OnCalendar=daily ; next_elapse=n/a }'\n")
    with pytest.raises(WorkloadFailed, match="'daily', which somebody has set by hand"):
        expiry.ends_at("neurofleet-expiry.timer")


def test_machines_whose_guard_has_no_room_say_so_and_not_that_they_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask_for(_until: float) -> float:
        raise WorkloadFailed("'wish.json' cannot be written (No space left)", remedy="Make room")

    monkeypatch.setattr(extending, "ask_for", ask_for)
    _, moment, why = extending.leave_wish(1e9)
    ends = {
        "head": extending.End(1e9),
        "w1": extending.End(moment, why),
        "w2": extending.SILENT,
        "w3": extending.SILENT,
    }
    with pytest.raises(TooFewEngines) as caught:
        extending.require_all(ends)
    assert caught.value.what == (
        "w1: 'wish.json' cannot be written (No space left); w2, w3: did not answer within 60 s"
    )


# -- notices -----------------------------------------------------------------------------


class Service(http.server.BaseHTTPRequestHandler):
    """As EC2's metadata service, version 2."""

    notice = ""
    token = "first"

    def do_PUT(self) -> None:
        self._answer(
            200, self.token if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else ""
        )

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != self.token:
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.notice:
            self._answer(200, self.notice)
        else:
            self._answer(404, "")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Service, "notice", "")
    monkeypatch.setattr(Service, "token", "first")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_notice_is_seen_when_it_comes_and_after_a_token_has_ended(
    metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Metadata(metadata)
    assert asked.taken_at() is None
    notice = {"action": "terminate", "time": "2026-11-21T12:00:00Z"}
    monkeypatch.setattr(Service, "notice", json.dumps(notice))
    assert asked.taken_at() == 1795262400.0
    monkeypatch.setattr(Service, "token", "second")
    assert asked.taken_at() is None
    assert asked.taken_at() == 1795262400.0
    monkeypatch.setattr(Service, "notice", "what is this")
    assert asked.taken_at() == pytest.approx(time.time(), abs=60)


def test_metadata_service_that_does_not_answer_says_nothing() -> None:
    assert Metadata("http://127.0.0.1:9").taken_at() is None


def test_metadata_service_that_answers_no_http_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\xff\xfe nothing that is HTTP\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert Metadata(f"http://127.0.0.1:{listening.getsockname()[1]}").taken_at() is None
        thread.join()


def test_engines_that_cannot_be_stopped_are_told_so_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, ...]] = []

    def systemctl(*words: str, may_fail: bool = False) -> str:
        told.append(words)
        if len(told) < 3:
            raise WorkloadFailed("systemctl stop failed (timed out)", remedy="See the journal")
        return ""

    monkeypatch.setattr(service, "systemctl", systemctl)
    monkeypatch.setattr(service, "SPOT_EVERY_S", 0.0)
    monkeypatch.setattr(Metadata, "taken_at", lambda _self: time.time() + 120)
    guard = service.Guard(settings(tmp_path, metadata_url="http://127.0.0.1:9"))
    for _ in range(5):
        guard.step()
    assert told == [("stop", "--no-block", "ipengines.target")] * 3
    assert caplog.text.count("systemctl stop failed") == 1
    assert caplog.text.count("take no more") == 1


def test_notice_stops_the_engines_and_kills_what_is_too_slow(
    tmp_path: Path, metadata: str, monkeypatch: pytest.MonkeyPatch, said: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(service, "SPOT_EVERY_S", 0.0)
    guard = service.Guard(settings(tmp_path, metadata_url=metadata))
    guard.step()
    assert said == []
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
    monkeypatch.setattr(Service, "notice", json.dumps({"action": "terminate", "time": soon}))
    for _ in range(3):
        guard.step()
    assert said == [("stop", "--no-block", "ipengines.target")]
    monkeypatch.setattr(service, "RESERVE_S", 200.0)
    guard.step()
    assert said[-1] == ("kill", "--signal=KILL", "ipengine@*.service")


# -- idleness ----------------------------------------------------------------------------


def test_worker_is_busy_with_a_task_or_with_one_that_has_ended_meanwhile() -> None:
    queues: dict[int, tuple[int, int]] | None = {3: (0, 7), 4: (1, 0)}
    watch = idle.Idleness(lambda: queues, lambda: {3}, now=0.0)
    assert watch.seconds(10.0) == 10.0  # the other engine is somebody else's
    queues = {3: (1, 7)}
    assert watch.seconds(20.0) == 0.0
    queues = {3: (0, 8)}
    assert watch.seconds(30.0) == 0.0
    assert watch.seconds(40.0) == 10.0
    queues = {}  # the engine has left
    assert watch.seconds(100.0) == 70.0
    queues = {3: (0, 9)}  # seen anew
    assert watch.seconds(110.0) == 80.0


@pytest.mark.parametrize("mine", [None, {3}], ids=["head", "worker"])
def test_hub_that_cannot_be_asked_is_not_taken_for_one_without_tasks(mine: set[int] | None) -> None:
    queues: dict[int, tuple[int, int]] | None = {}
    watch = idle.Idleness(lambda: queues, (lambda: mine) if mine else None, now=0.0)
    assert watch.seconds(10.0) == 10.0
    queues = None
    assert watch.seconds(500.0) == 0.0
    queues = {}
    assert watch.seconds(510.0) == 10.0


def test_task_that_ended_while_the_hub_was_away_counts_as_work() -> None:
    queues: dict[int, tuple[int, int]] | None = {3: (0, 7)}
    watch = idle.Idleness(lambda: queues, lambda: {3}, now=0.0)
    assert watch.seconds(10.0) == 10.0
    queues = None
    assert watch.seconds(20.0) == 0.0
    queues = {3: (0, 8)}
    assert watch.seconds(30.0) == 0.0


def test_head_is_needed_while_an_engine_is_registered() -> None:
    queues = {3: (0, 0)}
    watch = idle.Idleness(lambda: queues, None, now=0.0)
    assert watch.seconds(50.0) == 0.0
    queues = {}
    assert watch.seconds(60.0) == 10.0


def test_engines_here_are_those_that_left_a_note(tmp_path: Path) -> None:
    for number, text in enumerate(['{"engine": 5}', "", '{"engine": null}']):
        folder = tmp_path / f"ipengine-{number}"
        folder.mkdir()
        (folder / "neurofleet-engine-abc.json").write_text(text)
    assert idle.engines_here(tmp_path) == {5}


@pytest.mark.parametrize("marker", ["neurofleet-run.json", "items.sqlite"])
def test_run_counts_as_fetched_until_something_in_it_changes(tmp_path: Path, marker: str) -> None:
    run = tmp_path / "user" / "neurofleet-runs" / "one"
    run.mkdir(parents=True)
    (tmp_path / "user" / ".hidden" / "two").mkdir(parents=True)
    (tmp_path / "user" / ".hidden" / "two" / "neurofleet-run.json").touch()
    (run / marker).touch()
    assert [*idle.not_fetched([tmp_path])] == [run]
    (run / idle.FETCHED).touch()
    os.utime(run / marker, (0, 0))
    assert [*idle.not_fetched([tmp_path])] == []
    (run / "report.html").touch()
    later = time.time() + 10
    os.utime(run / "report.html", (later, later))
    assert [*idle.not_fetched([tmp_path])] == [run]


def test_run_with_a_link_to_nowhere_is_fetched_all_the_same(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "neurofleet-run.json").touch()
    (run / "profile").symlink_to(tmp_path / "gone")
    (run / idle.FETCHED).touch()
    later = time.time() + 10
    os.utime(run / idle.FETCHED, (later, later))
    assert [*idle.not_fetched([tmp_path])] == []


def test_directory_that_cannot_be_looked_into_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("user"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    named: list[tuple[Path, str]] = []
    looked = [tmp_path, tmp_path / "none"]
    found = idle.run_directories(looked, lambda folder, why: named.append((folder, why)))
    assert [*found] == []
    assert named == [(tmp_path / "user", "Permission denied")]


def step_of_everything(guard: service.Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_next", {"spot": 0.0, "idle": 0.0, "end": 0.0})
    guard.step()


def test_idle_head_tells_people_and_then_powers_off_unless_results_are_copied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[tuple[str, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    queues: dict[int, tuple[int, int]] | None = None
    copied = True
    monkeypatch.setattr(idle, "asker", lambda _file: lambda: queues)
    monkeypatch.setattr(idle, "results_are_copied", lambda: copied)
    guard = service.Guard(settings(tmp_path, on_head=True, idle_s=1.0))
    time.sleep(1.1)
    step_of_everything(guard, monkeypatch)
    assert "cannot be asked for tasks" in caplog.text
    queues = {}
    time.sleep(1.1)
    step_of_everything(guard, monkeypatch)
    assert said == []
    assert "No worker is left" not in caplog.text
    copied = False
    time.sleep(0.1)
    step_of_everything(guard, monkeypatch)
    assert said == []
    assert "No worker is left: this machine stops in" in caplog.text
    time.sleep(1.1)
    step_of_everything(guard, monkeypatch)
    assert said == [("poweroff",)]


def test_head_tells_people_of_its_end_once_and_asks_their_runs_to_stop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[tuple[str, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    end = time.time() + 1700
    monkeypatch.setattr(expiry, "ends_at", lambda _timer: end)
    guard = service.Guard(settings(tmp_path, on_head=True))
    run = tmp_path / "home" / "run"
    run.mkdir(parents=True)
    (run / "neurofleet-run.json").touch()
    with Status(run, "a run") as running:
        running.tell(state="running")
        told: list[tuple[int, int]] = []
        # Signal 0 asks whether there is such a process.
        monkeypatch.setattr(os, "kill", lambda pid, sent: told.append((pid, sent)) if sent else 0)
        for _ in range(2):
            step_of_everything(guard, monkeypatch)
        assert caplog.text.count("This machine stops at") == 1
        end = time.time() + 200
        step_of_everything(guard, monkeypatch)
        assert caplog.text.count("This machine stops at") == 2
        assert told == []
        end -= 100
        for _ in range(2):
            step_of_everything(guard, monkeypatch)
        assert told == [(os.getpid(), signal.SIGTERM)]
        assert f"{run} was asked to stop at a safe point" in caplog.text
    # One that has ended is not told.
    end -= 1
    step_of_everything(guard, monkeypatch)
    assert len(told) == 1
    assert said == []


def test_machine_that_is_started_after_its_end_has_as_long_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[tuple[str, ...]], ends: list[float]
) -> None:
    end = expiry.started_at() - 60
    monkeypatch.setattr(expiry, "ends_at", lambda _timer: end)
    guard = service.Guard(settings(tmp_path, ttl_s=7200))
    step_of_everything(guard, monkeypatch)
    assert ends == [pytest.approx(time.time() + 7200, abs=30)]
    # One that ends in this moment does not begin anew.
    end = time.time() - 1
    step_of_everything(guard, monkeypatch)
    assert len(ends) == 1
    assert said == []


def test_machine_was_started_in_the_past() -> None:
    assert 0 < expiry.started_at() < time.time()


def test_run_is_listed_with_its_owner_its_size_and_a_mark_that_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "files" / "1").mkdir(parents=True)
    (run / "neurofleet-run.json").touch()
    (run / "files" / "1" / "made").write_bytes(b"x" * 1000)

    def listed() -> dict[str, Any]:
        words = [sys.executable, "-m", "neurofleet.guards.idle", str(tmp_path)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        (found,) = json.loads(said)
        return dict(found)

    first = listed()
    assert (first["path"], first["uid"], first["gid"]) == (str(run), os.getuid(), os.getgid())
    assert first["bytes"] >= 1000
    (run / idle.FETCHING).write_text(first["mark"] + "\n")
    assert listed()["mark"] == first["mark"]
    (run / idle.FETCHING).rename(run / idle.FETCHED)
    later = time.time() + 10
    os.utime(run / "files" / "1" / "made", (later, later))  # deep below
    assert listed()["mark"] == first["mark"]
    (run / idle.FETCHED).write_text("../../no mark of ours")
    os.utime(run / idle.FETCHED, (0, 0))
    assert re.fullmatch("[0-9a-f]{32}", listed()["mark"])
