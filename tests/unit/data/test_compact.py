"""Without these, rows could change while they are kept in little memory."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from glmtune.data import compact
from glmtune.data.compact import SourceList, conversation_list, value_list
from glmtune.data.rows import Source
from glmtune.prompts import Conversation, Message

CONVERSATIONS = [
    Conversation((Message("user", "你好\u2028🙂"), Message("assistant", ""))),
    Conversation((Message("system", "S", tools=({"name": "t", "n": [1, None]},)), Message("user", "q"))),
    Conversation((Message("assistant", "a", "tool", is_supervised=False),)),
]
SOURCES = [Source("a.json", 1), Source("a.json", 2**40, 7), Source("b.json", 1), Source("a.json", 3)]


def test_what_is_kept_comes_back():
    for made, given in (
        (conversation_list(CONVERSATIONS), CONVERSATIONS),
        (SourceList(SOURCES), SOURCES),
        (value_list([{"a": date(2024, 2, 1)}, {}]), [{"a": date(2024, 2, 1)}, {}]),
    ):
        assert made == given
        assert made != given[:-1]
        assert made[-1] == given[-1]
        assert made[1:] == given[1:]


@pytest.mark.parametrize("most_in_memory", [1, 100, 1 << 20])
def test_lists_are_joined_and_rows_taken_wherever_they_are_kept(monkeypatch, most_in_memory):
    monkeypatch.setattr(compact, "_MOST_IN_MEMORY", most_in_memory)
    joined = conversation_list(CONVERSATIONS[:1])
    joined.extend(conversation_list(CONVERSATIONS[1:]))
    joined.append(CONVERSATIONS[0])
    assert joined == [*CONVERSATIONS, CONVERSATIONS[0]]
    assert joined.take([2, 0, 2]) == [CONVERSATIONS[2], CONVERSATIONS[0], CONVERSATIONS[2]]
    adopted = conversation_list()
    adopted.extend(joined)
    adopted.append(CONVERSATIONS[1])
    assert adopted == [*CONVERSATIONS, CONVERSATIONS[0], CONVERSATIONS[1]]
    sources = SourceList(SOURCES[:2])
    sources.extend(SourceList(SOURCES[2:]))
    assert sources == SOURCES
    assert sources.take([3, 2, 2]) == [SOURCES[3], SOURCES[2], SOURCES[2]]


def test_threads_read_a_long_list_at_the_same_time(monkeypatch):
    monkeypatch.setattr(compact, "_MOST_IN_MEMORY", 100)
    rows = [{"a": f"{number}" * (number % 50)} for number in range(500)]
    made = value_list(rows)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda turn: list(made) == rows, range(40)))
