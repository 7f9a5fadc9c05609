"""What the commands share: one line for an error, options that mean the same everywhere."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import click

from neurofleet import __version__, durations, safe_point, streams
from neurofleet.errors import FleetError, Interrupted, UsageError, debugging, one_line

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0  done
  1  the workload failed
  2  a wrong option, file or directory
  3  no controller answers
  4  too few engines
  130  interrupted (what was scored is kept)
"""


def examples(*lines: str) -> str:
    """Return a command's epilog: its examples, then the exit codes."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExamples:\n{shown}\n\n{EXIT_CODES}"


CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # --max_ngen is upstream's spelling, --max-ngen everybody else's.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


def _print_versions(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the versions that decide a score, and stop."""
    if not wanted or context.resilient_parsing:
        return
    click.echo(f"neurofleet {__version__}")
    for name in ("NEURON", "BluePyOpt", "eFEL", "ipyparallel"):
        click.echo(f"{name} {importlib.metadata.version(name.lower())}")
    context.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Print the versions of neurofleet, NEURON, BluePyOpt, eFEL and ipyparallel.",
)


class Commands(click.Group):
    """A group of commands; one may have a second spelling."""

    #: Spellings that are not listed.
    SPELLINGS: ClassVar = {"optimize": "optimise"}

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Find a command."""
        return super().get_command(context, self.SPELLINGS.get(name, name))


def run(command: click.Command, program: str) -> None:
    """Run a command; every error is one line on stderr and a documented exit code."""
    run_call(lambda: command.main(prog_name=program, standalone_mode=False))


def run_call(call: Callable[[], Any]) -> None:
    """Run what a program does, as ``run`` does; its exit code is what ``call`` returns."""
    streams.make_usable()
    streams.notice_loss(safe_point.unheard)
    safe_point.listen()
    try:
        code = call()
    except Interrupted as stop:  # what was asked for has been done
        click.echo(one_line(str(stop)), err=True)
        code = stop.exit_code
    except FleetError as error:
        if error.__cause__ is not None:  # else the line says all there is
            _show_traceback()
        code = _say(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _say(_usage(error), UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _say(
            "interrupted. What was finished is kept; run the same command again to go on", 130
        )
    except BrokenPipeError:
        streams.forget()
        code = 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        code = _say(f"{error.strerror or error}{where}. Make room or mend the permissions.", 1)
    except Exception as error:
        _show_traceback()
        name = type(error).__name__
        code = _say(
            f"an error of neurofleet itself, {name}: {error}. Please report it, with"
            " what NEUROFLEET_DEBUG=1 prints.",
            1,
        )
    unread = streams.flush()
    sys.exit((code if isinstance(code, int) else 0) or unread)


def _show_traceback() -> None:
    """Print the traceback of what is being handled, with all causes, to who asks for it."""
    if debugging():
        traceback.print_exc()


def _usage(error: click.ClickException) -> str:
    """Return what click says about a wrong command, and where help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else ""
    if isinstance(error, click.NoSuchOption) and error.option_name == "--head":
        called = path.removeprefix("neurofleet ").removeprefix("neurofleet")
        text = f"--head comes first: neurofleet --head USER@HOST {called}".rstrip() + " ..."
    else:
        text = error.format_message().rstrip(".")
        text += "" if text.endswith("?") else "."
    return f"{text} See {path} --help." if path else text


def typed() -> str:
    """Return the command as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


class Duration(click.ParamType[float]):
    """A length of time: ``90s``, ``30m``, ``1h30m``, or a number of seconds."""

    name = "duration"
    #: Units [s].
    _SECONDS: ClassVar = {"h": 3600.0, "m": 60.0, "s": 1.0}
    _FORM = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)s?)?")

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        """Return the seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = self._FORM.fullmatch(value.strip())
        parts = found.groupdict("0") if found else {}
        seconds = sum(float(parts.get(unit, 0)) * each for unit, each in self._SECONDS.items())
        if not 0 < seconds <= durations.LONGEST_S:
            self.fail(
                f"{value!r} is not a length of time of at most a year, such as 90s, 30m or 1h30m",
                param,
                context,
            )
        return seconds


