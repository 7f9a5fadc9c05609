"""The report: one page about one run, in one file, readable without a network.

``record`` and ``scores`` read a run directory and change nothing in it, ``times`` does
the arithmetic of where the time went, ``figures`` and ``timeline`` draw, ``page`` puts
it together. The same run directory gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from neurofleet.rundir import RunDirectory, write_file

__all__ = ["write_report"]


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a run directory, also while the run is in progress.

    Parameters
    ----------
    directory : Path
        A run directory; nothing but the report is written into it.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    RunDirectoryError
        There is no run, it has finished no generation yet, a file of it is damaged or
        another user's, or the report cannot be written.
    WorkloadFailed
        A library that the checkpoint needs is not installed here.
    """
    from neurofleet.report import page, record

    target = RunDirectory(directory).report
    write_file(
        target,
        page.render(record.read(directory)).encode(errors="backslashreplace"),
        remedy="Make room or mend the permissions, and make it with: neurofleet report DIRECTORY;"
        " the run itself is complete without it",
    )
    return target
