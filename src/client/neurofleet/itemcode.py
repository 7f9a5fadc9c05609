"""Of which code results are: a person's modules, and the versions of packages that they use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from neurofleet.engine.host_cache import python_version
from neurofleet.errors import RunDirectoryError

if TYPE_CHECKING:
    from neurofleet.jobs import Job

#: So many names of what has changed are shown [count].
SHOWN = 4


@dataclass(frozen=True)
class Code:
    """What a function's results depend on besides its items.

    Attributes
    ----------
    modules : mapping of str to str or None
        A hash of each part of the person's own code that the function can reach, by the
        name of its module; ``None`` is not known.
    packages : mapping of str to str or None
        The version of each distribution that it can reach, and Python's, by name; ``None`` is
        not known.
    """

    modules: Mapping[str, str] | None = field(default_factory=dict)
    packages: Mapping[str, str] | None = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the code of a job."""
        return cls(job.code, {**job.versions, "Python": python_version()})

    def dumps(self) -> tuple[str, str]:
        """Return modules and packages as they are stored."""
        parts = (self.modules, self.packages)
        modules, packages = (None if part is None else dict(part) for part in parts)
        return json.dumps(modules, sort_keys=True), json.dumps(packages, sort_keys=True)

    @classmethod
    def loads(cls, modules: str, packages: str) -> Self:
        """Return what ``dumps`` made texts of.

        Raises
        ------
        ValueError
            They are no such texts.
        """
        parts = [json.loads(text) for text in (modules, packages)]
        if not all(part is None or isinstance(part, dict) for part in parts):
            raise ValueError("what its code was is not an object")
        return cls(*parts)

    def changes_since(self, before: Code) -> str:
        """Return in words how this differs from what was before."""
        if before.modules is None or before.packages is None:
            return "an earlier version of neurofleet, which noted neither code nor versions"
        ours, theirs = self.modules or {}, before.modules
        both = sorted(ours.keys() & theirs.keys())
        changes = [f"{name} has changed" for name in both if ours[name] != theirs[name]]
        changes += [f"{name} is new" for name in sorted(ours.keys() - theirs.keys())]
        changes += [f"{name} is gone" for name in sorted(theirs.keys() - ours.keys())]
        said = []
        if changes:
            said.append(f"other code ({_some(changes)})")
        packages, packages_then = self.packages or {}, before.packages
        versions = [
            f"{name} {packages_then.get(name, 'none')}, this is {packages.get(name, 'none')}"
            for name in sorted({*packages, *packages_then})
            if packages.get(name) != packages_then.get(name)
            # Earlier versions of this program did not note Python's.
            and (name != "Python" or name in packages_then)
        ]
        if versions:
            said.append(f"other versions ({_some(versions)})")
        return " and of ".join(said)


@dataclass(frozen=True)
class Remedies:
    """What a person can do about a run directory whose results are of something else.

    Attributes
    ----------
    directory : str
        How another one is named.
    keep : str
        How the results are kept; empty if they cannot be.
    """

    directory: str = "--run-dir"
    keep: str = ""


def refusal(where: str, what: str, remedies: Remedies) -> RunDirectoryError:
    """Return the error that results are of other code."""
    anew = f"name another with {remedies.directory}"
    if remedies.keep:
        remedy = f"{remedies.keep}; or {anew}. Nothing was changed"
    else:
        remedy = f"N{anew[1:]}; nothing was changed"
    return RunDirectoryError(f"{where} has results of {what}", remedy=remedy)


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
