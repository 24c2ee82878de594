"""A tokenizer small enough to check by eye."""

import pytest

SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


class LetterTokenizer:
    """One id a letter, its code point plus the number of special tokens, so that ids can be read back exactly."""

    eos_token_id = SPECIAL.index("</s>")
    prefix_token_ids = [SPECIAL.index("[gMASK]"), SPECIAL.index("sop")]

    def encode_text(self, text: str) -> list[int]:
        return [ord(letter) + len(SPECIAL) for letter in text]

    def decode_text(self, token_ids: list[int]) -> str:
        return "".join(chr(i - len(SPECIAL)) for i in token_ids if i >= len(SPECIAL))

    def get_command(self, token: str) -> int:
        return SPECIAL.index(token)

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(SPECIAL)}

    def convert_ids_to_tokens(self, ids: list[int], skip_special_tokens: bool = False) -> list[str]:
        return [SPECIAL[i] if i < len(SPECIAL) else chr(i - len(SPECIAL)) for i in ids]

    def spell(self, ids: list[int]) -> str:
        """All ids as text, special tokens by name."""
        return "".join(self.convert_ids_to_tokens(list(ids)))


@pytest.fixture
def letters() -> LetterTokenizer:
    return LetterTokenizer()
