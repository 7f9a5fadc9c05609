"""``neurofleet --head user@host ...``: a command that runs on the head as if it were here.

It goes through the person's own ssh, with its configuration, agent and known hosts. The
command there ends when this one does, however that ends, and loses nothing by it: asked to stop
it stops as Ctrl-C stops it, and when the connection is lost it goes on to a safe point.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from neurofleet.errors import EnginesUnreachable, UsageError

#: What a person should type.
FORM = "neurofleet --head USER@HOST"
#: Programs that may be named as the command; anything else is a command of the first one.
PROGRAMS = ("neurofleet", "opt_l5pc")
#: Where a command that reads no terminal ends: when its standard input says so. When that ends
#: without a word, the connection is lost, and nobody waits for the command.
UNTIL_TOLD = (
    "exec 3<&0; {command} </dev/null & p=$!;"
    " (if read -r _ <&3; then kill -TERM $p; else kill -HUP $p; fi) 2>/dev/null & w=$!;"
    " wait $p; code=$?; kill $w 2>/dev/null; exit $code"
)
#: What ssh itself, and a shell that does not find a program, exit with.
SSH_FAILED, NOT_FOUND = 255, 127


def split(words: Sequence[str], commands: Collection[str] = ()) -> tuple[str, list[str]]:
    """Return the head and what is to run there.

    Parameters
    ----------
    words : sequence of str
        ``--head``, or ``--head=`` with its value, and what follows.
    commands : collection of str
        What is no host, but a command before which the host was forgotten.

    Raises
    ------
    UsageError
        No host is named, or more than one.
    """
    if words[0] == "--head":
        head, command = "".join(words[1:2]), list(words[2:])
    else:
        head, command = words[0].partition("=")[2], list(words[1:])
    host = head.partition(":")[0]
    if not host.strip() or host.startswith("-") or host in commands:
        called = f" but {head!r}" if head else ""
        raise UsageError(f"--head names no host{called}", remedy=f"{FORM} COMMAND")
    before = command[: command.index("--")] if "--" in command else command
    if any(word == "--head" or word.startswith("--head=") for word in before):
        raise UsageError(
            "--head is given twice", remedy=f"It comes first, and once: {FORM} COMMAND"
        )
    return head, command


def remote_command(program: str, words: list[str]) -> str:
    """Return what the head's shell is to run."""
    if words[:1] and words[0] in PROGRAMS:
        program = str(PurePosixPath(program).with_name(words[0]))
        words = words[1:]
    return shlex.join([program, *words])


def run_on_head(head: str, words: list[str]) -> int:
    """Run a command on the head; return its exit code.

    Parameters
    ----------
    head : str
        ``user@host`` or a name in the ssh configuration; ``:PATH`` behind it says where the
        program is there. ``NEUROFLEET_SSH`` is the ssh command, if it is another.
    words : list of str
        The command.

    Raises
    ------
    EnginesUnreachable
        ssh does not get there.
    UsageError
        The program is not there.
    """
    host, _, program = head.partition(":")
    program = program or PROGRAMS[0]
    command = remote_command(program, words)
    try:
        ssh = shlex.split(os.environ.get("NEUROFLEET_SSH") or "ssh")
    except ValueError as error:
        raise UsageError(
            f"NEUROFLEET_SSH is not a command ({error})", remedy="Close its quotes, or unset it"
        ) from error
    try:
        if all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
            # The terminal is the command's own, Ctrl-C included.
            code = subprocess.call([*ssh, "-t", host, command])
        else:
            waiting = f"sh -c {shlex.quote(UNTIL_TOLD.format(command=command))}"
            code = _until_stopped([*ssh, "-T", host, waiting])
    except FileNotFoundError as error:
        raise UsageError(f"there is no {ssh[0]} here", remedy="Install OpenSSH") from error
    if code == SSH_FAILED:
        raise EnginesUnreachable(
            f"ssh did not reach {host}, or lost it",
            remedy=f"See that 'ssh {host} true' works. What had begun there goes on to a safe point"
            " and is kept; run the same command again to go on",
        )
    if code == NOT_FOUND:
        raise UsageError(
            f"there is no program {program!r} on {host}",
            remedy=f"Say where it is: --head {host}:neurofleet/bin/neurofleet",
        )
    return code


def _until_stopped(words: list[str]) -> int:
    """Run ssh; when this process is asked to stop, have the command there stop first."""
    # What ssh inherits as ignored stays so: Ctrl-C is for this process.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdin is not None
    while True:
        try:
            code = process.wait()
            process.stdin.close()
            return code
        except KeyboardInterrupt:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"stop\n")
                process.stdin.flush()  # the command there notices, stops, and says how