def engine_options(command: Command) -> Command:
    """Add the options that every command with engines has; the command gets a ``choice``."""

    @functools.wraps(command)
    def with_choice(**words: Any) -> Any:
        from neurofleet.backends.choice import EngineChoice
        from neurofleet.backends.slurm import SlurmRequest

        slurm = SlurmRequest(
            partition=words.pop("partition"),
            time=words.pop("time"),
            account=words.pop("account"),
            options=words.pop("slurm_option"),
            queue_timeout_s=words.pop("queue_timeout"),
        )
        safe_point.stop_after(words.pop("stop_after"), words.pop("stop_within"))
        choice = EngineChoice(
            backend=words.pop("backend"),
            count=words.pop("engines"),
            profile=words.pop("profile"),
            timeout_s=words.pop("engine_timeout"),
            slurm=slurm,
        )
        return command(choice=choice, **words)

    options = [
        click.option(
            "--backend",
            type=click.Choice(["auto", "serial", "local", "profile", "slurm"]),
            default="auto",
            show_default=True,
            help="serial: this process; local: this machine's cores; profile: a running"
            " controller; slurm: a job; auto: this head's fleet, else a running controller of"
            " the profile, else local.",
        ),
        click.option(
            "--engines",
            type=int,
            metavar="N",
            help="Engines to start. [default: one per core]",
        ),
        click.option(
            "--profile",
            metavar="NAME",
            envvar="IPYTHON_PROFILE",
            help="IPython profile whose running engines are used.",
        ),
        click.option(
            "--engine-timeout",
            type=float,
            default=300.0,
            show_default=True,
            metavar="S",
            help="Give up when no engine can be used for so long.",
        ),
        click.option("--partition", metavar="NAME", help="Slurm partition of the engines."),
        click.option(
            "--time",
            metavar="TIME",
            help="Time limit of the Slurm job: minutes, or as sbatch has it.",
        ),
        click.option("--account", metavar="NAME", help="Account that Slurm charges."),
        click.option(
            "--slurm-option",
            multiple=True,
            metavar="OPTION",
            help="Any option of sbatch, such as --slurm-option=--mem-per-cpu=2G; repeatable.",
        ),
        click.option(
            "--queue-timeout",
            type=float,
            default=86400.0,
            show_default=True,
            metavar="S",
            help="Give up when the Slurm job is pending for so long.",
        ),
        click.option(
            "--stop-after",
            type=Duration(),
            metavar="TIME",
            help="Stop at a safe point after so long: 90s, 30m, 2h, 1h30m.",
        ),
        click.option(
            "--stop-within",
            type=Duration(),
            default=safe_point.LIMIT_S,
            metavar="TIME",
            help="What has begun may take so long when a stop is asked for."
            f" [default: {safe_point.LIMIT_S:.0f}s]",
        ),
    ]
    decorated: Any = with_choice
    for option in reversed(options):
        decorated = option(decorated)
    return cast(Command, decorated)


def run_options(command: Command) -> Command:
    """Add the options that every optimisation has."""
    options = [
        click.option(
            "--run-dir",
            type=click.Path(file_okay=False),
            metavar="DIR",
            help="Run directory. [default: neurofleet-runs/<what is run>]",
        ),
        click.option(
            "--unit-timeout",
            type=float,
            metavar="S",
            help="Limit of one simulated unit. [default: 20 x the longest measured, at least 120]",
        ),
        click.option(
            "--verify",
            type=int,
            default=0,
            metavar="N",
            help="Score N random units of each generation twice, on different hosts, and name"
            " the host that differs.",
        ),
        click.option(
            "--allow-failing",
            is_flag=True,
            help="Go on with penalties where an objective raises for every individual of the"
            " first generation.",
        ),
        click.option(
            "--report/--no-report",
            default=True,
            show_default=True,
            help="Write report.html into the run directory.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _say(text: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody reads it
        click.echo(f"error: {one_line(text)}", err=True)
    return code
