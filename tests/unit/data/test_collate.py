import torch

from glmtune.data.collate import PaddingCollator

FEATURES = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "length": 3},
    {"input_ids": [8], "labels": [8], "length": 1},
]


def test_pads_right_to_the_longest():
    batch = PaddingCollator(pad_token_id=0)(FEATURES)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_token_equal_to_padding_is_attended_to():
    batch = PaddingCollator(pad_token_id=7)(FEATURES)
    assert batch["attention_mask"][0].tolist() == [1, 1, 1]
