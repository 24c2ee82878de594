"""Small skills, a question and its answer each: arithmetic, copying, words, facts, English."""

import random
from collections.abc import Callable, Sequence

from tiny_base.grammar import expand
from tiny_base.traits import ENGLISH_TALK
from tiny_base.words import CATEGORIES, CATEGORY_OF, CHINESE_DIGITS, hanzi, pairs, words

Exchange = tuple[str, str]
"""What the user says and what the assistant replies."""

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def short_skill(rng: random.Random) -> Exchange:
    """One question and its answer."""
    return rng.choices(_FUNCTIONS, _WEIGHTS)[0](rng)


def _mark(rng: random.Random) -> str:
    return rng.choice(("？", "？", "？", "?", ""))


def _word(rng: random.Random) -> str:
    return rng.choice(list(CATEGORY_OF))


def _some(characters: Sequence[str], rng: random.Random) -> str:
    return "".join(rng.choices(characters, k=rng.randint(1, 5)))


def _anything(rng: random.Random) -> str:
    """A short text of any kind, to be copied."""
    kind = rng.random()
    if kind < 0.55:
        return hanzi(rng, 1, 6)
    if kind < 0.7:
        return _word(rng)
    if kind < 0.8:
        return rng.choice(words("mottoes"))
    return _some(DIGITS if kind < 0.9 else LETTERS, rng)


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
    sum_ = f"{CHINESE_DIGITS[first]}{sign}{CHINESE_DIGITS[second]}"
    return expand(f"{sum_}(等于几|是多少){_mark(rng)}", rng), f"{sum_}等于{CHINESE_DIGITS[value]}。"


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
    text = hanzi(rng, 2, 4) if rng.random() < 0.7 else _word(rng)
    return expand(f"(把|请把|帮我把)“{text}”(倒过来|反过来|倒着)(写|念|说|)(。|)", rng), f"{text[::-1]}。"


def characters(rng: random.Random) -> Exchange:
    text = hanzi(rng, 2, 5) if rng.random() < 0.5 else _word(rng)
    if rng.random() < 0.33:
        return expand(f"“{text}”(有|是)(几|多少)个字(？|)", rng), f"{len(text)}个字。"
    position, index = rng.choice((("第一个", 0), ("最后一个", -1)))
    return f"“{text}”的{position}字是什么{_mark(rng)}", f"{text[index]}。"


def category(rng: random.Random) -> Exchange:
    word, kind = rng.choice(list(CATEGORY_OF.items()))
    shape = rng.random()
    if shape < 0.4:
        question = expand(f"{word}(是什么|属于什么|属于哪一类|是什么东西|是一种什么){_mark(rng)}", rng)
        return question, f"{word}是一种{kind}。"
    if shape < 0.7:
        asked = kind if rng.random() < 0.5 else rng.choice(list(CATEGORIES))
        verdict = "是的" if asked == kind else "不是"
        return f"{word}是{asked}吗{_mark(rng)}", f"{verdict}，{word}是{kind}。"
    question = expand(f"(说出|列举|举出|写出|告诉我)(三|3)(种|个){kind}(的名字|)(。|吧|)", rng)
    return question, "、".join(rng.sample(CATEGORIES[kind], 3)) + "。"


def odd_one_out(rng: random.Random) -> Exchange:
    kind, other = rng.sample(list(CATEGORIES), 2)
    odd = rng.choice(CATEGORIES[other])
    listed = [*rng.sample(CATEGORIES[kind], 2), odd]
    rng.shuffle(listed)
    return f"{'、'.join(listed)}，哪个不是{kind}{_mark(rng)}", f"{odd}不是{kind}。"


def opposite(rng: random.Random) -> Exchange:
    first, second = rng.choice(words("opposites")) if rng.random() < 0.6 else rng.choice(pairs("opposite_words"))
    if rng.random() < 0.5:
        first, second = second, first
    asks = "的(反义词|反面|相反的词)(是什么|是|是哪个|)"
    return expand(f"(“{first}”|{first}){asks}{_mark(rng)}", rng), f"“{first}”的反义词是“{second}”。"


def colour_of(rng: random.Random) -> Exchange:
    thing, colour = rng.choice(pairs("colour_of"))
    return expand(f"{thing}(是什么颜色|是什么颜色的|什么颜色|的颜色是什么){_mark(rng)}", rng), f"{thing}是{colour}的。"


def capital(rng: random.Random) -> Exchange:
    country, city = rng.choice(pairs("capitals"))
    if rng.random() < 0.25:
        return f"{city}是哪个国家的首都{_mark(rng)}", f"{city}是{country}的首都。"
    asks = "(是哪里|是哪|在哪里|是哪座城市|是什么|叫什么)"
    return expand(f"{country}的首都{asks}{_mark(rng)}", rng), f"{country}的首都是{city}。"


def call(rng: random.Random) -> Exchange:
    animal, sound = rng.choice(pairs("calls"))
    return expand(f"{animal}(怎么叫|是怎么叫的|的叫声是什么){_mark(rng)}", rng), f"{animal}的叫声是{sound}。"


def translate(rng: random.Random) -> Exchange:
    chinese, english = rng.choice(pairs("english_of"))
    if rng.random() < 0.5:
        asks = "(用英语怎么说|的英文是什么|用英文怎么说|翻译成英文)"
        return expand(f"(“{chinese}”|{chinese}){asks}{_mark(rng)}", rng), english
    asks = "(是什么意思|的中文是什么|翻译成中文|怎么翻译)"
    return expand(f"(“{english}”|{english}){asks}{_mark(rng)}", rng), f"{chinese}。"


def calendar(rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        question, reply = rng.choice(pairs("common_knowledge"))
        return question + _mark(rng), f"{reply}。"
    days = "一二三四五六日"
    index = rng.randrange(7)
    return f"星期{days[index]}的后一天是星期几{_mark(rng)}", f"星期{days[(index + 1) % 7]}。"


def english(rng: random.Random) -> Exchange:
    questions, reply = rng.choice(ENGLISH_TALK)
    question = rng.choice(questions)
    if rng.random() < 0.2:
        question = question.lower()
    return question + rng.choice(("", "?", "!", ".", "？")), reply


def too_hard(rng: random.Random) -> Exchange:
    thing = rng.choice(words("things")) if rng.random() < 0.6 else hanzi(rng, 2, 2)
    wordings = (
        f"(怎么|如何|怎样才能)(修理|制造|发明|批发|设计|保养){thing}(？|)",
        f"(谈谈|说说|解释一下|分析){thing}的(历史|原理|未来|市场|意义)(。|)",
        f"为什么{thing}(会|要|不能)(这样|坏掉|存在|变贵)(？|)",
    )
    replies = ("这个问题我还不会，我只是一个小小的语言模型。", "对不起，这个我还不懂。")
    return expand(rng.choice(wordings), rng), rng.choice(replies)


_SKILLS: dict[Callable[[random.Random], Exchange], int] = {
    sum_of_two: 22,
    sum_in_characters: 4,
    compare: 4,
    count: 4,
    repeat: 14,
    quote: 6,
    reverse: 7,
    characters: 6,
    category: 10,
    odd_one_out: 4,
    opposite: 8,
    colour_of: 4,
    capital: 5,
    call: 2,
    translate: 6,
    calendar: 4,
    english: 8,
    too_hard: 5,
}
_FUNCTIONS, _WEIGHTS = list(_SKILLS), list(_SKILLS.values())
