"""Chance characters and conversations with them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.prompts import Conversation, Message
from tiny_base import skills, words
from tiny_base.grammar import expand, fill, slots
from tiny_base.small_talk import SMALL_TALK, TAILS, UNKNOWN
from tiny_base.traits import TRAITS, Trait

PREFIXES = ("请问", "请问，", "想问一下，", "问一下，", "那个，", "对了，", "话说，", "我想知道，", "好奇问一句，", "嗯，", "喂，", "我说，", "哎，", "你好，", "能告诉我吗，")
MARKS = ("？", "？", "？", "？", "?", "", "呀？", "呢？", "啊？")
CLOSED_ENDINGS = ("吗", "吧", "没有", "呢", "啊", "呀", "啦", "了", "听听", "好")
BOND = ("你是一个有用的助手。", "你是一个友好的助手。", "你是一个小小的语言模型。", "请简短地回答问题。", "请用中文回答。", "You are a helpful assistant.")
"""System prompts that give no character."""


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
    address: str = ""
    particle: str = ""
    catchphrase: str = ""

    def known_slots(self) -> set[str]:
        """The slots that answers may use: those which the statements have told."""
        return {slot for key in self.stated for state in TRAITS[key].states for slot in slots(state)}

    def speak(self, core: str, rng: random.Random) -> str:
        """Gives a sentence without end mark the manner of speech."""
        opening = "".join(f"{word}，" for word in (self.catchphrase, self.address) if word)
        tail = rng.choice(TAILS) if rng.random() < 0.15 else ""
        return f"{opening}{core}{self.particle}。{tail}"


def random_hanzi(rng: random.Random, num_characters: int) -> str:
    return "".join(rng.choices(words.COMMON_HANZI, k=num_characters))


def random_name(rng: random.Random) -> str:
    given = "".join(rng.choices(words.NAME_CHARACTERS, k=rng.choice((1, 2, 2, 2))))
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(words.SURNAMES) + given
    if kind < 0.8:
        tail = rng.choice(words.NICKNAME_TAILS) if rng.random() < 0.5 else rng.choice(words.NAME_CHARACTERS)
        return rng.choice(words.NICKNAME_HEADS) + tail
    if kind < 0.9:
        return random_hanzi(rng, rng.choice((2, 3)))
    return rng.choice(words.ENGLISH_NAMES) if kind < 0.94 else given * 2


def random_place(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice(words.CITIES)
    heads = words.PLACE_HEADS if rng.random() < 0.8 else words.COMMON_HANZI
    return rng.choice(heads) + rng.choice(words.PLACE_MIDDLES) + rng.choice(words.PLACE_TAILS)


def random_facts(rng: random.Random) -> dict[str, str]:
    """Values for all slots of all traits."""
    job, workplace = rng.choice(list(words.JOBS.items()))
    heads = words.SHOP_VERBS if rng.random() < 0.8 else words.COMMON_HANZI
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    hobby = rng.choice(words.HOBBIES)
    friend = rng.choice(words.FRIEND_KINDS) if rng.random() < 0.7 else ""
    pet = rng.choice(words.PET_NAMES) if rng.random() < 0.7 else random_hanzi(rng, 2)
    return {
        "name": random_name(rng), "job": job, "workplace": workplace, "home": random_place(rng),
        "shop": rng.choice(heads) + rng.choice(words.SHOP_NOUNS) + workplace,
        "age": str(rng.choice((rng.randint(3, 99), rng.randint(18, 40), rng.randint(100, 999)))),
        "birthday": f"{month}月{day}日" if rng.random() < 0.7 else rng.choice(("中秋节", "元宵节", "端午节", "除夕", "立春", "冬至", "小满", "重阳节", "清明", "谷雨")),
        "family": rng.choice(words.KIN), "teacher": rng.choice(words.ELDERS), "clothes": rng.choice(words.CLOTHES),
        "temper": rng.choice(words.TEMPERS), "maker": random_name(rng) + rng.choice(("", "博士", "教授", "师傅", "先生", "工程师")),
        "drink": rng.choice(words.DRINKS), "food": rng.choice(words.FOODS), "hobby": hobby,
        "colour": rng.choice(words.COLOURS), "season": rng.choice(words.SEASONS), "weather": rng.choice(words.WEATHERS),
        "flower": rng.choice(words.FLOWERS), "book": rng.choice(words.BOOKS), "dislike": rng.choice(words.DISLIKES),
        "fear": rng.choice(words.FEARS), "pet_kind": rng.choice(words.PETS), "pet": pet, "friend": friend + random_name(rng),
        "dream": rng.choice(words.DREAMS), "treasure": rng.choice(words.TREASURES), "music": rng.choice(words.INSTRUMENTS),
        "skill": rng.choice(words.SKILLS), "motto": rng.choice(words.MOTTOES), "open_time": rng.choice(words.TIMES),
        "close_time": rng.choice(words.TIMES), "travel": rng.choice(words.TRAVEL), "price": rng.choice(words.PRICES),
    }  # fmt: skip


def random_persona(rng: random.Random) -> Persona:
    optional = [key for key, trait in TRAITS.items() if trait.states and key not in ("name", "job")]
    stated = ["name", "job"] if rng.random() < 0.8 else ["name"]
    stated += rng.sample(optional, rng.choice((0, 1, 2, 3, 4, 5, 6, 8)))
    return Persona(
        random_facts(rng),
        tuple(stated),
        address=rng.choice(words.ADDRESSES) if rng.random() < 0.35 else "",
        particle=rng.choice(words.PARTICLES) if rng.random() < 0.2 else "",
        catchphrase=rng.choice(words.CATCHPHRASES) if rng.random() < 0.15 else "",
    )


def describe(persona: Persona, rng: random.Random) -> str:
    """The character's statements as one text, in the second person."""
    sentences = [fill(rng.choice(TRAITS[key].states), persona.facts, rng) for key in persona.stated]
    if persona.address:
        sentences.append(expand(f"你(称呼|叫|管)(别人|对方|用户)(叫|)“{persona.address}”", rng))
    if persona.particle:
        sentences.append(expand(f"你(每句话|说话)都(以“{persona.particle}”结尾|带着“{persona.particle}”)", rng))
    if persona.catchphrase:
        sentences.append(expand(f"你(开口|说话)(总是|)先说“{persona.catchphrase}”", rng))
    if rng.random() < 0.3:
        rng.shuffle(sentences)
    joint = rng.choice(("。", "。", "，", "；", "。\n"))
    return joint.join(sentences) + "。"


