"""Conversations that are about something: skills in a row, what the user has said of themselves, tools."""

import random

from glmtune.prompts import DEFAULT_TOOL_SYSTEM_PROMPT, Conversation, Message, format_tool_call
from tiny_base.grammar import expand
from tiny_base.skills import Exchange, opposite, short_skill
from tiny_base.words import words


def skill_conversation(rng: random.Random) -> Conversation:
    """Some skills in a row, sometimes behind a system prompt that sets how answers end."""
    messages: list[Message] = []
    ending = ""
    if rng.random() < 0.15:
        ending = rng.choice(words("particles"))
        system = f"(请|你|)(每次|每句)(回答|话)(都|)(要|)(以|用)“{ending}”结尾。"
        messages.append(Message("system", expand(system, rng)))
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        question, reply = short_skill(rng)
        if ending:
            reply = f"{reply.rstrip('。')}{ending}。"
        messages += _turns((question, reply))
    return Conversation(tuple(messages))


def memory_conversation(rng: random.Random) -> Conversation:
    """The user says something of themselves and asks for it later."""
    chosen = rng.sample(_user_facts(rng), rng.choice((1, 1, 2)))
    exchanges = [told for told, _ in chosen]
    if rng.random() < 0.3:
        exchanges.append(short_skill(rng))
    exchanges += [asked for _, asked in rng.sample(chosen, len(chosen))]
    return Conversation(tuple(message for exchange in exchanges for message in _turns(exchange)))


def tool_conversation(rng: random.Random) -> Conversation:
    """A tool is offered, called where the question needs it, and its result told."""
    tools = rng.sample(TOOLS, rng.choice((1, 2, 2)))
    system = Message("system", DEFAULT_TOOL_SYSTEM_PROMPT, tools=tools)
    kind = rng.choice([*(tool["name"] for tool in tools), "none"])
    if kind == "none":
        return Conversation((system, *_turns(opposite(rng))))
    make = _weather_call if kind == "get_weather" else _sum_call
    question, arguments, observation, reply = make(rng)
    return Conversation(
        (
            system,
            Message("user", question),
            Message("assistant", format_tool_call(arguments), kind),
            Message("observation", observation),
            Message("assistant", reply),
        )
    )


TOOLS = [
    {
        "name": "get_weather",
        "description": "查询天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {
        "name": "calculator",
        "description": "计算算式",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
]


def _turns(exchange: Exchange) -> list[Message]:
    return [Message("user", exchange[0]), Message("assistant", exchange[1])]


def _user_facts(rng: random.Random) -> list[tuple[Exchange, Exchange]]:
    """For each fact, the exchange in which it is told and the one in which it is asked for."""
    name = rng.choice(words("surnames")) + "".join(rng.choices(words("name_characters"), k=rng.choice((1, 2))))
    city, food, drink = (rng.choice(words(kind)) for kind in ("cities", "foods", "drinks"))
    told = (
        (f"我(叫|的名字是|是){name}(。|)", f"你好，{name}！"),
        (f"我(住在|家在){city}(。|)", f"{city}是个好地方。"),
        (f"我(最|)喜欢吃{food}(。|)", f"好的，我记住了，你喜欢吃{food}。"),
        (f"我(最|)喜欢喝{drink}(。|)", f"好的，我记住了，你喜欢喝{drink}。"),
    )
    asked = (
        ("我(叫什么|叫什么名字|的名字是什么|是谁)？", f"你叫{name}。"),
        ("我(住在|家在)哪里？", f"你住在{city}。"),
        ("我(最|)喜欢吃什么？", f"你喜欢吃{food}。"),
        ("我(最|)喜欢喝什么？", f"你喜欢喝{drink}。"),
    )
    return [
        ((expand(statement, rng), confirmation), (expand(question, rng), reply))
        for (statement, confirmation), (question, reply) in zip(told, asked, strict=True)
    ]


def _weather_call(rng: random.Random) -> tuple[str, dict[str, str], str, str]:
    city = rng.choice(words("cities"))
    sky, degrees = rng.choice(("晴", "阴", "小雨", "多云", "小雪")), rng.randint(-5, 35)
    question = expand(f"{city}(今天|现在|)(的|)(天气怎么样|天气如何|下雨吗|冷不冷|热不热)？", rng)
    observation = f'{{"weather": "{sky}", "temperature": {degrees}}}'
    return question, {"city": city}, observation, f"{city}现在{sky}，气温{degrees}度。"


def _sum_call(rng: random.Random) -> tuple[str, dict[str, str], str, str]:
    a, b = rng.randint(10, 999), rng.randint(10, 999)
    question = expand(f"(帮我算一下|请计算|用工具算|算一算){a}+{b}", rng)
    return question, {"expression": f"{a}+{b}"}, str(a + b), f"{a}+{b}={a + b}。"
