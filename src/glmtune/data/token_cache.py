"""The cache of tokenised data sets on disk, written atomically, so that the same data are tokenised once."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import pyarrow
from datasets import Dataset, Features

from glmtune.files import say_os_error, written_aside

logger = logging.getLogger(__name__)


def find_or_make(
    fingerprint: str, num_rows: int, columns: Features, tokenize: Callable[[Path | None], Dataset]
) -> Dataset:
    """Returns the data set cached under a fingerprint; otherwise tokenises and caches it.

    The cache is under the Hugging Face datasets cache (`HF_DATASETS_CACHE`). A damaged file is replaced. If the cache
    cannot be written, a warning says why, and the data set is kept in memory only.

    Args:
        fingerprint: The cache key, which covers everything that the data set depends on.
        num_rows: The number of rows.
        columns: The columns and their types.
        tokenize: Creates the data set in a file of the given name, or in memory for None.

    Returns:
        The data set, memory-mapped from its file or in memory.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "glmtune"
    file = folder / f"{fingerprint}.arrow"
    try:
        if not _is_whole(file, num_rows, columns):
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".", ignore_cleanup_errors=True) as scratch:
                made = tokenize(Path(scratch) / "samples.arrow")  # one file for each worker process
                with written_aside(file) as unfinished:
                    _write(made, unfinished)
        return Dataset.from_file(str(file))
    except OSError as error:
        logger.warning(
            "%s: the tokenised data cannot be cached there for the next run: %s. Set HF_DATASETS_CACHE to "
            "another folder.",
            folder,
            say_os_error(error),
        )
        return tokenize(None)


def read_columns(dataset: Dataset, names: Sequence[str]) -> pyarrow.Table:
    """Some columns of a data set, in memory; of one that is in a file, without a look at the others.

    Args:
        dataset: As `find_or_make` returns it.
        names: The columns.
    """
    if not dataset.cache_files:
        return dataset.data.table.select(names)
    options = pyarrow.ipc.IpcReadOptions(included_fields=[dataset.column_names.index(name) for name in names])
    with _batches_of(dataset.cache_files[0]["filename"], options) as reader:
        return reader.read_all()


def _is_whole(file: Path, num_rows: int, columns: Features) -> bool:
    """Whether a file exists and can be read to its end."""
    if not file.is_file():
        return False
    try:
        with _batches_of(file) as reader:
            if not reader.schema.equals(columns.arrow_schema, check_metadata=True):
                return False
            for batch in reader:
                batch.validate(full=True)
                num_rows -= len(batch)
            return num_rows == 0
    except (OSError, pyarrow.ArrowException):
        return False


def _write(dataset: Dataset, file: Path) -> None:
    """Writes a data set, which is spread over several files, to one file."""
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, dataset.features.arrow_schema) as writer:
        for part in dataset.cache_files:
            with _batches_of(part["filename"]) as reader:
                for batch in reader:
                    writer.write_batch(batch)


@contextmanager
def _batches_of(
    file: str | Path, options: pyarrow.ipc.IpcReadOptions | None = None
) -> Iterator[pyarrow.RecordBatchStreamReader]:
    """A file's batches, read one by one: mapped, the whole file would count as memory of the process."""
    with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source, options=options) as reader:
        yield reader
