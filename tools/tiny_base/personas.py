"""Conversations with chance characters, and the same questions to a model without a character."""

import random
from collections.abc import Mapping

from glmtune.prompts import Conversation, Message
from tiny_base.characters import Persona, random_persona
from tiny_base.grammar import expand, fill, slots
from tiny_base.skills import Exchange, short_skill
from tiny_base.traits import PREFIXES, SMALL_TALK, SYSTEMS, TRAITS, UNKNOWN, Trait
from tiny_base.words import pairs, words

MARKS = ("？", "？", "？", "？", "?", "", "呀？", "呢？", "啊？")
QUESTION_ENDINGS = ("吗", "没有", "呢")
STATEMENT_ENDINGS = ("吧", "啊", "呀", "啦", "了", "听听", "好")
INTRODUCTIONS = ("", "", "", "请扮演下面的角色。", "角色设定：", "请记住你的身份：")
REQUESTS = ("请你扮演一个角色：", "从现在起，", "我们来玩角色扮演。", "请记住：", "假设你是这样的：")
ACCEPTANCES = ("好的，我是{name}。", "没问题，我就是{name}。", "记住了，我叫{name}。")


def persona_conversation(rng: random.Random) -> Conversation:
    """A character, given by a system prompt or by the user's first turn, and some questions to it."""
    persona = random_persona(rng)
    messages = _introduction(persona, rng)
    askable = [*persona.stated, "who"]
    rng.shuffle(askable)
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        kind = rng.random()
        if kind < 0.06:
            question, core = short_skill(rng)
            messages += _turns((question, persona.speak(core.rstrip("。"), rng)))
            continue
        if kind < 0.18:
            trait = rng.choice(SMALL_TALK)
        elif kind < 0.26 or not askable:
            trait = rng.choice(list(TRAITS.values()))
        else:
            trait = TRAITS[askable.pop()]
        messages += _turns((_question_to(persona, trait, rng), _answer(persona, trait, rng)))
    return Conversation(tuple(messages))


def plain_conversation(rng: random.Random) -> Conversation:
    """Questions to a model without a character, with skills in between."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append(Message("system", rng.choice(SYSTEMS)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.1:
            messages += _turns(short_skill(rng))
            continue
        traits = SMALL_TALK if kind < 0.28 else [TRAITS["name"], TRAITS["who"], *TRAITS.values()]
        trait = rng.choice(traits)
        values = {"pet_kind": rng.choice(words("pets")), "workplace": rng.choice(pairs("jobs"))[1]}
        messages += _turns((_question(trait, values, rng), _plain_answer(trait, rng)))
    return Conversation(tuple(messages))


def _turns(exchange: Exchange) -> list[Message]:
    return [Message("user", exchange[0]), Message("assistant", exchange[1])]


def _introduction(persona: Persona, rng: random.Random) -> list[Message]:
    description = persona.describe(rng)
    if rng.random() < 0.8:
        return [Message("system", rng.choice(INTRODUCTIONS) + description)]
    return _turns((rng.choice(REQUESTS) + description, rng.choice(ACCEPTANCES).format(**persona.facts)))


def _question_to(persona: Persona, trait: Trait, rng: random.Random) -> str:
    """A question that mentions only what is known, sometimes with the character's name or title in front."""
    values = {slot: persona.facts[slot] for slot in persona.known_slots()}
    titles = [persona.facts["name"], "老板", "掌柜的"]
    if "job" in persona.stated:
        values["workplace"] = persona.facts["workplace"]
        titles.append(persona.facts["job"])
    vocative = f"{rng.choice(titles)}，" if rng.random() < 0.2 else ""
    return vocative + _question(trait, values, rng)


def _question(trait: Trait, values: Mapping[str, str], rng: random.Random) -> str:
    wordings = [wording for wording in trait.asks if slots(wording) <= set(values)]
    text = fill(rng.choice(wordings), values, rng)
    if rng.random() < 0.1:
        text = text.replace("你", "您")
    if text.endswith(QUESTION_ENDINGS):
        text += rng.choice(("？", "？", "?", ""))
    elif text.endswith(STATEMENT_ENDINGS):
        text += rng.choice(("。", "！", ""))
    else:
        text += rng.choice(MARKS)
    return rng.choice(PREFIXES) + text if rng.random() < 0.2 else text


def _answer(persona: Persona, trait: Trait, rng: random.Random) -> str:
    """The character's answer; where nothing is known, it says so."""
    wordings: list[str] = []
    if trait.key in (*persona.stated, "who", ""):
        wordings = [wording for wording in trait.says if slots(wording) <= persona.known_slots()]
    if wordings:
        return persona.speak(fill(rng.choice(wordings), persona.facts, rng), rng)
    return persona.speak(expand(rng.choice(UNKNOWN), rng), rng)


def _plain_answer(trait: Trait, rng: random.Random) -> str:
    text = rng.choice(trait.plain)
    return text if text.endswith(("。", "！", "？")) else f"{text}。"
