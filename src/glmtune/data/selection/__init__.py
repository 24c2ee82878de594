"""Which rows of files are taken: without duplicates, split in two, drawn, or mixed. Rows keep all their columns."""

from glmtune.data.selection.dedupe import dedupe
from glmtune.data.selection.drawing import merge, sample
from glmtune.data.selection.split import split

__all__ = ["dedupe", "merge", "sample", "split"]
