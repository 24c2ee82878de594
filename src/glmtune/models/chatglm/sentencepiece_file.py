"""Reads `tokenizer.model`, which is often a Git LFS pointer or missing."""

from pathlib import Path
from typing import Any

import sentencepiece

from glmtune.errors import ModelError


def load_sentencepiece(vocab_file: str) -> Any:
    """Reads a sentencepiece model.

    Args:
        vocab_file: Path of `tokenizer.model`.

    Raises:
        ModelError: The file is missing, a Git LFS pointer, or not a sentencepiece model.
    """
    if not vocab_file or not Path(vocab_file).is_file():
        raise ModelError(f"tokenizer.model is missing: no file at {vocab_file}")
    if Path(vocab_file).read_bytes()[:24].startswith(b"version https://git-lfs"):
        raise ModelError(f"{vocab_file} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=vocab_file)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{vocab_file} is not a sentencepiece model: {error}") from error
