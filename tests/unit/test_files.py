"""Without these, a full disk or a second process could leave half a file in a good one's place."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import processes
from glmtune.errors import ModelError, StorageError
from glmtune.files import (
    check_writable_folder,
    held,
    read_json_object,
    storage_faults,
    write_json,
    write_text,
    written_aside,
)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("old")

    def fill_the_disk() -> None:
        with storage_faults(file), written_aside(file) as unfinished:
            unfinished.write_text("half of the ne")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=r"results\.json: the disk is full"):
        fill_the_disk()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_name_that_is_no_utf_8_is_written_and_read_back(tmp_path: Path) -> None:
    name = b"\xff\xfe.json".decode(errors="surrogateescape")  # as Python has it
    write_json(tmp_path / "facts.json", {"file": name})
    assert read_json_object(tmp_path / "facts.json", ModelError) == {"file": name}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_of_another_process_is_kept_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    def link(file: Path, path: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    file = tmp_path / "rows.json"
    with written_aside(file, replaces=False) as unfinished:
        unfinished.write_text("first")
    with pytest.raises(FileExistsError), written_aside(file, replaces=False) as unfinished:
        unfinished.write_text("second")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with written_aside(tmp_path / "weights") as unfinished:
            unfinished.unlink()  # as a writer does that makes a private file of its own and renames it
            unfinished.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


@pytest.mark.posix
def test_what_is_flushed_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows flushes no other descriptors, but cannot tell how one was opened."""
    import fcntl

    modes = []

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "results.json", "text")
    assert modes == [os.O_RDWR]


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 240)
    write_text(file, "text")
    assert file.read_text() == "text"


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from glmtune.files import held\n"
        "with held(sys.argv[1], 'is being used for training'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, tmp_path]
    with processes.started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        processes.read_until(other.stdout, "held")
        with (
            pytest.raises(StorageError, match="is being used for training by another process"),
            held(tmp_path, "is being used for training"),
        ):
            pass
        other.kill()
    with held(tmp_path, "is being used for training"):
        pass


def test_a_folder_that_cannot_be_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        check_writable_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "expected a JSON object; found list"),
        (b"null", "expected a JSON object; found NoneType"),
        (b'{"a": ', "damaged or cut short"),
        (b"\xff\xfe", "damaged or cut short"),
        (b"[" * 100_000, "damaged or cut short"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json.*{message}"):
        read_json_object(file, ModelError)
