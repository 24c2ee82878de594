"""Files: atomic writes, locks, and errors as one sentence."""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from glmtune.errors import GlmtuneError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

_SAYINGS = {
    errno.ENOSPC: "the disk is full; free some space, or choose another place",
    errno.EDQUOT: "your disk quota is used up; free some space, or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "permission denied; choose another place, or change its permissions",
    errno.EPERM: "the operation is not permitted; choose another place",
    errno.ENOENT: "it, or the folder that contains it, does not exist",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.EEXIST: "it is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EFBIG: "a file of this size is not allowed here (ulimit -f, or the file system's own limit)",
    errno.EIO: "the disk reports an input/output error",
    errno.ESTALE: "the network file system has lost it",
}
_CUT_SHORT = "it could not be written to its end; the disk may be full, or the folder gone"
# Messages of torch.save when it cannot open or write a file; they do not say whether the disk is full.
_TORCH_CANNOT_WRITE = (
    "unexpected pos",
    "iostream error",
    "PytorchStreamWriter failed",
    "open file failed",
    "Parent directory",
)


def say_os_error(error: OSError) -> str:
    """What an OS error means, as a phrase to follow a path and a colon."""
    return _SAYINGS.get(error.errno or 0, error.strerror or str(error))


def as_os_error(error: Exception) -> OSError | None:
    """The OS error behind a library's exception; None if there is none.

    safetensors and torch report file errors in exceptions of their own; numpy's has no number, and does not say why.
    """
    text = str(error)
    if isinstance(error, OSError):
        return error if error.errno or " requested and " not in text else OSError(_CUT_SHORT)
    if isinstance(error, SafetensorError) and (match := re.search(r"\(os error (\d+)\)", text)):
        return OSError(int(match[1]), os.strerror(int(match[1])))
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_CANNOT_WRITE):
        return OSError(_CUT_SHORT)
    return None


@contextmanager
def storage_faults(path: str | Path) -> Iterator[None]:
    """Turns an OS error into one sentence that names the path.

    Args:
        path: The file or folder being read or written.

    Raises:
        StorageError: In place of an OSError raised inside the block, or of the exceptions of safetensors and torch for
            one.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        fault = as_os_error(error)
        if fault is None:
            raise
        raise StorageError(f"{path}: {say_os_error(fault)}") from error


@contextmanager
def written_aside(path: str | Path, *, replaces: bool = True) -> Iterator[Path]:
    """Writes a file under a temporary name in the same folder, and renames it once it is complete and on the disk.

    If the process is killed or the disk fills up, `path` is the old file or the new one, never a partial one. The new
    file has the permissions that the umask gives, whatever the writer set.

    Args:
        path: The file; its folder must exist.
        replaces: Whether a file that is there by then is replaced.

    Yields:
        The path of an empty file to write to.

    Raises:
        FileExistsError: There is a file, and it is not to be replaced.
        OSError: The file cannot be written; `storage_faults` turns that into a sentence.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name[:100]}.{token_hex(4)}.unfinished")
    # Exclusive, so that a symbolic link planted in this place is not followed.
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)) as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        yield unfinished
        unfinished.chmod(mode)
        flush(unfinished)
        if replaces:
            unfinished.replace(path)
        else:
            _link_to_new(unfinished, path)
        flush(path.parent)  # the rename is on the disk only once the folder is
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _link_to_new(file: Path, path: Path) -> None:
    """Gives a file a second name, of which no other process can have made a file just before."""
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        file.rename(path)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all; see `written_aside`.

    What UTF-8 has not, such as a byte of a file name in another encoding, is written as an escape, which JSON reads.
    """
    with written_aside(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: str | Path, values: Any) -> None:
    """Writes values as indented JSON, whole or not at all; see `written_aside`."""
    write_text(path, json.dumps(values, ensure_ascii=False, indent=2, default=str) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Writes contiguous tensors by name as safetensors, whole or not at all; see `written_aside`.

    Raises:
        OSError, SafetensorError: The file cannot be written. `storage_faults` makes that a sentence.
    """
    from safetensors.torch import save_file

    with written_aside(path) as unfinished:
        save_file(dict(tensors), unfinished, metadata={"format": "pt"})


def read_json_object(path: str | Path, error_type: type[GlmtuneError]) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: The file.
        error_type: The type of error to raise.

    Raises:
        GlmtuneError: As `error_type`: it cannot be read, is no JSON, or holds something else.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise error_type(f"{path}: {say_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path} is damaged or cut short: {error}") from error
    if not isinstance(values, dict):
        raise error_type(f"{path}: expected a JSON object; found {type(values).__name__}")
    return values


def check_writable_folder(path: str | Path) -> None:
    """Checks, without creating anything, that a folder can be created and written to.

    Args:
        path: The folder; it need not exist yet.

    Raises:
        StorageError: It cannot be written to, or the path is not a folder.
    """
    path = Path(path).expanduser().absolute()
    with storage_faults(path):
        there = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(there))
        if os.name == "posix" and os.statvfs(there).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "", str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(there))


@contextmanager
def held(path: str | Path, what: str) -> Iterator[None]:
    """Locks a file or folder; another process that wants it meanwhile is refused.

    The operating system releases the lock of a process that dies, however it dies.

    Args:
        path: The file or folder that no other process may write. The lock is a hidden file in the folder, or next to
            the file.
        what: What it is locked for, as a phrase such as "is being used for training".

    Raises:
        StorageError: Another process holds the lock, or the lock file cannot be created.
    """
    path = Path(path)
    place = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    lock = FileLock(place, timeout=0)
    with storage_faults(path):
        try:
            lock.acquire()
        except Timeout as error:  # which is an OSError too
            raise StorageError(
                f"{path} {what} by another process; wait for it to end, or choose another place"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            place.unlink()  # before the release, so that another process's lock is never removed
        lock.release()


def flush(path: Path) -> None:
    """Waits until what has been written to a file or folder is on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # other systems cannot open a folder
    # Systems other than POSIX flush only what was opened for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
