"""Rows from templates, as many as wanted, to measure data tools with: questions that differ, and some that do not."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

_SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜戚谢邹喻柏水窦章云苏潘葛奚范彭郎"
_GIVEN = "子涵一诺思远梓萱浩然雨桐宇轩欣怡俊杰佳琪文博可馨明哲若曦天佑语嫣嘉懿梦瑶志强美玲建国秀英"
_CITIES = (
    "北京",
    "上海",
    "广州",
    "成都",
    "杭州",
    "西安",
    "南京",
    "武汉",
    "重庆",
    "苏州",
    "青岛",
    "长沙",
    "昆明",
    "厦门",
)
_TRADES = (
    "木匠",
    "老师",
    "医生",
    "厨师",
    "裁缝",
    "司机",
    "画家",
    "记者",
    "律师",
    "护士",
    "农民",
    "工程师",
    "导游",
    "警察",
)
_THINGS = (
    "茶",
    "瓷器",
    "丝绸",
    "豆腐",
    "雨伞",
    "风筝",
    "毛笔",
    "剪纸",
    "桂花糕",
    "年画",
    "竹编",
    "漆器",
    "扇子",
    "米酒",
)
_QUESTIONS = (
    "{city}的{thing}好在哪里？",
    "{name}今年{age}岁，能做{trade}吗？",
    "{name}是{city}的{trade}，今年{age}岁，每月收入{money}元，他该怎么安排自己的开支？",
    "请介绍一下{city}的{thing}，并说说{name}为什么喜欢它。",
    "把下面的句子改写得更通顺：{name}在{city}做{trade}已经有{age}年了，卖过{money}件{thing}，街坊们没有一个不认得他这个人的。",
    "{name}想在{city}开一家卖{thing}的店，预算{money}元，有什么建议？",
    "计算：{money} 加 {age} 再乘以 {number} 等于多少？",
    "写一首关于{city}{thing}的短诗，送给{age}岁的{name}。",
    "{city}的{trade}{name}给客人写信，订单号{number}，请替他写一个开头，要客气，但不要太长。",
)
_SENTENCES = (
    "{name}可以先把{money}元分成三份：生活、储蓄和学习；{age}岁的{trade}在{city}生活，最要紧的是量入为出。",
    "说到{city}，人们常常想起{thing}。",
    "{name}从小看着长辈做{thing}，一做就是{age}年，自然喜欢。",
    "在{city}，{name}当了{age}年{trade}，前后卖出{money}件{thing}，街坊都认得他，编号{number}。",
    "建议先租一间小铺，{money}元里留出一半作周转；{thing}要选{city}本地的，再找一位懂行的{trade}帮忙。",
    "{age}岁不算晚，许多{trade}都是这个年纪才入行的，何况{city}一直缺人手。",
    "做{thing}要有耐心，一天做不完就两天，{name}的师傅常这样说。",
    "如果手头紧，可以先从{city}郊外的集市摆起，一个月{money}元的流水并不难。",
    "来信请注明编号{number}，{trade}会在三天之内回复。",
    "总之，{thing}虽小，里面却有{city}人几百年的心思。",
)
_MOST_SENTENCES = 7


def make_rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Rows of instruction, input and output; one in a hundred is an earlier one with a slip of the pen."""
    draw = random.Random(seed)
    kept: list[dict[str, str]] = []
    for number in range(count):
        if kept and draw.random() < 0.01:
            row = draw.choice(kept)
            place = draw.randrange(1, len(row["instruction"]))
            yield {**row, "instruction": row["instruction"][:place] + row["instruction"][place - 1 :]}
            continue
        values = {
            "name": draw.choice(_SURNAMES) + "".join(draw.choices(_GIVEN, k=2)),
            "city": draw.choice(_CITIES),
            "trade": draw.choice(_TRADES),
            "thing": draw.choice(_THINGS),
            "age": draw.randrange(18, 90),
            "money": draw.randrange(100, 100_000),
            "number": draw.randrange(10**6, 10**7),
        }
        row = {
            "instruction": draw.choice(_QUESTIONS).format(**values),
            "input": "",
            "output": "".join(draw.sample(_SENTENCES, draw.randint(1, _MOST_SENTENCES))).format(**values),
        }
        if number % 1000 == 0:
            kept.append(row)
        yield row


def write_rows(file: Path, count: int) -> None:
    """Writes a file of JSON lines."""
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows(count))