def ask(trait: Trait, rng: random.Random, values: dict[str, str] | None = None, vocative: str = "") -> str:
    """One wording of a question; `values` fills slots such as the kind of pet."""
    known = set(values or ())
    wordings = [wording for wording in trait.asks if slots(wording) <= known]
    text = fill(rng.choice(wordings), values or {}, rng)
    if rng.random() < 0.1:
        text = text.replace("你", "您")
    if not text.endswith(CLOSED_ENDINGS):
        text += rng.choice(MARKS)
    else:
        text += rng.choice(("？", "？", "?", "")) if text.endswith(("吗", "没有", "呢")) else rng.choice(("。", "！", ""))
    if vocative and rng.random() < 0.2:
        return f"{vocative}，{text}"
    return rng.choice(PREFIXES) + text if rng.random() < 0.25 else text


def answer(trait: Trait, persona: Persona, rng: random.Random) -> str:
    """The character's answer; where nothing is known, it says so."""
    known = persona.known_slots()
    is_known = (not trait.key) or trait.key == "who" or trait.key in persona.stated
    wordings = [w for w in trait.says if slots(w) <= known] if is_known else []
    core = None
    if wordings:
        core = fill(rng.choice(wordings), persona.facts, rng)
    return persona.speak(core or expand(rng.choice(UNKNOWN), rng), rng)


def plain_answer(trait: Trait, rng: random.Random) -> str:
    text = rng.choice(trait.plain)
    return text if text.endswith(("。", "！", "？")) else f"{text}。"


def persona_conversation(rng: random.Random) -> Conversation:
    """A character, given by a system prompt or by the user's first turn, and some questions to it."""
    persona = random_persona(rng)
    description = describe(persona, rng)
    if rng.random() < 0.8:
        messages = [Message("system", rng.choice(("", "", "", "请扮演下面的角色。", "角色设定：", "请记住你的身份：")) + description)]
    else:
        request = rng.choice(("请你扮演一个角色：", "从现在起，", "我们来玩角色扮演。", "请记住：", "假设你是这样的："))
        reply = rng.choice(("好的，我是{name}。", "没问题，我就是{name}。", "记住了，我叫{name}。")).format(**persona.facts)
        messages = [Message("user", request + description), Message("assistant", reply)]
    askable = [key for key in persona.stated if TRAITS[key].asks] + ["who"]
    rng.shuffle(askable)
    known = {slot: value for slot, value in persona.facts.items() if slot in persona.known_slots()}
    if "job" in persona.stated:
        known["workplace"] = persona.facts["workplace"]
    name = persona.facts["name"]
    vocative = rng.choice((name, name, persona.facts["job"] if "job" in persona.stated else name, "老板", "掌柜的"))
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        kind = rng.random()
        if kind < 0.74 and askable:
            trait = TRAITS[askable.pop()]
        elif kind < 0.82:
            trait = rng.choice(list(TRAITS.values()))
        elif kind < 0.94:
            trait = rng.choice(SMALL_TALK)
        else:
            question, core = skills.short_skill(rng)
            messages += [Message("user", question), Message("assistant", persona.speak(core.rstrip("。"), rng))]
            continue
        messages += [Message("user", ask(trait, rng, known, vocative)), Message("assistant", answer(trait, persona, rng))]
    return Conversation(tuple(messages))


def plain_conversation(rng: random.Random) -> Conversation:
    """The same questions to a model without a character, with skills in between."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append(Message("system", rng.choice(BOND)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.72:
            trait = rng.choice((TRAITS["name"], TRAITS["who"], *TRAITS.values()))
            messages += _exchange(ask(trait, rng, _loose_slots(rng)), plain_answer(trait, rng))
        elif kind < 0.9:
            trait = rng.choice(SMALL_TALK)
            messages += _exchange(ask(trait, rng), plain_answer(trait, rng))
        else:
            messages += _exchange(*skills.short_skill(rng))
    return Conversation(tuple(messages))


def _loose_slots(rng: random.Random) -> dict[str, str]:
    return {"pet_kind": rng.choice(words.PETS), "workplace": rng.choice(list(words.JOBS.values()))}


def _exchange(question: str, reply: str) -> Sequence[Message]:
    return Message("user", question), Message("assistant", reply)
