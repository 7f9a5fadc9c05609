"""A person's own modules in a file, for processes that a call starts anew."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import zipfile
from pathlib import Path

from neurofleet.atomic import write_whole
from neurofleet.engine.job_content import JobContent


def provide(content: JobContent, archive: Path) -> None:
    """Let processes that a call starts anew (``spawn``, joblib's) import the own modules too.

    They are told this process's ``sys.path`` and have none of its finders. Of the modules' own
    directories they shall not be told: what else is there is not part of the job.

    Parameters
    ----------
    content : JobContent
    archive : Path
        Is written, unless it has the modules already.
    """
    # Packages without __init__ are left to their finder: parts of them may be elsewhere.
    whole = {n: s for n, s in content.sources.items() if n.partition(".")[0] in content.sources}
    if not whole:
        return
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, source in sorted(whole.items()):
            inside = f"{name.replace('.', '/')}{'/__init__' if source.package else ''}.py"
            file.writestr(zipfile.ZipInfo(inside), source.text)
    with contextlib.suppress(OSError):  # no room: few functions start such processes
        if not archive.exists() or archive.read_bytes() != packed.getvalue():
            write_whole(archive, packed.getvalue(), lasting=False)
        os.utime(archive)
        sys.path.append(str(archive))
