"""Without these, the Trainer could get other samples than were tokenised, or copies that fill the memory."""

import pickle
from collections.abc import Callable

import numpy
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets

from glmtune.data.samples import SampleDataset

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "length": Value("int32")})


def make(first: int, num_samples: int) -> Dataset:
    """Samples of 1, 2, 3, 1, 2, 3, ... tokens, numbered on from `first`; no two tokens are alike."""
    rows = []
    for number in range(first, first + num_samples):
        ids = [10 * number + token for token in range(number % 3 + 1)]
        rows.append({"input_ids": ids, "labels": [-100, *(1000 + each for each in ids[1:])], "length": len(ids)})
    return Dataset.from_list(rows, features=FEATURES)


MAKERS: dict[str, Callable[[], Dataset]] = {
    "one chunk": lambda: make(0, 7),
    "one sample": lambda: make(0, 1),
    "several chunks": lambda: concatenate_datasets([make(0, 3), make(3, 1), make(4, 5)]),
    "selected": lambda: make(0, 9).select([8, 0, 3, 3, 1]),
    "a range": lambda: make(0, 9).select(range(2, 6)),
    "selected from several chunks": lambda: concatenate_datasets([make(0, 4), make(4, 4)]).select([7, 1, 4, 0]),
    "a range across chunks": lambda: concatenate_datasets([make(0, 4), make(4, 4)]).select(range(3, 7)),
    "shuffled": lambda: make(0, 9).shuffle(seed=1),
}


@pytest.fixture(params=MAKERS)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return MAKERS[request.param]()


def as_lists(samples: SampleDataset) -> list[dict[str, list[int]]]:
    return [{name: values.tolist() for name, values in samples[n].items()} for n in range(len(samples))]


def test_samples_are_the_rows(dataset: Dataset) -> None:
    samples = SampleDataset(dataset)
    assert len(samples) == len(dataset)
    assert as_lists(samples) == [{name: row[name] for name in ("input_ids", "labels")} for row in dataset]


def test_samples_are_int32_arrays(dataset: Dataset) -> None:
    assert {values.dtype for values in SampleDataset(dataset)[0].values()} == {numpy.dtype("int32")}


def test_lengths(dataset: Dataset) -> None:
    samples = SampleDataset(dataset)
    assert samples.lengths == [len(samples[n]["input_ids"]) for n in range(len(samples))]


def test_samples_may_be_asked_for_in_any_order_and_again() -> None:
    samples = SampleDataset(MAKERS["several chunks"]())
    assert [samples[n]["input_ids"][0] for n in (8, 0, 3, 8, 4, 2)] == [80, 0, 30, 80, 40, 20]


def test_going_through_all_ends() -> None:
    samples = SampleDataset(MAKERS["several chunks"]())
    with pytest.raises(IndexError):
        samples[9]
    assert len(list(samples)) == 9


def test_a_worker_gets_the_same_samples(dataset: Dataset) -> None:
    samples = SampleDataset(dataset)
    expected = as_lists(samples)  # the views exist now
    copy = pickle.loads(pickle.dumps(samples))
    assert as_lists(copy) == expected
    assert copy.lengths == samples.lengths


def test_views_do_not_go_to_a_worker() -> None:
    samples = SampleDataset(make(0, 3000))
    num_bytes = len(pickle.dumps(samples))
    as_lists(samples)
    assert len(pickle.dumps(samples)) < num_bytes + 1000  # of which views would take 50,000


def test_nothing_is_copied() -> None:
    samples = SampleDataset(make(0, 7))
    whole = samples[0]["input_ids"].base
    assert all(numpy.shares_memory(samples[n]["input_ids"], whole) for n in range(7))
