"""Without these, a question that was copied with a slip of the pen would count as another one."""

import random

import pytest
from benchmarks.small_edits import EDITS

from glmtune.data.duplicates.near import grouped, near_pairs, similarity
from glmtune.data.duplicates.normal_form import bare_form, normal_form

QUESTIONS = (
    "杭州的西湖在哪里，从火车站过去怎么走最方便？",
    "请用一句话说明为什么秋天的树叶会变黄。",
    "帮我给老板写一封请假的邮件，理由是家里有事。",
    "小明有十二个苹果，分给三个同学，每人几个？",
    "你能推荐几本适合初学者的编程书吗？",
)


@pytest.mark.parametrize("kind", EDITS)
def test_a_small_edit_is_found_among_others(kind):
    draw = random.Random(0)
    texts = [normal_form(text) for text in (*QUESTIONS, *(EDITS[kind](text, draw) for text in QUESTIONS))]
    number = len(QUESTIONS)
    assert list(near_pairs(texts, 0.7)) == [(row, row + number) for row in range(number)]


def test_every_similar_pair_is_found_and_no_other():
    draw = random.Random(1)
    texts = ["".join(draw.choices("天地玄黄宇宙", k=6)) for _ in range(400)]
    expected = [
        (one, other)
        for one in range(len(texts))
        for other in range(one + 1, len(texts))
        if similarity(texts[one], texts[other]) >= 0.8
    ]
    assert len(expected) > 20
    assert list(near_pairs(texts, 0.8)) == expected


def test_many_texts_that_are_alike_are_connected():
    texts = ["同一个问题"] * 100 + ["另外一件事情"]
    assert grouped(near_pairs(texts), len(texts)) == [0] * 100 + [100]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("请问怎样退货？", "怎么退货"),
        ("如何退貨呢？？", "怎么退货？"),
        ("ＡＩ是什么", "ai 是什么？"),
        ("请告诉我您的名字，谢谢！", "你的名字"),
        ("一年有几个月", "1年有几个月？"),
    ],
)
def test_the_same_question_in_other_words(one, other):
    assert bare_form(one) == bare_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1+1等于几？", "1-1等于几？"),
        ("怎样退货？", "怎样换货？"),
        ("为什么天是蓝的？", "为什么天不是蓝的？"),
        ("一个人有几只手？", "一个人有几只脚？"),
        ("……", "？"),
    ],
)
def test_other_questions_stay_apart(one, other):
    assert bare_form(one) != bare_form(other)
    assert normal_form(one) != normal_form(other)
