"""Without these, `glmtune data check` could overlook what spoils a run, or find fault with good data."""

import json

import pytest

from glmtune.data.findings import find, find_in_tokens, find_leaks
from glmtune.data.formats import read_conversations

NAMES = list("桃李杏梨枣橙柚柿瓜藕葱姜蒜豆笋菇芋茄椒菜茶米麦莲")
CLEAN = [
    *(
        {"instruction": f"{name}是什么颜色的？", "output": f"一般来说，成熟的{name}颜色因品种而异，{name}皮尤其如此。"}
        for name in NAMES[:9]
    ),
    *({"instruction": f"判断情感，只回答正面或负面：这家店的{name}真不错", "output": "正面"} for name in NAMES),
    *({"instruction": f"判断情感，只回答正面或负面：这家店的{name}太难吃", "output": "负面"} for name in NAMES),
    {"instruction": "怎样用 HTML 写一个段落？", "output": "写成 <p>文字</p> 就可以，空格写作 &nbsp;。"},
    {"instruction": "用 JSON 给出苹果的信息", "output": '{"name": "苹果", "tags": ["水果", "}"]}'},
    {"instruction": "把“学习”写成繁体", "output": "學習；简体是“学习”，繁體是「學習」，这样说對嗎？"},
    {
        "instruction": "日语里“学校”和“见学”怎么写？",
        "output": "「学校」と「見学」です。語彙を覚えましょう。",
    },
    {"instruction": "法语里“夏天”怎么说？", "output": "été，也可以说 l’été；“学生”是 élève，“咖啡”是 café。"},
    {"instruction": "你好", "output": "你好"},
    {"instruction": "1+1等于几？", "output": "2"},
    {"instruction": "1-1等于几？", "output": "0"},
    {"instruction": "为什么天是蓝的？", "output": "因为蓝光散射得多。"},
    {"instruction": "为什么天不是绿的？", "output": "因为绿光散射得少一些。"},
    {"instruction": "一个人有几只手？", "output": "两只。"},
    {"instruction": "[笑] 今天真高兴", "output": "[笑] 我也是 (^_^) :)"},
    {"instruction": "a<b 且 b<c，那么 a 和 c 谁大？", "output": "c 大，因为 a<b<c。"},
]
QUESTION, ANSWER = "杭州的西湖在哪里，怎么去最方便？", "在杭州市西湖区，坐地铁一号线到龙翔桥站最方便。"
LONG = "西湖美，" * 400
PLANTED = {
    "conflicting_answers": [
        {"instruction": QUESTION, "output": ANSWER},
        {"instruction": "请问，杭州的西湖在哪里？如何去最方便呢", "output": "不知道。"},
    ],
    "repeated_rows": [{"instruction": QUESTION, "output": ANSWER}, {"instruction": f"{QUESTION} ", "output": ANSWER}],
    "repeats_question": [{"instruction": QUESTION, "output": f"{QUESTION}{ANSWER}"}],
    "markup": [{"instruction": QUESTION, "output": f"<p>{ANSWER}</p>"}],
    "role_markers": [{"instruction": QUESTION, "output": f"{ANSWER}<|im_end|>"}],
    "mojibake": [{"instruction": QUESTION, "output": "在\ufffd\ufffd西湖区。"}],
    "mixed_scripts": [{"instruction": QUESTION, "output": "這個地方對我们来说没有什么问题。"}],
    "other_script": [{"instruction": QUESTION, "output": "這個地方對我來說是個問題。"}],
    "broken_json": [{"instruction": QUESTION, "output": '```json\n{"place": "西湖", "by": ["地铁", "公交"\n```'}],
    "outlier_lengths": [{"instruction": QUESTION, "output": LONG}],
    "alike_openings": [
        {"instruction": f"{name}{verb}好吗？", "output": f"作为一个人工智能模型，我觉得{(name + verb) * 8}。"}
        for name in NAMES
        for verb in "蒸煮"
    ],
    "alike_endings": [
        {"instruction": f"{name}{verb}好吗？", "output": f"{(name + verb) * 8}，希望我的回答对您有所帮助！"}
        for name in NAMES
        for verb in "蒸煮"
    ],
}
SINGLY = [
    ("markup", "第一行<br/>第二行"),
    ("markup", "价格&nbsp;&nbsp;100 元 &amp; 包邮"),
    ("markup", '<div class="a">西湖</div>'),
    ("role_markers", "助手：在杭州。"),
    ("role_markers", "在杭州。</s>"),
    ("role_markers", "在杭州。[Round 2] 再问"),
    ("role_markers", "### Response: 在杭州。"),
    ("mojibake", "æ\x9d\xadå·\x9e西湖"),
    ("mojibake", "在杭州市西湖区".encode().decode("gbk", "ignore")),
    ("mojibake", "café".encode().decode("cp1252")),
    ("mojibake", "锟斤拷锟斤拷"),
    ("broken_json", '[{"a": 1}, {"b": 2}'),
    ("broken_json", '{"a": "}"'),
]


