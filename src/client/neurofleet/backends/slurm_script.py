"""The batch script that runs a command inside one allocation, and goes on by itself."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurofleet.backends.slurm import SlurmRequest
from neurofleet.errors import UsageError

#: The client ends this long before the limit, whatever engines are doing [s].
LAST_S = 20
#: The least time between the signal and the limit that is of use [s].
LEAST_STOP_BEFORE_S = 30
#: Programs that take ``--backend``.
OURS = ("neurofleet", "opt_l5pc")

TEMPLATE = """\
#!/bin/bash
# Runs a command on engines of this job, and goes on by itself: some time before the limit it
# finishes what engines have begun, is queued again, and continues where it stopped.
#SBATCH --job-name={name}
#SBATCH --ntasks={engines}
{options}#SBATCH --signal=B:USR1@{stop_before}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log

{modules}near_limit=0
{command} &
client=$!
trap 'kill -TERM "$client" 2>/dev/null' TERM
# SIGUSR1 asks for a stop, but kills a program that does not listen for it, or not yet.
listens() {{
  local caught
  caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$client/status" 2>/dev/null)
  (( (0x${{caught:-0}} >> ($(kill -l USR1) - 1)) & 1 ))
}}
ask_to_stop() {{
  local until=$((SECONDS + {grace}))
  while kill -0 "$client" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do
    if listens; then
      kill -USR1 "$client" 2>/dev/null
      break
    fi
    sleep 1
  done
  while kill -0 "$client" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do sleep 1; done
  kill -TERM "$client" 2>/dev/null
}}
stop() {{
  near_limit=1
  ask_to_stop &
}}
trap stop USR1
# A signal ends a wait early.
while kill -0 "$client" 2>/dev/null; do wait "$client"; done
wait "$client"
code=$?
if [ "$near_limit" = 1 ] && [ "$code" = 130 ]; then
  trap - TERM
  echo "queueing this job again, to go on" >&2
  if scontrol requeue "$SLURM_JOB_ID"; then
    sleep {stop_before} # Slurm ends it, or this script, or both
    exit
  fi
  echo "error: this cluster does not queue a job again. Submit the script anew: it goes on." >&2
fi
exit "$code"
"""


@dataclass(frozen=True)
class ScriptRequest:
    """What a batch script is to do.

    Attributes
    ----------
    command : sequence of str
        ``neurofleet ...``, ``opt_l5pc ...``, or a program that uses ``Fleet.slurm()``.
    engines : int
        Tasks of the job.
    slurm : SlurmRequest
    modules : sequence of str
        What ``module load`` brings.
    stop_before_s : int
        How long before the limit to stop [s]: as long as the longest unit takes.
    """

    command: Sequence[str]
    engines: int
    slurm: SlurmRequest
    modules: Sequence[str] = ()
    stop_before_s: int = 120

    def __post_init__(self) -> None:
        if self.engines < 1:
            raise UsageError(
                f"--engines must be at least 1, not {self.engines}", remedy="Give another number"
            )
        for option in self.slurm.words():
            if not option.isprintable():
                raise UsageError(
                    f"the option {option!r} is more than a line of the script",
                    remedy="Give the options of sbatch one by one",
                )
        if self.stop_before_s < LEAST_STOP_BEFORE_S:
            raise UsageError(
                f"--stop-before must be at least {LEAST_STOP_BEFORE_S}, not {self.stop_before_s}",
                remedy="Give seconds: less is too late to stop",
            )

    @property
    def grace_s(self) -> int:
        """How long the command may take to stop [s]."""
        return self.stop_before_s - LAST_S


def script(request: ScriptRequest) -> str:
    """Return the batch script."""
    program, *words = request.command
    name = Path(program).name
    if name in OURS:
        if program == name:
            # Jobs see another PATH than the shell that submits them, now and then.
            program = str(Path(sys.argv[0]).resolve().with_name(name))
        words = _with_options(words, name, request.grace_s)
    options = [*request.slurm.words()]
    return TEMPLATE.format(
        name=re.sub(r"[^\w-]", "-", name.partition(".")[0]) or "job",
        engines=request.engines,
        options="".join(f"#SBATCH {option}\n" for option in options),
        modules="".join(f"module load {shlex.quote(module)}\n" for module in request.modules),
        command=shlex.join([program, *words]),
        stop_before=request.stop_before_s,
        grace=request.grace_s,
    )


def _with_options(words: list[str], program: str, grace_s: int) -> list[str]:
    """Tell a command of ours that its engines are Slurm's, and how long it may take to stop."""
    for word in words:
        if word.split("=")[0] in ("--backend", "--engines", "--profile", "--head"):
            raise UsageError(
                f"the command has {word.split('=')[0]}, which the script decides",
                remedy="Leave it out; --engines goes before the --",
            )
    # After the subcommand, which for `neurofleet run` is two words.
    at = 0
    if program == "neurofleet":
        at = 2 if words[:1] == ["run"] else 1
    ours = ["--backend=slurm"]
    if not any(re.match(r"--stop[-_]within(=|$)", word) for word in words):
        ours.append(f"--stop-within={grace_s}s")
    return [*words[:at], *ours, *words[at:]]
