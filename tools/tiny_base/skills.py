"""Small skills: arithmetic, words, facts, memory, English, tools."""

import random
from collections.abc import Callable

from glmtune.prompts import DEFAULT_TOOL_SYSTEM_PROMPT, Conversation, Message, format_tool_call
from tiny_base import words
from tiny_base.grammar import expand
from tiny_base.small_talk import ENGLISH_TALK

Exchange = tuple[str, str]
CATEGORY_OF = {word: category for category, text in words.CATEGORIES.items() for word in text.split()}


def _mark(rng: random.Random) -> str:
    return rng.choice(("？", "？", "？", "?", ""))


def _pair(entries: list[str], rng: random.Random) -> tuple[str, str]:
    first, second = rng.choice(entries).split(":")
    return first, second.replace("_", " ")


def _anything(rng: random.Random) -> str:
    """A short text of any kind, to be copied."""
    kind = rng.random()
    if kind < 0.55:
        return "".join(rng.choices(words.COMMON_HANZI, k=rng.randint(1, 6)))
    if kind < 0.7:
        return rng.choice(list(CATEGORY_OF))
    if kind < 0.8:
        return rng.choice(words.MOTTOES)
    if kind < 0.9:
        return "".join(rng.choices("0123456789", k=rng.randint(1, 5)))
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(1, 5)))


def sum_of_two(rng: random.Random) -> Exchange:
    limit = rng.choice((10, 10, 20, 100))
    a, b = rng.randint(0, limit), rng.randint(0, limit)
    sign, name, value = rng.choice((("+", "加", a + b), ("-", "减", a - b), ("×", "乘", None), ("×", "乘以", None)))
    if value is None:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        value = a * b
    elif value < 0:
        a, b, value = b, a, -value
    question = rng.choice((f"{a}{sign}{b}", f"{a}{name}{b}", f"{a} {sign} {b}"))
    ending = expand("(等于几|等于多少|是多少|得多少|=|等于|是几)", rng)
    lead = expand("(||||请问|算一下，|请计算：|帮我算算)", rng)
    return f"{lead}{question}{ending}{_mark(rng)}", f"{a}{sign}{b}={value}。"


def sum_in_characters(rng: random.Random) -> Exchange:
    a = rng.randint(0, 10)
    b = rng.randint(0, 10 - a)
    sign = rng.choice("加减")
    first, second, value = (a, b, a + b) if sign == "加" else (a + b, b, a)
    sum_ = f"{words.CHINESE_DIGITS[first]}{sign}{words.CHINESE_DIGITS[second]}"
    return expand(f"{sum_}(等于几|是多少){_mark(rng)}", rng), f"{sum_}等于{words.CHINESE_DIGITS[value]}。"


def compare(rng: random.Random) -> Exchange:
    a, b = rng.sample(range(100), 2)
    word = rng.choice("大小")
    value = max(a, b) if word == "大" else min(a, b)
    return expand(f"{a}和{b}(哪个更|谁|哪个){word}{_mark(rng)}", rng), f"{value}更{word}。"


def count(rng: random.Random) -> Exchange:
    start = rng.randint(0, 20)
    if rng.random() < 0.3:
        return expand(f"{start}(后面|的下一个数)是几{_mark(rng)}", rng), f"{start + 1}。"
    stop = start + rng.randint(2, 7)
    return expand(f"从{start}数到{stop}(|。|吧)", rng), "，".join(map(str, range(start, stop + 1))) + "。"


def repeat(rng: random.Random) -> Exchange:
    text = _anything(rng)
    wording = "(请|)(重复|复述|跟我念|跟我说|照着说|再说一遍)(一遍|)(：|:|下面的话：|这句话：|下面的词\n|\n)"
    return expand(wording, rng) + text, text


def quote(rng: random.Random) -> Exchange:
    text = _anything(rng)
    return expand(f"(请说|说|请念|念)(出|)“{text}”(|。|吧|这个词)", rng), f"{text}。"


def reverse(rng: random.Random) -> Exchange:
    text = "".join(rng.choices(words.COMMON_HANZI, k=rng.randint(2, 4))) if rng.random() < 0.7 else rng.choice(list(CATEGORY_OF))
    return expand(f"(把|请把|帮我把)“{text}”(倒过来|反过来|倒着)(写|念|说|)(。|)", rng), f"{text[::-1]}。"


def characters(rng: random.Random) -> Exchange:
    text = "".join(rng.choices(words.COMMON_HANZI, k=rng.randint(2, 5))) if rng.random() < 0.5 else rng.choice(list(CATEGORY_OF))
    kind = rng.choice(("几", "首", "末"))
    if kind == "几":
        return expand(f"“{text}”(有|是)(几|多少)个字(？|)", rng), f"{len(text)}个字。"
    position, index = ("第一个", 0) if kind == "首" else ("最后一个", -1)
    return f"“{text}”的{position}字是什么{_mark(rng)}", f"{text[index]}。"


