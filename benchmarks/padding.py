"""Pads samples of different lengths into one batch: what the benchmarks compare packing with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from glmtune.prompts import IGNORED_LABEL


@dataclass(frozen=True)
class PaddingCollator:
    """A data collator for transformers' Trainer: pads on the right, to the longest sample of each batch.

        input_ids       [gMASK] sop ... 你 好 </s>  pad  pad      pad is never attended to
        attention_mask     1     1  ...  1  1   1    0    0
        labels           -100  -100 ... 你 好 </s> -100 -100      learnt; -100 where not

    Attributes:
        pad_token_id: What `input_ids` are filled with.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            features: B samples, each with `input_ids` and `labels` of one length; other keys are left out.

        Returns:
            `input_ids`, `attention_mask` and `labels`: int64 tensors of shape [B, T].
        """
        length = max(len(feature["input_ids"]) for feature in features)
        shape = (len(features), length)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED_LABEL, dtype=torch.int64)
        for row, feature in enumerate(features):
            stop = len(feature["input_ids"])
            input_ids[row, :stop] = torch.as_tensor(feature["input_ids"])
            attention_mask[row, :stop] = 1
            labels[row, :stop] = torch.as_tensor(feature["labels"])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
