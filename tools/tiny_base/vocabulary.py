"""Trains the tokenizer, in the official shape: BPE with byte fallback, no normalisation, a dummy prefix."""

import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from glmtune.prompts import Conversation
from tiny_base.words import COMMON_HANZI

NUM_PIECES = 4343
"""Bytes, the 3,755 common characters, and some 200 pieces of several; with 9 special tokens it is 34 x 128."""
OLDEST_SENTENCEPIECE = (0, 2, 3)
"""Before it, training with these settings dies in C++ with `Check failed: freq > 0`."""


def check_sentencepiece(version: str) -> None:
    """Says which sentencepiece is needed, before time is spent on making a corpus.

    Args:
        version: The installed one, such as `0.2.3`.

    Raises:
        SystemExit: It is too old to train this tokenizer.
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_SENTENCEPIECE:
        needed = ".".join(map(str, OLDEST_SENTENCEPIECE))
        raise SystemExit(
            f"error: training the tokenizer needs sentencepiece {needed} or newer, found {version}; older ones stop "
            f"with 'Check failed: freq > 0'\n  do: pip install 'sentencepiece>={needed}'"
        )


def train_tokenizer(conversations: Iterable[Conversation], output_file: Path) -> None:
    """Trains on the texts of conversations and writes a sentencepiece model.

    All common characters get a piece of their own, so that a user's own data, whose characters the corpus may hardly
    show, is one token a character too.
    """
    with output_file.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(conversations),
            model_writer=file,
            model_type="bpe",
            vocab_size=NUM_PIECES,
            byte_fallback=True,
            character_coverage=1.0,
            required_chars="".join(COMMON_HANZI),
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            split_digits=True,
            max_sentencepiece_length=3,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            input_sentence_size=0,
            minloglevel=1,
        )


def _lines(conversations: Iterable[Conversation]) -> Iterable[str]:
    for conversation in conversations:
        for message in conversation.messages:
            yield from message.text().splitlines()
