"""Without these, training could see other tokens than the chat does, or stale ones from the cache."""

import json
import resource
import shutil
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from glmtune import prompts
from glmtune.data import dataset as dataset_module
from glmtune.data.compact import SourceList, conversation_list
from glmtune.data.dataset import load_dataset, tokenize_conversations
from glmtune.data.formats import Conversations
from glmtune.data.rows import Source
from glmtune.errors import DataError
from glmtune.prompts import Conversation, Message, render

NUM_STRUCTURE = 7  # [gMASK] sop <|user|> newline <|assistant|> newline </s>
TEXTS = [("你是谁", "我是"), ("q" * 50, "a" * 30), ("1", "2")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def count_renders(monkeypatch):
    """Counts how many samples are rendered anew."""
    counted = []

    def counting(conversation, *arguments):
        counted.append(conversation)
        return render(conversation, *arguments)

    monkeypatch.setattr(dataset_module, "render", counting)
    return counted


def conversations(texts=TEXTS, **more) -> Conversations:
    items = [Conversation((Message("user", q), Message("assistant", a))) for q, a in texts]
    sources = SourceList(Source("train.json", row) for row in range(1, len(items) + 1))
    return Conversations(conversation_list(items), sources, **more)


def test_columns_are_what_the_renderer_gives(letters):
    tokenized, _ = tokenize_conversations(conversations(), letters, system="S")
    assert tokenized.column_names == ["input_ids", "labels", "length", "row"]
    for number, item in enumerate(conversations().items):
        ids, labels = (rendered := render(item.with_system("S"), letters)).input_ids, rendered.labels
        assert tokenized[number] == {"input_ids": ids, "labels": labels, "length": len(ids), "row": number}
    assert tokenized.features["input_ids"].feature.dtype == tokenized.features["labels"].feature.dtype == "int32"


def test_messages_survive_the_way_to_the_workers(letters):
    messages = (
        Message("system", "S", tools=({"name": "t"},)),
        Message("user", "q\u2028\n"),
        Message("assistant", "no", is_supervised=False),
        Message("assistant", "tool_call()", metadata="t"),
        Message("observation", ""),
        Message("assistant", "a"),
    )
    data = Conversations(conversation_list([Conversation(messages)]), SourceList([Source("x", 1)]))
    tokenized, _ = tokenize_conversations(data, letters)
    assert tokenized[0]["labels"] == render(Conversation(messages), letters).labels


def test_statistics(letters):
    tokenized, stats = tokenize_conversations(conversations(join="", num_joined=2), letters, max_length=40)
    lengths = tokenized["length"]
    assert max(lengths) == 39  # contents are cut to one length: 16 letters each
    assert (stats.num_samples, stats.num_tokens) == (3, sum(lengths))
    assert stats.num_supervised_tokens == sum(label != -100 for labels in tokenized["labels"] for label in labels)
    assert (stats.num_cut_samples, stats.num_cut_tokens) == (1, NUM_STRUCTURE + 80 - 39)
    assert stats.num_dropped_messages == 0
    assert (stats.length_percentiles["min"], stats.length_percentiles["max"]) == (min(lengths), 39)
    report = "\n".join(stats.lines())
    assert "truncation shortened 1 sample: 48 tokens cut" in report
    assert "in 2 rows, instruction and input are joined with nothing (data.join)" in report
    assert stats.to_dict()["fingerprint"] == stats.fingerprint


def test_dropped_messages_are_counted(letters):
    first = [Message("user", "q" * 20), Message("assistant", "a" * 20)]
    item = Conversation((*first, Message("user", "Q"), Message("assistant", "A")))
    data = Conversations(conversation_list([item]), SourceList([Source("x", 1)]))
    _, stats = tokenize_conversations(data, letters, max_length=20)
    assert (stats.num_dropped_messages, stats.num_cut_tokens, stats.num_cut_samples) == (2, 0, 1)


def test_samples_that_are_too_long_are_left_out_and_counted(letters):
    unlearnable = Conversation((Message("user", "q"), Message("assistant", "a" * 30, metadata="m" * 40)))
    data = conversations()
    data.items.append(unlearnable)  # in 20 tokens nothing of it could be learnt
    data.sources.append(Source("train.json", 4))
    with pytest.raises(DataError, match="row 4"):
        tokenize_conversations(data, letters, max_length=20)
    tokenized, stats = tokenize_conversations(data, letters, max_length=20, overlong="drop")
    whole, _ = tokenize_conversations(conversations(), letters)
    assert tokenized["row"][:] == [0, 2]
    assert tokenized["input_ids"][:] == [whole[row]["input_ids"] for row in (0, 2)]
    assert (stats.num_samples, stats.num_overlong, stats.num_cut_samples) == (2, 2, 0)
    assert "2 more samples are left out, being too long (data.overlong=drop)" in stats.lines()


def test_nothing_left_after_dropping_is_one_error(letters):
    with pytest.raises(DataError, match=r"all 3 samples have more than 8 tokens .*Raise data\.max_length"):
        tokenize_conversations(conversations(), letters, max_length=8, overlong="drop")


def test_a_second_run_tokenises_nothing(letters, count_renders, cache):
    first, first_stats = tokenize_conversations(conversations(), letters, max_length=40)
    assert len(count_renders) == len(TEXTS)
    assert [path.suffix for path in (cache / "glmtune").iterdir()] == [".arrow"]
    second, second_stats = tokenize_conversations(conversations(), letters, max_length=40)
    assert len(count_renders) == len(TEXTS)
    assert second.to_dict() == first.to_dict()
    assert second_stats == first_stats


@pytest.mark.parametrize(
    "changed",
    [
        {"texts": [*TEXTS[:2], ("1", "3")]},
        {"texts": [TEXTS[1], TEXTS[0], TEXTS[2]]},
        {"texts": [("你", "是谁我是"), *TEXTS[1:]]},
        {"system": "S"},
        {"template": "tutorial"},
        {"max_length": 60},
        {"overlong": "drop"},
        {"version": "9.9"},
        {"vocabulary": {"other": 1}},
        {"source": "templates.py"},
        {"source": "truncation.py"},
    ],
)
def test_a_run_with_anything_changed_tokenises_again(letters, count_renders, monkeypatch, tmp_path, changed):
    _, before = tokenize_conversations(conversations(), letters)
    settings = dict(changed)
    data = conversations(settings.pop("texts", TEXTS))
    if "version" in settings:
        monkeypatch.setattr(dataset_module, "__version__", settings.pop("version"))
    if "vocabulary" in settings:
        vocabulary = settings.pop("vocabulary")
        monkeypatch.setattr(letters, "get_vocab", lambda: vocabulary)
    if "source" in settings:
        changed_copy = tmp_path / "prompts"
        shutil.copytree(Path(prompts.__file__).parent, changed_copy)
        with (changed_copy / settings.pop("source")).open("a") as file:
            file.write("# changed\n")
        monkeypatch.setattr(prompts, "__file__", str(changed_copy / "__init__.py"))
    _, after = tokenize_conversations(data, letters, **settings)
    assert len(count_renders) == 2 * len(TEXTS)
    assert after.fingerprint != before.fingerprint


def test_samples_with_nothing_left_are_all_named(letters):
    data = conversations()
    unlearnt = Conversation((Message("user", "q"), Message("assistant", "a", is_supervised=False)))
    data.items = conversation_list([*data.items[:2], unlearnt, *data.items[3:]])
    with pytest.raises(DataError) as caught:
        tokenize_conversations(data, letters)
    assert (
        str(caught.value) == "train.json, row 3: there is nothing to learn from: no turn of the assistant is supervised"
    )
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError, match="samples cannot be learnt from: 3 errors") as caught:
            tokenize_conversations(data, letters, max_length=7)
        assert [line[4:21] for line in str(caught.value).splitlines()[1:]] == [
            f"train.json, row {n}" for n in (1, 2, 3)
        ]


