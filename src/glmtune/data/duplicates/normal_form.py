"""Normal forms: what is left of a text once everything is gone that does not change what it says."""

import re
import unicodedata

from glmtune.data.duplicates.scripts import TO_SIMPLIFIED

# Letters and digits of any script are kept; punctuation, white space, symbols, emoji and invisible characters are not.
_NO_LETTER = re.compile(r"[\W_]+")
# Signs that carry the meaning of formulas and prices; a text without any digit or Latin letter beside them has none.
_SIGN = re.compile(r"[+\-*/=<>%^$€¥£°|&~√∑∫≤≥≠±×÷＋－＊／＝＜＞％＾＄￡￥｜＆～]")
_SIGNS = re.compile(r"[^\w+\-*/=<>%^$€¥£°|&~√∑∫≤≥≠±×÷]+|_+")
_HAS_FORMULA = re.compile(r"[0-9A-Za-z)]\s*[+\-*/=<>%^|&~√∑∫≤≥≠±×÷]|[+\-*/=<>$€¥£~√∑∫≤≥≠±×÷]\s*[0-9A-Za-z(]")
_CHINESE_NUMBER = re.compile(
    r"(?<![零一二三四五六七八九十百千万亿])[零一二三四五六七八九](?=[个条只种本年月天次位名岁元块点章节篇首])"
)
# Letters that make no difference.
_LETTERS = {**TO_SIMPLIFIED, ord("您"): "你", ord("妳"): "你"}
_REPLACED = re.compile(f"[{''.join(map(chr, _LETTERS))}]")
_DIGITS = dict(zip("零一二三四五六七八九", "0123456789", strict=True))

_COURTESY = re.compile(
    r"^(?:你好|您好|嗨|hi|hello|hey)?(?:我想问问|我想问|想问一下|想问|请问一下|请问|请教一下|请教|劳驾|麻烦你|麻烦您|麻烦|"
    r"请你|请您|请|能不能告诉我|可以告诉我|告诉我|说说|pleasetellme|please)+|(?:谢谢你|谢谢您|谢谢|多谢|thanks|thankyou)+$"
)
# Not of a short text: 这个呢 asks, 这个 does not.
_PARTICLES_AT_END = re.compile(r"(?<=.{4})(?:[呢呀啊吧嘛啦哦噢哈]|(?<![什怎那这多])么)+$")
_SAME = (
    (re.compile("怎么样才能|怎样才能|怎么才能|如何才能|怎么样|怎样|如何|咋样|咋"), "怎么"),
    (re.compile("一下"), ""),
    (re.compile("什么(?:样的|样|是)|啥"), "什么"),
    (re.compile("为什么|为何|为啥"), "为什么"),
    (re.compile("哪里|哪儿|何处|什么地方"), "哪里"),
    (re.compile("[的地得之]"), ""),
)


def normal_form(text: str) -> str:
    """The letters and digits of a text: width, case, script, white space, punctuation and emoji are gone.

    A text of nothing else is left as it is, so that the normal form is never empty for a text that is not.

    Operators stay where they stand beside digits or Latin letters, since `1+1` and `1-1` do not ask the same.
    """
    if _SIGN.search(text):
        plain = unicodedata.normalize("NFKC", text)
        kept = (_SIGNS if _HAS_FORMULA.search(plain) else _NO_LETTER).sub("", plain)
    else:
        kept = _NO_LETTER.sub("", text)
        if not unicodedata.is_normalized("NFKC", kept):
            kept = _NO_LETTER.sub("", unicodedata.normalize("NFKC", kept))
    kept = kept.casefold()
    if _REPLACED.search(kept):
        kept = kept.translate(_LETTERS)
    return kept or text.strip() or text


def bare_form(text: str) -> str:
    """The normal form of a question without courtesy, particles and the choice between words of one meaning.

    Two questions with the same bare form ask the same; others may, too. A change of any other word, however small,
    leaves different forms, so that the questions of one template stay apart.
    """
    bare = _COURTESY.sub("", normal_form(text))
    bare = _CHINESE_NUMBER.sub(lambda found: _DIGITS[found[0]], bare)
    for pattern, word in _SAME:
        bare = pattern.sub(word, bare)
    bare = _PARTICLES_AT_END.sub("", bare)
    return bare or normal_form(text)
