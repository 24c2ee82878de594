"""Chance characters: who they are, how they are described, how they speak."""

import random
from dataclasses import dataclass

from tiny_base.grammar import expand, fill, slots
from tiny_base.traits import TAILS, TRAITS
from tiny_base.words import COMMON_HANZI, hanzi, pairs, words

# Slots whose values are drawn from the list of that name in `words.yaml`.
LIST_OF_SLOT = {
    "family": "kin", "teacher": "elders", "clothes": "clothes", "temper": "tempers", "drink": "drinks",
    "food": "foods", "hobby": "hobbies", "colour": "colours", "season": "seasons", "weather": "weathers",
    "flower": "flowers", "book": "books", "dislike": "dislikes", "fear": "fears", "pet_kind": "pets",
    "dream": "dreams", "treasure": "treasures", "music": "instruments", "skill": "skills", "motto": "mottoes",
    "open_time": "times", "close_time": "times", "travel": "travel", "price": "prices",
}  # fmt: skip


@dataclass(frozen=True)
class Persona:
    """A character: facts by slot, the keys of the traits that are stated, and a manner of speech.

    Attributes:
        facts: Values by slot name.
        stated: Keys of `TRAITS` in the order in which they are stated.
        address: What it calls others, or empty.
        particle: What ends its sentences, or empty.
        catchphrase: What begins its sentences, or empty.
    """

    facts: dict[str, str]
    stated: tuple[str, ...]
    address: str
    particle: str
    catchphrase: str

    def known_slots(self) -> set[str]:
        """The slots that answers may use: those which the statements have told."""
        return {slot for key in self.stated for state in TRAITS[key].states for slot in slots(state)}

    def describe(self, rng: random.Random) -> str:
        """The character's statements as one text, in the second person."""
        sentences = [fill(rng.choice(TRAITS[key].states), self.facts, rng) for key in self.stated]
        if self.address:
            sentences.append(expand(f"你(称呼|叫|管)(别人|对方|用户)(叫|)“{self.address}”", rng))
        if self.particle:
            sentences.append(expand(f"你(每句话|说话)都(以“{self.particle}”结尾|带着“{self.particle}”)", rng))
        if self.catchphrase:
            sentences.append(expand(f"你(开口|说话)(总是|)先说“{self.catchphrase}”", rng))
        if rng.random() < 0.3:
            rng.shuffle(sentences)
        return rng.choice(("。", "。", "，", "；", "。\n")).join(sentences) + "。"

    def speak(self, core: str, rng: random.Random) -> str:
        """Gives a sentence without end mark the manner of speech."""
        opening = "".join(f"{word}，" for word in (self.catchphrase, self.address) if word)
        tail = rng.choice(TAILS) if rng.random() < 0.15 else ""
        return f"{opening}{core}{self.particle}。{tail}"


def random_persona(rng: random.Random) -> Persona:
    """A character of whom a name and some other facts are stated, and whose manner of speech is often plain."""
    optional = [key for key, trait in TRAITS.items() if trait.states and key not in ("name", "job")]
    stated = ["name", "job"] if rng.random() < 0.8 else ["name"]
    stated += rng.sample(optional, rng.choice((0, 1, 2, 3, 4, 5, 6, 8)))
    return Persona(
        facts=_random_facts(rng),
        stated=tuple(stated),
        address=rng.choice(words("addresses")) if rng.random() < 0.35 else "",
        particle=rng.choice(words("particles")) if rng.random() < 0.2 else "",
        catchphrase=rng.choice(words("catchphrases")) if rng.random() < 0.15 else "",
    )


def _random_facts(rng: random.Random) -> dict[str, str]:
    """Values for all slots of all traits."""
    job, workplace = rng.choice(pairs("jobs"))
    verbs = words("shop_verbs") if rng.random() < 0.8 else COMMON_HANZI
    friend_kind = rng.choice(words("friend_kinds")) if rng.random() < 0.7 else ""
    day = f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日"
    return {slot: rng.choice(words(name)) for slot, name in LIST_OF_SLOT.items()} | {
        "name": _random_name(rng),
        "job": job,
        "workplace": workplace,
        "home": _random_place(rng),
        "shop": rng.choice(verbs) + rng.choice(words("shop_nouns")) + workplace,
        "age": str(rng.choice((rng.randint(3, 99), rng.randint(18, 40), rng.randint(100, 999)))),
        "birthday": day if rng.random() < 0.7 else rng.choice(words("festivals")),
        "maker": _random_name(rng) + rng.choice(("", "博士", "教授", "师傅", "先生", "工程师")),
        "pet": rng.choice(words("pet_names")) if rng.random() < 0.7 else hanzi(rng, 2, 2),
        "friend": friend_kind + _random_name(rng),
    }


def _random_name(rng: random.Random) -> str:
    given = "".join(rng.choices(words("name_characters"), k=rng.choice((1, 2, 2, 2))))
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(words("surnames")) + given
    if kind < 0.8:
        tails = words("nickname_tails") if rng.random() < 0.5 else words("name_characters")
        return rng.choice(words("nickname_heads")) + rng.choice(tails)
    if kind < 0.9:
        return hanzi(rng, 2, 3)
    return rng.choice(words("english_names")) if kind < 0.94 else given * 2


def _random_place(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice(words("cities"))
    heads = words("place_heads") if rng.random() < 0.8 else COMMON_HANZI
    return rng.choice(heads) + rng.choice(words("place_middles")) + rng.choice(words("place_tails"))