def test_what_the_template_cannot_express_is_a_fault(letters):
    data = conversations()
    with_tools = Conversation((Message("system", "S", tools=("t",)), *data.items[1].messages))
    data.items = conversation_list([data.items[0], with_tools, *data.items[2:]])
    with pytest.raises(DataError, match=r"train\.json, row 2: the tutorial template has no tools"):
        tokenize_conversations(data, letters, template="tutorial")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1000],
        lambda data: b"\0" * len(data),
        lambda data: b"no arrow",
        lambda data: data[:1500] + b"\xff" * 500 + data[2000:],
        lambda data: data.replace(b"int32", b"int64", 1),
    ],
    ids=["empty", "half", "end cut", "zeros", "text", "overwritten", "schema"],
)
def test_a_damaged_cache_is_made_anew(letters, count_renders, cache, damage):
    whole, _ = tokenize_conversations(conversations(), letters)
    expected = whole.to_dict()
    (file,) = (cache / "glmtune").iterdir()
    data = file.read_bytes()
    file.unlink()  # what has been mapped from it stays
    file.write_bytes(damage(data))
    again, _ = tokenize_conversations(conversations(), letters)
    assert again.to_dict() == expected
    assert len(count_renders) == 2 * len(TEXTS)
    assert file.read_bytes() == data


