"""Without these, one odd value in a Parquet file would cost the user the whole file."""

import pyarrow
import pyarrow.parquet
import pytest

from glmtune.data.formats import read_conversations, scan
from glmtune.data.tables import read_table_rows
from glmtune.errors import DataError
from glmtune.json_values import Unreadable


def whole_numbers_as(number: int, kind: pyarrow.DataType) -> pyarrow.Array:
    width = pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()
    return pyarrow.array([number, 0, None], width).view(kind)


NOT_UTF8 = pyarrow.StringArray.from_buffers(
    3, pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pyarrow.py_buffer(b"\xffx")
)
TWICE = pyarrow.StructArray.from_arrays([pyarrow.array(["x"] * 3)] * 2, names=["k", "k"])
ODD_COLUMNS = {
    "text": NOT_UTF8,
    "date": whole_numbers_as(2**31 - 1, pyarrow.date32()),
    "timestamp": whole_numbers_as(2**62, pyarrow.timestamp("us")),
    "before year 1": whole_numbers_as(-(2**50), pyarrow.timestamp("ms")),
    "time zone": whole_numbers_as(1, pyarrow.timestamp("s", tz="Mars/Olympus")),
    "duration": whole_numbers_as(2**62, pyarrow.duration("s")),
    "field twice": TWICE,
    "in a list": pyarrow.array([[row] for row in range(3)]).from_arrays([0, 1, 2, 3], NOT_UTF8),
    "in a struct": pyarrow.StructArray.from_arrays([NOT_UTF8, TWICE], names=["a", "b"]),
}


def write(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("column", ODD_COLUMNS.values(), ids=ODD_COLUMNS)
def test_an_odd_column_that_is_not_used_costs_nothing(tmp_path, column):
    path = write(tmp_path / "a.parquet", question=["q"] * 3, answer=["a"] * 3, odd=column)
    assert len(read_conversations(path)) == 3


@pytest.mark.parametrize("column", ODD_COLUMNS.values(), ids=ODD_COLUMNS)
def test_an_odd_column_that_is_used_has_a_sentence_a_row(tmp_path, column):
    path = write(tmp_path / "a.parquet", question=["q"] * 3, answer=column)
    conversations, faults = scan(path)
    num_readable = 1 if column is NOT_UTF8 else 0  # its last value is a text
    assert len(conversations) == num_readable
    for number, fault in zip(range(1, 4 - num_readable), faults, strict=True):
        assert fault.startswith(f'{path}, row {number}: "answer" ')
        assert len(fault) < 500


def test_only_the_value_at_fault_is_lost():
    messages = pyarrow.StructArray.from_arrays(
        [pyarrow.array(["user"] * 3), pyarrow.array(["q"] * 3), NOT_UTF8], names=["role", "content", "note"]
    )
    column = pyarrow.ListArray.from_arrays([0, 2, 2, 3], messages)
    first, second, third = read_table_rows(pyarrow.table({"messages": column}), "a")
    assert isinstance(first["messages"][0].pop("note"), Unreadable)
    assert first == {"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "q", "note": ""}]}
    assert (second, third["messages"][0]["note"]) == ({"messages": []}, "x")


def test_a_column_that_is_there_twice_is_named(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["q"]), pyarrow.array(["a"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the table has duplicate columns: text"):
        read_conversations(tmp_path / "a.parquet")


def test_a_folder_is_no_column(tmp_path):
    """Arrow's data sets would take a folder named like this for one."""
    (tmp_path / "output=x").mkdir()
    path = write(tmp_path / "output=x" / "a.parquet", question=["q"], answer=["a"])
    assert read_conversations(path).formats == {str(path): "question/answer"}