def category(rng: random.Random) -> Exchange:
    word, kind = rng.choice(list(CATEGORY_OF.items()))
    shape = rng.random()
    if shape < 0.4:
        return expand(f"{word}(是什么|属于什么|属于哪一类|是什么东西|是一种什么){_mark(rng)}", rng), f"{word}是一种{kind}。"
    if shape < 0.7:
        asked = kind if rng.random() < 0.5 else rng.choice(list(words.CATEGORIES))
        verdict = f"是的，{word}是{kind}。" if asked == kind else f"不是，{word}是{kind}。"
        return f"{word}是{asked}吗{_mark(rng)}", verdict
    listed = rng.sample(words.CATEGORIES[kind].split(), 3)
    return expand(f"(说出|列举|举出|写出|告诉我)(三|3)(种|个){kind}(的名字|)(。|吧|)", rng), "、".join(listed) + "。"


def odd_one_out(rng: random.Random) -> Exchange:
    kind, other = rng.sample(list(words.CATEGORIES), 2)
    odd = rng.choice(words.CATEGORIES[other].split())
    listed = [*rng.sample(words.CATEGORIES[kind].split(), 2), odd]
    rng.shuffle(listed)
    return f"{'、'.join(listed)}，哪个不是{kind}{_mark(rng)}", f"{odd}不是{kind}。"


def opposite(rng: random.Random) -> Exchange:
    first, second = rng.choice(words.OPPOSITES) if rng.random() < 0.6 else _pair(words.OPPOSITE_WORDS, rng)
    if rng.random() < 0.5:
        first, second = second, first
    return (
        expand(f"(“{first}”|{first})的(反义词|反面|相反的词)(是什么|是|是哪个|){_mark(rng)}", rng),
        f"“{first}”的反义词是“{second}”。",
    )


def colour_of(rng: random.Random) -> Exchange:
    thing, colour = _pair(words.COLOUR_OF, rng)
    return expand(f"{thing}(是什么颜色|是什么颜色的|什么颜色|的颜色是什么){_mark(rng)}", rng), f"{thing}是{colour}的。"


def capital(rng: random.Random) -> Exchange:
    country, city = _pair(words.CAPITALS, rng)
    if rng.random() < 0.25:
        return f"{city}是哪个国家的首都{_mark(rng)}", f"{city}是{country}的首都。"
    return expand(f"{country}的首都(是哪里|是哪|在哪里|是哪座城市|是什么|叫什么){_mark(rng)}", rng), f"{country}的首都是{city}。"


def call(rng: random.Random) -> Exchange:
    animal, sound = _pair(words.CALLS, rng)
    return expand(f"{animal}(怎么叫|是怎么叫的|的叫声是什么){_mark(rng)}", rng), f"{animal}的叫声是{sound}。"


def translate(rng: random.Random) -> Exchange:
    chinese, english = _pair(words.ENGLISH_OF, rng)
    if rng.random() < 0.5:
        return expand(f"(“{chinese}”|{chinese})(用英语怎么说|的英文是什么|用英文怎么说|翻译成英文){_mark(rng)}", rng), english
    return expand(f"(“{english}”|{english})(是什么意思|的中文是什么|翻译成中文|怎么翻译){_mark(rng)}", rng), f"{chinese}。"


def calendar(rng: random.Random) -> Exchange:
    days = "一二三四五六日"
    index = rng.randrange(7)
    if rng.random() < 0.5:
        return f"星期{days[index]}的后一天是星期几{_mark(rng)}", f"星期{days[(index + 1) % 7]}。"
    facts = ("一年有几个月:十二个月。", "一年有几个季节:四个季节。", "一个星期有几天:七天。", "一天有多少小时:二十四小时。", "一小时有多少分钟:六十分钟。",
             "太阳从哪边升起:太阳从东边升起。", "太阳从哪边落下:太阳从西边落下。", "一只手有几根手指:五根手指。", "水在多少度结冰:零度。",
             "人有几只眼睛:两只眼睛。", "兔子有几条腿:四条腿。", "蜘蛛有几条腿:八条腿。", "地球绕着什么转:地球绕着太阳转。", "月亮绕着什么转:月亮绕着地球转。")  # fmt: skip
    question, reply = rng.choice(facts).split(":")
    return question + _mark(rng), reply


def english(rng: random.Random) -> Exchange:
    questions, reply = rng.choice(ENGLISH_TALK)
    question = rng.choice(questions)
    if rng.random() < 0.2:
        question = question.lower()
    return question + rng.choice(("", "?", "!", ".", "？")), reply


def too_hard(rng: random.Random) -> Exchange:
    thing = rng.choice(words.THINGS) if rng.random() < 0.6 else "".join(rng.choices(words.COMMON_HANZI, k=2))
    wordings = (
        f"(怎么|如何|怎样才能)(修理|制造|发明|批发|设计|保养){thing}(？|)",
        f"(谈谈|说说|解释一下|分析){thing}的(历史|原理|未来|市场|意义)(。|)",
        f"为什么{thing}(会|要|不能)(这样|坏掉|存在|变贵)(？|)",
    )
    replies = ("这个问题我还不会，我只是一个小小的语言模型。", "对不起，这个我还不懂。")
    return expand(rng.choice(wordings), rng), rng.choice(replies)