def test_a_crash_while_tokenising_leaves_nothing_in_the_cache(letters, cache, monkeypatch):
    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_module, "render", crash)
    with pytest.raises(KeyboardInterrupt):
        tokenize_conversations(conversations(), letters)
    assert list((cache / "glmtune").iterdir()) == []


def test_training_goes_on_where_the_cache_cannot_be_made(letters, cache, caplog):
    cache.write_text("a file where the folder should be")
    tokenized, _ = tokenize_conversations(conversations(), letters)
    assert tokenized["input_ids"][0] == render(conversations().items[0], letters).input_ids
    assert "the tokenised data cannot be cached there" in caplog.text
    assert "HF_DATASETS_CACHE" in caplog.text


@pytest.mark.parametrize("num_workers", [None, 2])
def test_training_goes_on_where_the_disk_is_full(letters, cache, caplog, num_workers):
    data = conversations([("q" * 3000, "a" * 3000)] * 2)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        tokenized, _ = tokenize_conversations(data, letters, num_workers=num_workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert tokenized["length"][:] == [6007, 6007]
    assert "the tokenised data cannot be cached there" in caplog.text
    assert list((cache / "glmtune").iterdir()) == []


@pytest.mark.parametrize(
    ("num_rows", "num_workers", "cores", "processes"),
    [
        (100, None, 8, None),
        (45_000, None, 8, 2),
        (45_000, None, 1, None),
        (10, 4, 8, 4),
        (10, 1, 8, None),
        (3, 4, 8, 3),
    ],
)
def test_processes_only_where_they_pay(letters, monkeypatch, num_rows, num_workers, cores, processes):
    asked = []

    class Asked(Exception):  # noqa: N818
        """Ends it here."""

    def map_rows(self, *arguments, num_proc, **options):
        asked.append(num_proc)
        raise Asked

    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(datasets.Dataset, "map", map_rows)
    with pytest.raises(Asked):
        tokenize_conversations(conversations([("q", "a")] * num_rows), letters, num_workers=num_workers)
    assert asked == [processes]


def test_two_processes_with_the_real_tokenizer_give_the_same(golden):
    tokenizer = AutoTokenizer.from_pretrained(golden)
    one, _ = tokenize_conversations(conversations(), tokenizer)
    datasets.config.HF_DATASETS_CACHE /= "other"
    two, _ = tokenize_conversations(conversations(), tokenizer, num_workers=2)
    assert two.to_dict() == one.to_dict()


def test_the_tutorial_cases_come_out_of_a_file(golden, tmp_path):
    cases = json.loads((golden / "tokenizer_cases.json").read_text(encoding="utf-8"))["tutorial"]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(cases), encoding="utf-8")  # instruction, input, output beside the expected columns
    tokenized, _ = load_dataset(
        path,
        AutoTokenizer.from_pretrained(golden),
        join="",
        template="tutorial",
        system="现在你要扮演皇帝身边的女人--甄嬛",
    )
    assert tokenized["input_ids"][:] == [case["input_ids"] for case in cases]
    assert tokenized["labels"][:] == [case["labels"] for case in cases]
