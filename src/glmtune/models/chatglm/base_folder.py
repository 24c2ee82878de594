"""ChatGLM-specific checks of the small files in a base model's folder."""

from pathlib import Path
from typing import Any

from glmtune.errors import ModelError
from glmtune.files import read_json_object

# Required files of a base, besides config.json and the weights.
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")


def check_vocabulary(folder: Path, num_ids: int) -> None:
    """Checks a tokenizer against the model in its folder.

    Args:
        folder: The folder; without a `config.json` there is nothing to compare.
        num_ids: How many ids the tokenizer has.

    Raises:
        ModelError: The model's embedding has fewer rows.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    values = read_json_object(file, ModelError)
    num_rows = values.get("padded_vocab_size", values.get("vocab_size"))
    if isinstance(num_rows, int) and num_ids > num_rows:
        raise ModelError(
            f"{folder}: the tokenizer has {num_ids:,} ids, more than the {num_rows:,} of the model "
            "(padded_vocab_size in config.json); tokenizer.model belongs to another model. Copy this model's "
            "into the folder"
        )


def has_role_tokens(name: str, folder: Path) -> bool:
    """Whether a base's tokenizer has role tokens: ChatGLM3's has them, ChatGLM2's does not.

    The vocabulary file is the same for both. The official code, if it is in the folder, distinguishes them and is read
    as text; otherwise the first conclusive name does: the tokenizer's, the configuration's or the folder's.

    Args:
        name: A folder or a hub id.
        folder: The folder; it need not exist.
    """
    saved = _read_if_there(folder / "tokenizer_config.json").get("has_role_tokens")
    if isinstance(saved, bool):
        return saved
    code = folder / "tokenization_chatglm.py"
    if code.is_file():
        return "<|user|>" in code.read_text(encoding="utf-8", errors="replace")
    names = (
        _read_if_there(folder / "tokenizer_config.json").get("name_or_path"),
        _read_if_there(folder / "config.json").get("_name_or_path"),
        Path(name).name,
    )
    telling = (family for each in names for family in ("chatglm2", "chatglm3") if family in str(each).lower())
    return next(telling, "chatglm3") == "chatglm3"


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json_object(file, ModelError) if file.is_file() else {}
