"""Texts that tokenizers disagree about, made from a seed."""

import random

_PIECES = (
    *"  \t\n\r\x00\x01\x1b\x7f\u00a0\u200b\u2028\u3000\ufeff",
    *"的了是我你他，。！？、：；“”《》",
    *"aeiou AEIOU 0123456789 .,-_=*#~!?()[]{}<>/\\|'\"`@$%^&+",
    "philosophy people shop sops eops stop isopod",
    *("😀", "👨\u200d👩\u200d👧", "🇨🇳", "❤\ufe0f", "👍🏽", "𠮷", "𝓗", "é", "e\u0301", "ﬁ", "ß", "İ"),
    *("한국어", "日本語テキスト", "العربية", "עברית", "русский", "ไทย", "हिन्दी", "ελληνικά", "ｆｕｌｌ"),
    *("https://example.com/a?b=c&d=%20", "def f(x):\n    return x", "3.14159", "1,000,000", "--", "...", "▁", "▁▁"),
    *("<0x0A>", "<s>", "\\n", "\ufffd", "\ue000", "    ", "        ", "\n\n\n", "\r\n", " \n ", "ing", "tion", " the"),
)
SPELT = ("[gMASK]", "[MASK]", "[sMASK]", "<|user|>", "<|system|>", "<|assistant|>", "<|observation|>", "</s>", "<unk>")


def hard_texts(number: int, seed: int = 0) -> list[str]:
    """Texts of odd characters, without special tokens; the first are runs of one character, and empty."""
    rng = random.Random(seed)
    texts = [unit * count for unit in (" ", "\n", ".", "-", "哈", "a", "😀", "▁") for count in (1, 2, 3, 7, 16, 33)]
    texts += ["", "philosophy", "people", "He shops; isopods sop", "a\x00b", "eop's", "<0xE4><0xBD>"]
    while len(texts) < number:
        texts.append("".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 40))))
    return texts


def texts_with_special_tokens(number: int, seed: int = 0) -> list[str]:
    """Texts in which special tokens are spelt out, among odd characters."""
    rng = random.Random(seed)
    return [f"{rng.choice(_PIECES)}{rng.choice((*SPELT, ' sop ', ' eop'))}{rng.choice(_PIECES)}" for _ in range(number)]
