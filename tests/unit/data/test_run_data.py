"""Without these, a run could evaluate on what it trains on, train on other rows than were asked for, or lose rows."""

import json
import shutil
from pathlib import Path

import datasets
import pytest

from glmtune.config import load_config
from glmtune.data.formats import read_conversations, read_examples
from glmtune.data.run_data import load_run_data
from glmtune.data.skipped import num_skipped, write_skipped
from glmtune.errors import ConfigError, DataError


@pytest.fixture
def load(tmp_path, monkeypatch, letters):
    """The data of a run, from files in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in "ab":
        rows = [{"question": f"{name}{row}", "answer": chr(0x4E00 + row)} for row in range(20)]
        Path(f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")

    def load_data(*settings, seed: int = 1, looks: bool = False):
        config = load_config(None, ["prompt.template=chatglm3", *settings])
        return load_run_data(config.data, config.prompt, letters, seed, looks=looks)

    return load_data


@pytest.mark.parametrize("path", ["data.path=a.json:0.25,b.json", "data.path={a.json: 0.25, b.json: 1}"])
def test_files_are_mixed_by_weight(load, path):
    data = load(path)
    assert len(data.train) == 25
    assert data.stats.formats == ["a.json: question/answer; weight 0.25, 5 rows", "b.json: question/answer"]
    assert load(path).stats.fingerprint == data.stats.fingerprint
    assert load(path, seed=2).stats.fingerprint != data.stats.fingerprint


def test_a_row_that_counts_twice_is_not_evaluated_and_trained_on(load):
    data = load("data.path=a.json:2", "data.eval_fraction=0.25")
    training, evaluation = (
        {tuple(part[row]["input_ids"]) for row in range(len(part))} for part in (data.train, data.eval)
    )
    assert (len(data.train), len(data.eval)) == (30, 5)
    assert (len(training), len(evaluation)) == (15, 5)
    assert training.isdisjoint(evaluation)


def test_a_seed_draws_the_same_rows_in_every_version(load):
    """A run that goes on after an update must not train on what it was evaluated on."""
    data = load("data.path=b.json:1.5,a.json:0.5", "data.eval_fraction=0.2", seed=3)
    asked = [conversation.messages[0].content for conversation in data.eval_conversations]
    assert asked == ["b5", "b9", "b10", "b14", "a4", "a14"]
    assert (len(data.train), len(data.eval)) == (32, 6)


def test_what_is_worth_a_look_is_found_on_the_way(load):
    assert load("data.path=a.json:2.5", looks=True).findings == []  # copies that were asked for
    shutil.copy("a.json", "c.json")
    [leak, repeated] = load("data.path=[a.json, c.json]", "data.eval_fraction=0.5", looks=True).findings
    assert (leak.name, repeated.name) == ("leak", "repeated_rows")
    assert len(repeated.places) == 20
    assert {place[0].path for place in repeated.places} == {"c.json"}
    [leak] = load("data.path=a.json", "data.eval_path=c.json", looks=True).findings
    assert (
        leak.summary()["lines"][1]
        == "rows: c.json " + ", ".join(f"{row} + a.json {row}" for row in range(1, 9)) + "; and in 12 more places"
    )


@pytest.mark.parametrize("weight", ["-1", "0", "many"])
def test_a_weight_that_is_none_is_refused(load, weight):
    with pytest.raises((ConfigError, DataError), match=r"a\.json"):
        load(f"data.path={{a.json: {weight}}}")


FAULTY = [
    '{"question": "q", "answer": "a"}',
    '{"question": "q", "answer": ""}',
    '{"question": "q", ',
    "[1]",
    '{"question": "q", "answer": "a", "answer": "b"}',
    '{"question": "r", "answer": "b"}',
]


@pytest.fixture
def faulty(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("\n".join(FAULTY), encoding="utf-8")
    return path


def test_faulty_rows_are_left_out_on_request_and_kept_with_the_reason(faulty, tmp_path):
    with pytest.raises(DataError, match="the data cannot be used: 4 errors"):
        read_conversations(faulty)
    found = read_conversations(faulty, faulty="skip")
    assert [source.row for source in found.sources] == [1, 6]
    assert [fault.source.row for fault in found.skipped] == [2, 3, 4, 5]
    assert num_skipped(found.skipped) == 4
    write_skipped(found.skipped, tmp_path / "skipped.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["row"]: row["values"] for row in rows}[2] == {"question": "q", "answer": ""}
    assert {row["row"]: row["reasons"] for row in rows}[2] == ['"answer" is empty. Fill it in or remove the row']
    assert {row["row"]: row["reasons"] for row in rows}[5] == ['the key "answer" occurs twice in one object']
    examples, skipped = read_examples(faulty, faulty="skip")
    assert [example.values["question"] for example in examples] == ["q", "r"]
    assert skipped == found.skipped


def test_a_file_that_cannot_be_read_is_never_skipped(faulty):
    with pytest.raises(DataError, match=r"no\.json: there is no such file"):
        read_conversations([faulty, "no.json"], faulty="skip")


def test_nothing_but_faulty_rows_is_an_error(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(FAULTY[1], encoding="utf-8")
    with pytest.raises(DataError, match='"answer" is empty'):
        read_conversations(path, faulty="skip")


def test_samples_with_nothing_left_to_learn_are_skipped_too(load):
    call = {"role": "tool", "name": "t", "parameters": {}, "observation": "o"}
    talk = [{"role": "user", "content": "q"}, call, call, {"role": "assistant", "content": "a"}]
    rows = [{"question": "q", "answer": "a"}, {"messages": talk}]
    Path("long.json").write_text(json.dumps(rows), encoding="utf-8")
    data = load("data.path=long.json", "data.faulty=skip", "data.max_length=12")
    assert len(data.train) == data.stats.num_skipped == 1
    assert [fault.source.row for fault in data.skipped] == [2]
