"""The tokenizer as `tokenizer.json`, which transformers and other programs read without glmtune.

Text gets the same ids as from sentencepiece: a piece is merged from any two pieces that make it up, pieces of higher
score first. Special tokens in text are recognised, as chat templates need it; `split_special_tokens=True` turns that
off. `sop` and `eop` are recognised as whole words only, so that English words keep their letters.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

_SPACE = "▁"  # how sentencepiece writes a space


def build_tokenizer(sp_model: Any, commands: dict[str, int]) -> Tokenizer | None:
    """Makes the fast tokenizer.

    Args:
        sp_model: The sentencepiece model, of type BPE, without normalisation, as in all published folders.
        commands: The special tokens and their ids, which follow the pieces.

    Returns:
        The tokenizer; None if a command is spelt like a piece, since `tokenizer.json` cannot tell the two apart.
    """
    pieces = [sp_model.id_to_piece(index) for index in range(sp_model.vocab_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if not vocabulary.keys().isdisjoint(commands):
        return None
    unknown, end = pieces[sp_model.unk_id()], pieces[sp_model.eos_id()]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(sp_model, vocabulary), byte_fallback=True, unk_token=unknown)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = sorted(commands, key=commands.__getitem__)
    tokenizer.add_special_tokens([_added(name) for name in (unknown, end, *words)])
    prefix = ["[gMASK]", "sop"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A"],
        pair=[*prefix, "$A", "$B", end],
        special_tokens=[*((name, commands[name]) for name in prefix), (end, sp_model.eos_id())],
    )
    return tokenizer


def _added(name: str) -> AddedToken:
    """A special token. The space after `sop` parts it from a word that the prompt begins with."""
    return AddedToken(name, normalized=False, special=True, single_word=name.isalpha(), rstrip=name == "sop")


def _merges(sp_model: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in the order in which sentencepiece prefers the pieces."""
    plain = {
        piece
        for piece, index in vocabulary.items()
        if not (sp_model.is_control(index) or sp_model.is_unknown(index) or sp_model.is_byte(index))
    }
    merges = []
    for piece in sorted(plain, key=lambda piece: -sp_model.get_score(vocabulary[piece])):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(first, second) for first, second in halves if first in plain and second in plain]
    return merges
