"""Writes a large result beside its final place."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glmtune.files import held, storage_faults


@contextmanager
def written_beside(output: Path, what: str) -> Iterator[Path]:
    """Yields a path that is renamed to `output` at the end, or deleted if anything fails.

    It is in a folder beside `output`, under a lock. The folder is always called the same, so that whoever writes to
    this place deletes the remains of an earlier process that was killed.

    Args:
        output: A new file or folder, or an empty folder.
        what: What the place is locked for, as for `held`.

    Yields:
        Where the new file or folder is to be created.

    Raises:
        StorageError: The result cannot be moved into place, or another process is writing to it.
    """
    place = output.resolve()  # for a link to a folder on another disk: beside the target, not beside the link
    aside = place.parent / f".{place.name[:100]}.unfinished"
    unfinished = aside / "model"
    with storage_faults(output):
        aside.mkdir(parents=True, exist_ok=True)
    try:
        with held(aside, what):
            try:
                with storage_faults(output):
                    if unfinished.is_dir():
                        shutil.rmtree(unfinished)
                    unfinished.unlink(missing_ok=True)
                yield unfinished
                with storage_faults(output):
                    if place.is_dir():
                        place.rmdir()  # fails unless it is empty; on Windows the target of a rename must not exist
                    elif os.path.lexists(place):  # it has come since the export began
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                    unfinished.rename(place)
            finally:
                if unfinished.is_dir():
                    shutil.rmtree(unfinished, ignore_errors=True)
                else:
                    with suppress(OSError):
                        unfinished.unlink()
    finally:
        with suppress(OSError):
            aside.rmdir()  # unless another process is at work in it by now
