"""The run folder: locked while a run trains, with a clear error if it can no longer be written to."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from glmtune.adapters.run_folder import checkpoints
from glmtune.errors import StorageError
from glmtune.files import as_os_error, check_writable_folder, held, say_os_error, storage_faults
from glmtune.training.lora_trainer import last_good

# A disk without space for this has none for a checkpoint.
_LEAST_BYTES = 2**20
# Disk errors, whichever file was being written; other errors count only if they name a file of the run.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


@contextmanager
def run_folder_held(folder: str | Path) -> Iterator[None]:
    """Creates a run folder and locks it against training by other processes.

    Folders created for it are removed again if they are still empty at the end.

    Args:
        folder: The run folder.

    Raises:
        StorageError: It cannot be created or written to, the disk is full, or another process trains into it.
    """
    folder = Path(folder).absolute()
    new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    with ExitStack() as stack:
        stack.callback(_remove_empty, new)
        try:
            _make_writable(folder)
            stack.enter_context(held(folder, "is being used for training"))
        except StorageError as error:
            raise StorageError(f"train.output_dir: {error}") from error
        yield


def _make_writable(folder: Path) -> None:
    """Creates a folder, and checks that the disk has space."""
    check_writable_folder(folder)
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST_BYTES))
            file.flush()
            os.fsync(file.fileno())


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def ending_where_it_cannot_write(folder: str | Path, how_to_go_on: str) -> Iterator[None]:
    """Ends a run that can no longer write with a message: which file, why, and how to resume.

    Args:
        folder: The run folder.
        how_to_go_on: The command that resumes the run.

    Raises:
        StorageError: In place of any error about a failed write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, StorageError) as error:
        fault = str(error) if isinstance(error, StorageError) else _describe(error, Path(folder).absolute())
        if fault is None:
            raise
        kept = "There is no checkpoint to continue from."
        if checkpoints(folder):
            kept = f"{last_good(str(folder))} To continue from it:\n  {how_to_go_on}"
        raise StorageError(f"training stopped: {fault}.\n{kept}") from error


def _describe(error: Exception, folder: Path) -> str | None:
    """The file that could not be written, and why; None for other errors."""
    fault = as_os_error(error)
    if fault is None:
        return None
    file = folder if fault.filename is None else Path(os.fsdecode(fault.filename)).absolute()
    is_ours = fault is not error or (fault.filename is not None and file.is_relative_to(folder))
    return f"{file}: {say_os_error(fault)}" if is_ours or fault.errno in _DISK_FAULTS else None
