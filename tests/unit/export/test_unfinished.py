"""Without these, an export could wipe another one's work, or a file that has come meanwhile."""

import pytest

from glmtune.errors import StorageError
from glmtune.export.unfinished import written_beside

WHAT = "is being written"


def test_what_has_come_meanwhile_is_kept(tmp_path):
    output = tmp_path / "model.gguf"

    def export() -> None:
        with written_beside(output, WHAT) as unfinished:
            unfinished.write_text("new")
            output.write_text("precious")

    with pytest.raises(StorageError):
        export()
    assert output.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_the_lock_of_another_process_outlives_an_export_that_ends(tmp_path):
    output = tmp_path / "model.gguf"
    with pytest.raises(StorageError), written_beside(output, WHAT), written_beside(output, WHAT):
        raise AssertionError("not reached")
    with written_beside(output, WHAT) as unfinished:
        unfinished.write_text("new")
        lock = unfinished.parent / ".lock"
        assert lock.exists()
        with pytest.raises(StorageError), written_beside(output, WHAT):
            raise AssertionError("not reached")
        assert lock.exists()
    assert output.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
