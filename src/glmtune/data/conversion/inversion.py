"""The statement behind an English question: "is the sky blue" -> "the sky is blue".

Where the subject ends is guessed from a few words; where that is not sure, there is no answer.
"""

import re

# What a predicate may begin with: adjectives and participles by their endings, and common ones by name.
_PREDICATE = re.compile(
    r"(?:so|too|very|more|less|not|often|always|usually|sometimes|considered|called|known|still|never|such|better"
    r"|worse)"
    r"|(?:blue|red|green|black|white|salty|wet|dry|hot|cold|warm|dark|bright|good|bad|important|big|small|high|low"
    r"|fast|slow"
    r"|rich|poor|hard|soft|easy|sweet|sour|bitter|rare|safe|unsafe|healthy|unhealthy|necessary|popular|expensive"
    r"|cheap"
    r"|crucial|vital|essential|round|flat|heavy|light|strong|weak|clear|different|similar|special|unique|yellow"
    r"|orange"
    r"|pink|purple|built|made|born|found|written|held|afraid|alive|awake|angry|happy|sad|tired|sleepy|difficult|able"
    r"|extinct|lonely|slippery|sticky|spicy|cloudy|early|late|long|short|tall|deep|wide|thin|thick|old|young|great)"
    r"|\w{3,}(?:ful|ous|able|ible|less)|\w{4,}(?:ed|ive|ant)"
)
_AFTER_PREDICATE = re.compile(
    r"(?:for|to|in|on|at|by|of|than|as|with|from|after|before|when|during|because|about|and|if|around|near)"
)
_DETERMINERS = re.compile(r"(?:the|a|an|my|your|our|their|his|her|its|some|many|most|all)")
# Verbs that are common in questions about causes.
_VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        appear attract become affect believe bend blow boil bounce break breathe burn buy call cause
        celebrate change chase choose collapse come conduct contain contract cough cry decay
        decrease dissolve dream drink dry eat emit evaporate exist expand explode fade fail fall
        feel fight float flow fly follow form freeze get give glow go grow happen hate have help
        hibernate hurt impact increase influence keep lay lead learn leave lick lie like live look lose love make
        matter melt migrate move need occur orbit play prefer produce purr quit rain raise react
        reflect require rise rotate run rust save see shed shine shrink sing sink sleep smell sneeze
        snore spin spread start stay stick stop study sweat swim take tarnish taste think travel
        turn twinkle use vary vote wag want work yawn
        """,
    )
)


_PAST = {
    **{
        "fall": "fell",
        "become": "became",
        "go": "went",
        "leave": "left",
        "lose": "lost",
        "sink": "sank",
        "rise": "rose",
    },
    **{"happen": "happened", "start": "started", "end": "ended", "fail": "failed", "collapse": "collapsed"},
    **{"change": "changed", "move": "moved", "come": "came", "build": "built", "fight": "fought", "win": "won"},
}


def straighten(question: str) -> str | None:
    """A question without its question word as a statement.

    Args:
        question: It begins with the auxiliary: "do cats purr".

    Returns:
        The statement; None if it is not sure where the subject ends.
    """
    auxiliary, *words = question.split()
    auxiliary = auxiliary.lower()
    if len(words) < 2 or re.fullmatch(r"(?:you|he|she|it|they|there|this|that|these|those)", words[0], re.IGNORECASE):
        return None
    if auxiliary.removesuffix("n't") in ("is", "are", "was", "were"):
        at = _predicate(words)
        return None if at is None else " ".join([*words[:at], auxiliary, *words[at:]])
    at = _verb(words)
    if at is None:
        return None
    if auxiliary == "did":
        past = _PAST.get(words[at].lower())
        return " ".join([*words[:at], past, *words[at + 1 :]]) if past else None
    if auxiliary == "do":
        return " ".join(words)
    if auxiliary == "does":
        return " ".join([*words[:at], _third_person(words[at]), *words[at + 1 :]])
    return " ".join([*words[:at], auxiliary, *words[at:]])


def _predicate(words: list[str]) -> int | None:
    """Where the predicate begins: the first word that can be one, with nothing behind it that it could belong to."""
    for at in range(1, len(words)):
        word = words[at].lower()
        ends = at + 1 == len(words) or _AFTER_PREDICATE.fullmatch(words[at + 1].lower())
        is_adverb = re.fullmatch(
            r"so|too|very|more|less|not|often|always|usually|such|considered|called|known|still|never", word
        )
        starts_noun = _DETERMINERS.fullmatch(word) and not _AFTER_PREDICATE.fullmatch(words[at - 1].lower())
        if starts_noun or is_adverb or (ends and _PREDICATE.fullmatch(word)):
            return at if not _DETERMINERS.fullmatch(words[at - 1].lower()) else None
    return None


def _verb(words: list[str]) -> int | None:
    """Where the verb stands; the subject has at most six words."""
    for at in range(1, min(len(words), 7)):
        if words[at].lower() in _VERBS and not _DETERMINERS.fullmatch(words[at - 1].lower()):
            return at
    return 1 if len(words) == 2 else None


def _third_person(verb: str) -> str:
    if verb == "have":
        return "has"
    if re.search(r"(?:s|sh|ch|x|z|o)$", verb):
        return f"{verb}es"
    return re.sub(r"(?<![aeiou])y$", "ie", verb) + "s"