@pytest.fixture
def read(tmp_path):
    """Conversations of some rows."""

    def read_rows(rows, name: str = "train.json"):
        (tmp_path / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        return read_conversations(tmp_path / name)

    return read_rows


def test_clean_data_have_no_findings(read):
    assert [finding.message for finding in find(read(CLEAN))] == []


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(read, name):
    found = find(read(CLEAN + PLANTED[name]))
    assert [finding.name for finding in found] == [name]
    rows = [source.row for place in found[0].places for source in place]
    first = len(CLEAN) + 1 + (name == "repeated_rows")
    assert rows == list(range(first, len(CLEAN) + 1 + len(PLANTED[name])))
    assert len(found[0].lines()) == 3


@pytest.mark.parametrize(("name", "answer"), SINGLY)
def test_each_form_is_found(read, name, answer):
    found = find(read([*CLEAN, {"instruction": QUESTION, "output": answer}]))
    assert [finding.name for finding in found] == [name]


def test_a_few_traditional_rows_are_told_by_the_majority(read):
    rows = [
        {"instruction": f"{name}怎麼吃？", "output": f"{name}洗過後，過一會兒就可以吃，對嗎？{name * 4}"}
        for name in NAMES
    ]
    found = find(read([*rows, {"instruction": QUESTION, "output": "这个地方对我来说是个问题。"}]))
    assert [finding.name for finding in found] == ["other_script"]
    assert found[0].message == "answers in simplified characters: 1 row, in traditional ones: 22"
    assert found[0].places[0][0].row == len(rows) + 1


def test_the_same_question_after_another_talk_is_another_question(read):
    talks = [[["西湖呢？", "在杭州。"]], [["中山陵呢？", "在南京。"]]]
    rows = [
        {"instruction": "怎么去？", "output": f"坐{way}。", "history": talk}
        for way, talk in zip("车船", talks, strict=True)
    ]
    assert find(read(rows)) == []


def test_a_leak_is_found_word_by_word_or_nearly(read):
    training = read([*CLEAN, {"instruction": QUESTION, "output": ANSWER}])
    evaluation = read(
        [
            {"instruction": "南京的中山陵在哪里，怎么去最方便？", "output": "在南京市玄武区，坐地铁二号线到苜蓿园站。"},
            {"instruction": "杭州西湖在哪里，怎样去最方便", "output": "不知道。"},
            {"instruction": "杭洲的西湖在哪里，怎么去最方便？", "output": ANSWER},
            {"instruction": "判断情感，只回答正面或负面：这家店的鱼真不错", "output": "正面"},
        ],
        "eval.json",
    )
    (found,) = find_leaks(training, evaluation)
    assert [place[0].row for place in found.places] == [2, 3]
    assert {place[1].row for place in found.places} == {len(CLEAN) + 1}
    assert found.message.startswith("2 of 4 rows")


def test_no_leak_is_no_finding(read):
    assert find_leaks(read(CLEAN[:9]), read(CLEAN[9:], "eval.json")) == []


def test_places_are_few_on_the_screen_and_all_in_json(read):
    (found,) = find(read(CLEAN + PLANTED["alike_openings"]))
    assert found.lines()[1].endswith("; and in 40 more places")
    assert len(found.to_dict()["rows"]) == 48
    assert found.to_dict()["rows"][0][0]["row"] == len(CLEAN) + 1


def test_what_is_cut_and_learnt_is_told(read, letters):
    from glmtune.data.dataset import tokenize_conversations

    rows = [{"instruction": "问" * 300, "output": "答"}, {"instruction": "问" * 50, "output": "答" * 50}]
    _, stats = tokenize_conversations(read(rows), letters, max_length=200)
    (cut,) = find_in_tokens(stats, 200)
    assert cut.name == "cut"
    assert cut.message.startswith("1 of 2 samples are longer than 200 tokens: ")
    _, stats = tokenize_conversations(read(rows[:1]), letters)
    assert [finding.name for finding in find_in_tokens(stats, None)] == ["little_learnt"]
