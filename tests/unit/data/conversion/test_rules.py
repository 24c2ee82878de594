"""Without these, converting a data set could change what its rows ask, or lose a part of it."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from glmtune.data.conversion.grammar_en import ENGLISH
from glmtune.data.conversion.grammar_zh import CHINESE
from glmtune.data.conversion.matching import join_parts, split_question

HERE = Path(__file__).parent
SENTENCES_BY_RULE = yaml.safe_load((HERE / "sentences.yaml").read_text(encoding="utf-8"))
SENTENCES = [sentence for sentences in SENTENCES_BY_RULE.values() for sentence in sentences]
LEFT = yaml.safe_load((HERE / "left.yaml").read_text(encoding="utf-8"))
FOREIGN = yaml.safe_load((HERE / "foreign.yaml").read_text(encoding="utf-8"))
TEXTS = [
    "今天下雨了。",
    "他说：“明天见！”\n然后走了",
    "    for i in range(3):\n        print(i)",
    "a: b\nc: d",
    "12:30 开会；https://example.com/a?b=c",
    "The cat sat on the mat. It was happy.",
    "“引号”",
    "请把下面的句子翻译成英文：我",
    "😀 \u3000全角",
]
THINGS = ["光合作用", "相对论", "《红楼梦》", "阿司匹林", "杭州", "C++", "machine learning", "大语言模型的幻觉"]


def letters(text: str) -> Counter[str]:
    return Counter(re.sub(r"[\s。．.？?！!：:，,；;“”\"「」『』‘’']", "", text))


# One test for all sentences of a rule: a failure names the sentence.
by_rule = pytest.mark.parametrize("rule", SENTENCES_BY_RULE)


@by_rule
def test_a_question_becomes_what_a_careful_person_makes_of_it(rule: str) -> None:
    for sentence in SENTENCES_BY_RULE[rule]:
        parts = split_question(sentence["question"])
        assert parts is not None, sentence
        assert (parts.rule, parts.task, parts.object) == (rule, sentence["instruction"], sentence["input"])


@by_rule
def test_the_parts_become_a_question_again_and_the_same_parts(rule: str) -> None:
    for sentence in SENTENCES_BY_RULE[rule]:
        joined = join_parts(sentence["instruction"], sentence["input"])
        assert joined is not None, sentence
        assert joined[1] == sentence.get("again", sentence["question"])
        parts = split_question(joined[1])
        assert parts is not None, sentence
        assert (parts.task, parts.object) == (sentence["instruction"], sentence["input"])
        assert join_parts(parts.task, parts.object) == joined


@by_rule
def test_no_letter_of_the_object_is_lost_or_made_up(rule: str) -> None:
    for sentence in SENTENCES_BY_RULE[rule]:
        missing = letters(sentence["input"]) - letters(sentence["question"])
        assert sum(missing.values()) <= 4, f"only an auxiliary or a 的 may move: {sentence}"
        assert letters(sentence["input"]) <= letters(join_parts(sentence["instruction"], sentence["input"])[1])


def test_what_merely_contains_the_words_is_left() -> None:
    assert [question for question in LEFT if split_question(question) is not None] == []


def test_what_others_wrote_is_converted_or_left_undamaged() -> None:
    for sentence in FOREIGN:
        if sentence["direction"] == "to_instruction":
            parts = split_question(sentence["text"])
            found = parts and (parts.task, parts.object)
        else:
            joined = join_parts(sentence["text"], sentence["input"]) if sentence["input"].strip() else None
            found = joined and (joined[1], joined[1])
        if "objects" not in sentence:
            assert found is None, sentence
            continue
        assert found is not None, sentence
        task, object = found
        assert [each for each in sentence["objects"] if each not in object] == [], sentence
        assert any(word in task for word in sentence["task_words"]), sentence


@pytest.mark.parametrize(
    ("question", "task", "object"),
    [
        ("写一篇关于环保的作文，不少于800字。", "请写一篇关于下面主题的作文，不少于800字。", "环保"),
        ("简述TCP和UDP的区别，用表格列出。", "请解释下面两者之间的区别，用表格列出。", "TCP和UDP。"),
        ("如何提高专注力？请给出具体建议", "请说明怎样做下面的事情，请给出具体建议。", "提高专注力"),
        (
            "Summarize the plot of Hamlet in three sentences.",
            "Summarize the plot of the following in three sentences.",
            "Hamlet",
        ),
        ("Write a poem about rain. Make it rhyme.", "Write a poem about the following topic. Make it rhyme.", "rain"),
        (
            "Write a SQL query to find duplicates in a table",
            "Write a SQL query to do the following.",
            "find duplicates in a table",
        ),
    ],
)
def test_a_condition_belongs_to_the_task_and_not_to_the_object(question: str, task: str, object: str) -> None:
    parts = split_question(question)
    assert parts is not None
    assert (parts.task, parts.object) == (task, object)
    joined = join_parts(task, object)
    assert joined is not None
    assert split_question(joined[1]) == parts


def test_every_rule_is_tried_on_five_sentences() -> None:
    assert set(SENTENCES_BY_RULE) == {rule.name for rule in (*CHINESE.rules, *ENGLISH.rules)}
    assert len(SENTENCES_BY_RULE) >= 20
    assert {rule: sentences for rule, sentences in SENTENCES_BY_RULE.items() if len(sentences) < 5} == {}


@by_rule
def test_politeness_and_punctuation_do_not_matter(rule: str) -> None:
    """Nor do they for the instruction, but for a 请 that may come to stand before it."""
    for sentence in SENTENCES_BY_RULE[rule]:
        question = sentence["question"]
        if "\n" in question or re.match(r"请|你好|麻烦|可以|能|帮|你|我|Please|Could|Can", question):
            continue
        is_chinese = re.search(r"[\u4e00-\u9fff]", question)
        for polite in ("你好，{}", "请问{}") if is_chinese else ("Hello, {}", "Please {}"):
            asked = polite.format(question if is_chinese else question[0].lower() + question[1:])
            parts = split_question(asked)
            assert parts is not None, asked
            assert parts.object == sentence["input"]
            assert parts.task.removeprefix("请").lower() == sentence["instruction"].removeprefix("请").lower()


def test_any_text_goes_through_every_command_unharmed() -> None:
    """Seeded: every task of the sentences that stands before its text, with texts that look like tasks themselves."""
    draw = random.Random(0)
    tasks = [sentence["instruction"] for sentence in SENTENCES if _precedes_its_text(sentence)]
    num_converted = 0
    for task in tasks:
        for text in draw.sample(TEXTS, 4):
            joined = join_parts(task, text)
            if joined is None:
                continue
            num_converted += 1
            parts = split_question(joined[1])
            assert parts is not None
            assert (parts.task, parts.object) == (task, text)
            assert join_parts(parts.task, parts.object) == joined
    assert num_converted > 0.9 * 4 * len(tasks)


def _precedes_its_text(sentence) -> bool:
    joined = join_parts(sentence["instruction"], sentence["input"])[1]
    return joined.startswith(sentence["instruction"].rstrip("。.？?")) and joined.endswith(sentence["input"])


def test_any_thing_goes_through_every_form_unharmed() -> None:
    """Seeded: every question that names its object, with other objects in its place."""
    draw = random.Random(1)
    num_converted = num_tried = 0
    for sentence in (each for rule in SENTENCES_BY_RULE if rule != "compute" for each in SENTENCES_BY_RULE[rule]):
        object = sentence["input"].rstrip("。")
        if _precedes_its_text(sentence) or sentence["question"].count(object) != 1:
            continue
        for thing in draw.sample(THINGS, 3):
            num_tried += 1
            parts = split_question(sentence["question"].replace(object, thing))
            if parts is None:
                continue
            num_converted += 1
            question = join_parts(parts.task, parts.object)
            assert question is not None
            assert split_question(question[1]) == parts
            assert join_parts(parts.task, parts.object) == question
    assert num_converted > 0.6 * num_tried


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ("VC银翘片和双黄连口服液有什么区别？", "请解释下面两个药品之间的区别。"),
        ("照片和双黄连口服液有什么区别？", "请解释下面两者之间的区别。"),
        ("图片和动画片有什么区别？", "请解释下面两者之间的区别。"),
        ("北京、上海和广州有什么区别？", "请解释下面三个城市之间的区别。"),
        ("Python和杭州有什么区别？", "请解释下面两者之间的区别。"),
        ("和平与战争的区别是什么？", "请解释下面两者之间的区别。"),
        (
            "What is the difference between apples and pears?",
            "Explain the difference between the following two fruits.",
        ),
        ("What is the difference between apples and cars?", "Explain the difference between the following two."),
    ],
)
def test_the_kind_of_thing_is_named_only_if_all_are_of_it(question: str, task: str) -> None:
    parts = split_question(question)
    assert parts is not None
    assert parts.task == task


@pytest.mark.parametrize(
    ("task", "object"),
    [
        ("请解释下面两者之间的区别。", "北京和上海"),
        ("请把下面的句子翻译成英文", "你好"),
        ("Translate to French", "Hello"),
        ("Summarize the article", "Once upon a time\nthere was a fox."),
        ("Classify the text into one of these categories: sports, politics.", "The team won."),
        ("请帮我把下面的句子翻译成英文，谢谢！", "你好"),
        ("判断下列说法是否正确", "1: 2"),
        ("Given the following context, answer the question.", "Context: a\nQuestion: b"),
    ],
)
def test_instructions_as_people_write_them_become_questions(task: str, object: str) -> None:
    joined = join_parts(task, object)
    assert joined is not None
    parts = split_question(joined[1])
    assert parts is not None
    assert parts.object.rstrip("。") == object.rstrip("。")


@pytest.mark.parametrize(
    ("task", "object"),
    [
        ("你是一个诗人。", "春天"),
        ("娘娘。", "皇上"),
        ("今天天气很好", "我们去公园吧"),
        ("Good morning", "Tom"),
        ("", "x"),
    ],
)
def test_instructions_that_no_rule_knows_are_left(task: str, object: str) -> None:
    assert join_parts(task, object) is None


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "？", "：", "请", "请：", "“”", "Please", "a" * 100_000, "翻译：", "：\n：\n" * 500]
)
def test_odd_texts_are_left_and_do_not_hang(text: str) -> None:
    assert split_question(text) is None
