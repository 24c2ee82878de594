"""Arrow tables, which Parquet files and hub data sets are, as rows of Python values."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow

from glmtune.errors import DataError, show_names
from glmtune.json_values import Unreadable

# Raised by pyarrow for invalid UTF-8, dates outside Python's range, unknown time zones and duplicate field names.
_CONVERSION_FAULTS = (ValueError, OverflowError, KeyError, pyarrow.ArrowException)


def read_table_rows(table: pyarrow.Table, name: str) -> list[dict[str, Any]]:
    """The rows of a table, without nulls, since in a table every row has the columns of all the others.

    Args:
        table: The table.
        name: Where it comes from, for messages.

    Returns:
        One dictionary per row. A value without a Python form is `Unreadable`, since it may be in an unused column.

    Raises:
        DataError: There are two columns of the same name.
    """
    names = table.column_names
    check_column_names(names, name)
    columns = [_column_values(column) for column in table.columns]
    return [
        {name: _without_nulls(value) for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*columns, strict=True)
    ]


def check_column_names(names: Sequence[str], name: str) -> None:
    """Refuses a table with two columns of the same name.

    Raises:
        DataError: It has.
    """
    if repeated := [column for column, count in Counter(names).items() if count > 1]:
        raise DataError(f"{name}: the table has duplicate columns: {show_names(repeated)}")


def _column_values(column: pyarrow.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except _CONVERSION_FAULTS:
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pyarrow.Scalar) -> Any:
    """The value of a scalar; within a nested one, only the elements without a Python form are `Unreadable`."""
    try:
        return scalar.as_py()
    except _CONVERSION_FAULTS as error:
        if isinstance(scalar, pyarrow.StructScalar):
            names = [field.name for field in scalar.type]
            if len(set(names)) == len(names):
                return {name: _value(scalar[name]) for name in names}
        elif isinstance(scalar, pyarrow.ListScalar | pyarrow.LargeListScalar | pyarrow.FixedSizeListScalar):
            return [_value(item) for item in scalar.values]
        return Unreadable(str(error))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