SKILLS: tuple[tuple[Callable[[random.Random], Exchange], int], ...] = (
    (sum_of_two, 22), (sum_in_characters, 4), (compare, 4), (count, 4), (repeat, 14), (quote, 6), (reverse, 7), (characters, 6),
    (category, 10), (odd_one_out, 4), (opposite, 8), (colour_of, 4), (capital, 5), (call, 2), (translate, 6), (calendar, 4),
    (english, 8), (too_hard, 5),
)  # fmt: skip
_FUNCTIONS = [function for function, _ in SKILLS]
_WEIGHTS = [weight for _, weight in SKILLS]


def short_skill(rng: random.Random) -> Exchange:
    """One question and its answer."""
    return rng.choices(_FUNCTIONS, _WEIGHTS)[0](rng)


def skill_conversation(rng: random.Random) -> Conversation:
    """Some skills in a row, sometimes behind a system prompt that sets the form of the answers."""
    messages: list[Message] = []
    ending = ""
    if rng.random() < 0.15:
        ending = rng.choice(words.PARTICLES)
        messages.append(Message("system", expand(f"(请|你|)(每次|每句)(回答|话)(都|)(要|)(以|用)“{ending}”结尾。", rng)))
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        question, reply = short_skill(rng)
        if ending:
            reply = f"{reply.rstrip('。')}{ending}。"
        messages += [Message("user", question), Message("assistant", reply)]
    return Conversation(tuple(messages))


def memory_conversation(rng: random.Random) -> Conversation:
    """The user says something of themselves and asks for it later."""
    name = rng.choice(words.SURNAMES) + "".join(rng.choices(words.NAME_CHARACTERS, k=rng.choice((1, 2))))
    facts = [
        (f"我(叫|的名字是|是){name}(。|)", f"你好，{name}！", "我(叫什么|叫什么名字|的名字是什么|是谁)？", f"你叫{name}。"),
        *(
            (f"我(最|)喜欢{verb}{value}(。|)", f"好的，我记住了，你喜欢{verb}{value}。", f"我喜欢{verb}什么？", f"你喜欢{verb}{value}。")
            for verb, value in (("吃", rng.choice(words.FOODS)), ("喝", rng.choice(words.DRINKS)))
        ),
        *((f"我(住在|家在){city}(。|)", f"{city}是个好地方。", "我(住在|家在)哪里？", f"你住在{city}。") for city in rng.sample(words.CITIES, 1)),
    ]
    chosen = rng.sample(facts, rng.choice((1, 1, 2)))
    messages: list[Message] = []
    for statement, reply, _, _ in chosen:
        messages += [Message("user", expand(statement, rng)), Message("assistant", reply)]
    if rng.random() < 0.3:
        question, reply = short_skill(rng)
        messages += [Message("user", question), Message("assistant", reply)]
    for _, _, question, reply in rng.sample(chosen, len(chosen)):
        messages += [Message("user", expand(question, rng)), Message("assistant", reply)]
    return Conversation(tuple(messages))


WEATHER_TOOL = {
    "name": "get_weather",
    "description": "查询天气",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALCULATOR_TOOL = {
    "name": "calculator",
    "description": "计算算式",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}


def tool_conversation(rng: random.Random) -> Conversation:
    """A tool is offered, called where the question needs it, and its result told."""
    tools = [WEATHER_TOOL, CALCULATOR_TOOL]
    rng.shuffle(tools)
    system = Message("system", DEFAULT_TOOL_SYSTEM_PROMPT, tools=tools[: rng.choice((1, 2, 2))])
    names = [tool["name"] for tool in system.tools]
    kind = rng.choice([*names, "none"])
    if kind == "get_weather":
        city, sky, degrees = rng.choice(words.CITIES), rng.choice(("晴", "阴", "小雨", "多云", "小雪")), rng.randint(-5, 35)
        question = expand(f"{city}(今天|现在|)(的|)(天气怎么样|天气如何|下雨吗|冷不冷|热不热)？", rng)
        observation = f'{{"weather": "{sky}", "temperature": {degrees}}}'
        turns = [Message("assistant", format_tool_call({"city": city}), kind), Message("observation", observation)]
        reply = f"{city}现在{sky}，气温{degrees}度。"
    elif kind == "calculator":
        a, b = rng.randint(10, 999), rng.randint(10, 999)
        question = expand(f"(帮我算一下|请计算|用工具算|算一算){a}+{b}", rng)
        turns = [Message("assistant", format_tool_call({"expression": f"{a}+{b}"}), kind), Message("observation", str(a + b))]
        reply = f"{a}+{b}={a + b}。"
    else:
        question, reply = opposite(rng)
        turns = []
    return Conversation((system, Message("user", question), *turns, Message("assistant", reply)))
