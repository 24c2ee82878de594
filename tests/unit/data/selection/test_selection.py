"""Without these, selecting rows could lose columns, leak from evaluation into training, or differ from run to run."""

import errno
import json
from pathlib import Path

import pytest

from glmtune.data import output, selection
from glmtune.data.duplicates.near import similarity
from glmtune.data.duplicates.normal_form import normal_form
from glmtune.errors import ConfigError, DataError, StorageError

PLACES = [
    *("杭州西湖", "南京中山陵", "北京故宫", "西安城墙", "成都武侯祠"),
    *("苏州拙政园", "厦门鼓浪屿", "桂林漓江", "黄山迎客松", "敦煌莫高窟"),
]
ROWS = [
    {"id": number, "instruction": f"{place}在哪里，门票多少钱一张？", "output": f"在{place[:2]}。" * (1 + number % 7)}
    for number, place in enumerate(PLACES)
]
NEAR = {"id": 10, "instruction": "请问杭州西湖在哪里，门票多少钱一张呢", "output": "在杭州。", "note": "自己写的"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes files of rows in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(**contents):
        for name, rows in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    return write


def ids(file: str) -> list[int]:
    with open(file, encoding="utf-8") as stream:
        text = stream.read()
    rows = json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    return [row["id"] for row in rows]


def test_duplicates_are_removed_and_rows_keep_their_columns(files, capsys):
    files(train=[NEAR, *ROWS, {**ROWS[3], "id": 11}, {**ROWS[4], "id": 12, "output": "不知道。"}])
    assert selection.dedupe("train.json", "out.jsonl", removed="removed.jsonl") == ({11: 4}, {1: 0})
    assert ids("out.jsonl") == [10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12]
    with open("out.jsonl", encoding="utf-8") as stream:
        assert json.loads(stream.readline()) == NEAR
    with open("removed.jsonl", encoding="utf-8") as stream:
        removed = [json.loads(line) for line in stream]
    assert [(row["duplicate"], row["row"], row["of"]["row"], row["values"]["id"]) for row in removed] == [
        ("near", 2, 1, 0),
        ("exact", 12, 5, 11),
    ]
    assert capsys.readouterr().out.startswith("13 rows: 11 kept, 1 removed as exact duplicates, 1 as near-duplicates")


def test_questions_alone_are_compared_on_request(files):
    files(train=[*ROWS, {**ROWS[4], "id": 12, "output": "不知道。"}])
    assert selection.dedupe("train.json", "rows.json") == ({}, {})
    assert selection.dedupe("train.json", "questions.json", compare="question") == ({10: 4}, {})
    assert ids("questions.json") == list(range(10))


def test_exact_alone_leaves_near_duplicates(files):
    files(train=[*ROWS, NEAR])
    assert selection.dedupe("train.json", "out.json", near=False) == ({}, {})
    assert ids("out.json") == list(range(11))


def test_rows_with_other_numbers_are_no_duplicates(files):
    """Or most of a data set of sums would be gone."""
    texts = [
        "小明有12个苹果，又买了3个，一共有几个？",
        "小明有12个苹果，又买了30个，一共有几个？",
        "小明有12个苹果，又买3个，一共有几个？",
    ]
    files(train=[{"id": row, "question": text, "answer": "好"} for row, text in enumerate(texts)])
    assert selection.dedupe("train.json", "out.json", compare="question", threshold=0.7) == ({}, {2: 0})
    assert ids("out.json") == [0, 1]


def test_what_is_similar_only_to_a_removed_row_stays(files):
    chain = ["一二三四五六七八九十", "一二三四五六七八九十甲乙", "三四五六七八九十甲乙"]
    assert similarity(chain[0], chain[2]) < 0.75 < min(similarity(chain[0], chain[1]), similarity(*chain[1:]))
    files(train=[{"id": row, "question": text, "answer": "好"} for row, text in enumerate(chain)])
    selection.dedupe("train.json", "out.json", compare="question", threshold=0.75)
    assert ids("out.json") == [0, 2]


def test_of_two_files_both_are_written_or_none(files, monkeypatch):
    files(train=[*ROWS, ROWS[3]])
    with pytest.raises(DataError, match=r"out\.json: two files to write have this name"):
        selection.dedupe("train.json", "out.json", removed="./out.json")
    real = output.written_aside

    def full(path, **options):
        if path.name in ("out.json", "eval.json"):
            raise OSError(errno.ENOSPC, "full")
        return real(path)

    monkeypatch.setattr(output, "written_aside", full)
    for write in (
        lambda: selection.dedupe("train.json", "out.json", removed="removed.json"),
        lambda: selection.split("train.json", "parts"),
    ):
        with pytest.raises(StorageError, match="the disk is full"):
            write()
    assert sorted(path.name for path in Path().rglob("*.json*")) == ["train.json"]


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_what_is_no_share_is_refused(files, share):
    files(train=ROWS)
    for option, write in {
        "--fraction": lambda: selection.split("train.json", "parts", fraction=share),
        "--threshold": lambda: selection.split("train.json", "parts", threshold=share),
        "--fraction: ": lambda: selection.sample("train.json", "out.json", fraction=share),
        "--threshold: ": lambda: selection.dedupe("train.json", "out.json", threshold=share),
    }.items():
        with pytest.raises(ConfigError, match=option):
            write()


def test_a_share_of_few_rows_is_at_least_one(files):
    files(train=ROWS)
    assert selection.split("train.json", "parts", fraction=0.01) == 1
    assert selection.sample("train.json", "out.json", fraction=0.01) == 1


def test_nothing_is_replaced_and_nothing_half_done(files):
    files(train=ROWS, out=[])
    for write in (
        lambda: selection.dedupe("train.json", "out.json"),
        lambda: selection.dedupe("train.json", "new.json", removed="out.json"),
        lambda: selection.sample("train.json", "out.json", number=1),
        lambda: selection.merge("train.json", "out.json"),
    ):
        with pytest.raises(DataError, match=r"out\.json: the file exists already"):
            write()


def test_a_split_has_no_near_duplicates_on_both_sides(files, capsys):
    edited = [{**row, "id": row["id"] + 100, "instruction": f"请问，{row['instruction']}谢谢"} for row in ROWS]
    files(train=[*ROWS, *edited])
    selection.split("train.json", "parts", fraction=0.3, seed=1)
    training, evaluation = set(ids("parts/train.json")), set(ids("parts/eval.json"))
    assert training | evaluation == {*range(10), *range(100, 110)}
    assert len(evaluation) == 6
    assert {row % 100 for row in evaluation}.isdisjoint(row % 100 for row in training)
    assert "20 rows ask nearly the same as others and stay on one side" in capsys.readouterr().out


def test_a_split_takes_from_every_file_and_length(files):
    def rows(word: str, number: int) -> list[dict]:
        return [
            {"id": index, "question": f"{word}{normal_form(chr(0x4E00 + 97 * index)) * 9}", "answer": word * length}
            for index, length in enumerate([1, 5, 20, 80, 300] * (number // 5))
        ]

    files(a=rows("甲", 100), b=rows("乙", 50))
    selection.split(["a.json", "b.json"], "parts", number=30)
    with open("parts/eval.json", encoding="utf-8") as stream:
        answers = [row["answer"] for row in json.load(stream)]
    assert sum("甲" in answer for answer in answers) == 20
    assert sorted({len(answer) for answer in answers}) == [1, 5, 20, 80, 300]
    assert sum(len(answer) == 300 for answer in answers) == 6


def test_draws_depend_on_the_seed_alone(files):
    files(train=ROWS)
    for folder, seed in (("one", 1), ("same", 1), ("other", 2)):
        selection.split("train.json", folder, number=3, seed=seed)
        selection.sample("train.json", f"{folder}/sample.json", number=4, seed=seed)
        selection.merge("train.json:0.4", f"{folder}/merged.json", seed=seed)
    for name in ("eval.json", "sample.json", "merged.json"):
        assert ids(f"one/{name}") == ids(f"same/{name}") == sorted(ids(f"one/{name}"))
        assert ids(f"one/{name}") != ids(f"other/{name}")


def test_a_split_into_nothing_is_refused(files):
    files(train=ROWS, same=[{**row, "instruction": "同一个问题怎么回答？"} for row in ROWS])
    for number in (0, 10):
        with pytest.raises(ConfigError, match="leave nothing on one side"):
            selection.split("train.json", "parts", number=number)
    with pytest.raises(ConfigError, match="all rows ask nearly the same"):
        selection.split("same.json", "parts", number=2)
    with pytest.raises(ConfigError, match="not both"):
        selection.split("train.json", "parts", number=2, fraction=0.1)


def test_more_than_there_is_cannot_be_drawn(files):
    files(train=ROWS)
    with pytest.raises(ConfigError, match="11 cannot be drawn from 10 rows"):
        selection.sample("train.json", "out.json", number=11)
    with pytest.raises(ConfigError, match="needs --count or --fraction"):
        selection.sample("train.json", "out.json")
    assert selection.sample("train.json", "out.jsonl", fraction=0.5) == 5
    assert len(ids("out.jsonl")) == 5


def test_files_are_mixed_by_weight(files):
    files(general=ROWS, mine=[{**row, "id": row["id"] + 100} for row in ROWS])
    assert selection.merge("general.json:0.2,mine.json:1.5", "out.json") == 17
    found = ids("out.json")
    assert len([row for row in found if row < 100]) == 2
    assert [row for row in found if row >= 100][:10] == list(range(100, 110))
    assert len(set(found)) == 12
