"""Chooses the next token of each row.

Logits are processed as by transformers' logits processors, in the same order: repetition penalty, presence and
frequency penalty (OpenAI's), stop tokens before `min_new_tokens`, temperature, top-k, top-p, min-p. A draw is the
argmax of log-probability plus Gumbel noise, and the noise a hash of the request's seed, the token's place in the reply
and its id: what else is in the batch makes no difference.

Legend of dimension suffixes: R rows, P rows of a part, V vocabulary, K candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from glmtune.inference.engine.request import Sampling
from glmtune.ops.reference import hash_uint32

# Tokens as likely as the k-th are candidates too, as in transformers; this many of them.
_MOST_TIES = 16


class Logprobs(NamedTuple):
    """Log-probabilities of one token, by the model's own distribution, whatever it was chosen by.

    Attributes:
        chosen: The log-probability of the token.
        top_ids: The likeliest tokens, the likeliest first.
        top: Their log-probabilities.
    """

    chosen: float
    top_ids: list[int]
    top: list[float]


@dataclass(frozen=True)
class Histories:
    """The tokens before the one that is chosen.

    Attributes:
        token_ids: Prompt and reply, [R, S] integer; what is behind `lengths` does not count. None if no row has a
            penalty.
        lengths: Tokens of prompt and reply, [R] integer.
        num_prompt: Tokens of the prompt, [R] integer.
    """

    token_ids: Tensor | None
    lengths: Tensor
    num_prompt: Tensor


class Candidates(NamedTuple):
    """The distribution that a token is drawn from.

    Attributes:
        log_probabilities: [P, K] fp32; minus infinity for what is left out.
        token_ids: Their ids, [P, K] or [1, K].
    """

    log_probabilities: Tensor
    token_ids: Tensor


class _Part:
    """Some of the rows, and their options as columns."""

    def __init__(self, numbered: Sequence[tuple[int, Sampling]], device: torch.device) -> None:
        self._device = device
        self.numbers = [number for number, _ in numbered]
        self.samplings = [sampling for _, sampling in numbered]
        self.rows = torch.tensor(self.numbers, dtype=torch.int64, device=device)

    def __bool__(self) -> bool:
        return bool(self.numbers)

    def column(self, value: Callable[[Sampling], float], dtype: torch.dtype = torch.float32) -> Tensor:
        """An option of each row, [P, 1]."""
        values = [value(sampling) for sampling in self.samplings]
        return torch.tensor(values, dtype=dtype, device=self._device).unsqueeze(1)


class _Draws:
    """Rows that are drawn: all of them with top-k, or all with top-p alone, or none with either."""

    def __init__(self, part: _Part, num_candidates: int | None) -> None:
        self.rows = part.rows
        self._num_candidates = num_candidates
        options = part.samplings
        self._temperature = part.column(lambda one: one.temperature)
        self._top_k = part.column(lambda one: one.top_k, torch.int64)
        self._has_top_k = any(one.top_k for one in options)
        self._top_p = part.column(lambda one: one.top_p) if any(one.top_p < 1 for one in options) else None
        has_min_p = any(one.min_p for one in options)
        self._min_p = part.column(lambda one: one.min_p or 0.0) if has_min_p else None
        self._seeds = part.column(lambda one: one.seed or 0, torch.int64)

    def candidates(self, logits_RV: Tensor) -> Candidates:
        """The distributions of these rows."""
        scores = logits_RV.index_select(0, self.rows) / self._temperature
        if self._num_candidates is None:
            token_ids = torch.arange(scores.shape[1], device=scores.device).unsqueeze(0)
        else:
            scores, token_ids = scores.topk(min(self._num_candidates, scores.shape[1]))
        if self._has_top_k:
            scores = self._of_top_k(scores)
        if self._top_p is not None:
            scores = _of_top_p(scores, self._top_p)
        if self._min_p is not None:
            probabilities = scores.softmax(-1)
            is_out = probabilities < self._min_p * probabilities.amax(-1, keepdim=True)
            scores = scores.masked_fill(is_out, -torch.inf)
        return Candidates(scores.log_softmax(-1), token_ids)

    def draw(self, logits_RV: Tensor, places_R: Tensor) -> Tensor:
        """A token for each of these rows, [P] int64."""
        log_probabilities, token_ids = self.candidates(logits_RV)
        noise = gumbel_noise(self._seeds, places_R.index_select(0, self.rows).unsqueeze(1), token_ids)
        best = (log_probabilities + noise).argmax(-1, keepdim=True)
        return token_ids.expand_as(log_probabilities).gather(1, best).squeeze(1)

    def _of_top_k(self, scores_PK: Tensor) -> Tensor:
        """The k likeliest, and those that are as likely as the last of them."""
        last = (self._top_k - 1).clamp(max=scores_PK.shape[1] - 1)
        number = torch.arange(scores_PK.shape[1], device=scores_PK.device)
        is_out = (scores_PK < scores_PK.gather(1, last)) | (number >= last + 1 + _MOST_TIES)
        return scores_PK.masked_fill(is_out, -torch.inf)


class Sampler:
    """The options of a step's rows, as tensors; to be made anew when other requests come to run.

    Args:
        samplings: Each row's; a row that draws has a seed.
        device: The logits' device.
    """

    def __init__(self, samplings: Sequence[Sampling], device: torch.device | str) -> None:
        numbered = [(row, sampling) for row, sampling in enumerate(samplings) if not sampling.is_plain]

        def part(wanted: Callable[[Sampling], bool]) -> _Part:
            return _Part([each for each in numbered if wanted(each[1])], torch.device(device))

        self._repeating = part(lambda one: one.repetition_penalty != 1)
        self._repetition = self._repeating.column(lambda one: one.repetition_penalty)
        self._present = part(lambda one: one.presence_penalty != 0 or one.frequency_penalty != 0)
        self._presence = self._present.column(lambda one: one.presence_penalty)
        self._frequency = self._present.column(lambda one: one.frequency_penalty)
        stops = [
            (row, token_id, one.min_new_tokens)
            for row, one in numbered
            if one.min_new_tokens > 0
            for token_id in one.stop_token_ids
        ]
        self._stops = torch.tensor(stops, dtype=torch.int64, device=device).view(-1, 3).unbind(1) if stops else None
        with_top_k = part(lambda one: one.do_sample and one.top_k > 0)
        with_top_p = part(lambda one: one.do_sample and one.top_k == 0 and one.top_p < 1)
        others = part(lambda one: one.do_sample and one.top_k == 0 and one.top_p >= 1)
        most = max((one.top_k for one in with_top_k.samplings), default=0) + _MOST_TIES
        sorts = ((with_top_k, most), (with_top_p, 2**31), (others, None))
        self._draws = [_Draws(part, count) for part, count in sorts if part]
        # Rows that ask for the same number, so that one that asks for many costs the others nothing.
        asked = [one.num_logprobs for _, one in numbered if one.num_logprobs is not None]
        self._reported = [(count, part(partial(_asks_for, count))) for count in sorted(set(asked))]

    def choose(self, logits_RV: Tensor, histories: Histories) -> Tensor:
        """Chooses a token for each row.

        Args:
            logits_RV: fp32, [R, V].
            histories: The tokens before.

        Returns:
            Token ids, [R] int64; -1 for a row whose logits hold NaN.
        """
        processed = self._processed(logits_RV, histories)
        largest, token_ids = processed.max(dim=-1)  # NaN counts as the largest
        for draws in self._draws:
            token_ids[draws.rows] = draws.draw(processed, histories.lengths - histories.num_prompt)
        return token_ids.masked_fill(largest.isnan(), -1)

    def candidates(self, logits_RV: Tensor, histories: Histories) -> list[tuple[Tensor, Candidates]]:
        """The distributions that tokens are drawn from, with the rows that they are of."""
        processed = self._processed(logits_RV, histories)
        return [(draws.rows, draws.candidates(processed)) for draws in self._draws]

    def logprobs(self, logits_RV: Tensor, token_ids_R: Tensor) -> dict[int, Logprobs]:
        """Log-probabilities by row, for the rows that ask for them.

        Args:
            logits_RV: As for `choose`.
            token_ids_R: What it returned.
        """
        found: dict[int, Logprobs] = {}
        for count, part in self._reported:
            logprobs = logits_RV.index_select(0, part.rows).log_softmax(-1)
            chosen = logprobs.gather(1, token_ids_R.index_select(0, part.rows).clamp(min=0).unsqueeze(1)).squeeze(1)
            top, top_ids = logprobs.topk(min(count, logprobs.shape[1]))
            rows = zip(part.numbers, chosen.tolist(), top_ids.tolist(), top.tolist(), strict=True)
            found |= {row: Logprobs(own, ids, values) for row, own, ids, values in rows}
        return found

    def _processed(self, logits_RV: Tensor, histories: Histories) -> Tensor:
        """Logits after what applies to greedy rows as well."""
        if not (self._repeating or self._present or self._stops is not None):
            return logits_RV
        logits_RV = logits_RV.clone()
        if self._repeating:
            self._penalise_repetition(logits_RV, histories)
        if self._present:
            self._penalise_presence(logits_RV, histories)
        if self._stops is not None:
            rows, token_ids, min_new_tokens = self._stops
            is_early = (histories.lengths - histories.num_prompt).index_select(0, rows) < min_new_tokens
            logits_RV[rows, token_ids] = logits_RV[rows, token_ids].masked_fill(is_early, -torch.inf)
        return logits_RV

    def _penalise_repetition(self, logits_RV: Tensor, histories: Histories) -> None:
        rows = self._repeating.rows
        logits = logits_RV.index_select(0, rows)
        counts = _counts(logits, histories, rows, from_prompt=True)
        penalised = torch.where(logits < 0, logits * self._repetition, logits / self._repetition)
        logits_RV[rows] = torch.where(counts > 0, penalised, logits)

    def _penalise_presence(self, logits_RV: Tensor, histories: Histories) -> None:
        rows = self._present.rows
        logits = logits_RV.index_select(0, rows)
        counts = _counts(logits, histories, rows, from_prompt=False)
        logits_RV[rows] = logits - (counts > 0) * self._presence - counts * self._frequency


def _asks_for(num_logprobs: int, sampling: Sampling) -> bool:
    return sampling.num_logprobs == num_logprobs


def gumbel_noise(seeds: Tensor, places: Tensor, token_ids: Tensor) -> Tensor:
    """Noise of the standard Gumbel distribution, fp32; the arguments are broadcast.

    Args:
        seeds: Seeds, int64.
        places: The places of the tokens in their replies, integer.
        token_ids: Ids, integer.
    """
    stream = hash_uint32(hash_uint32(hash_uint32(seeds) ^ (seeds >> 32)) ^ places.long())
    share = (hash_uint32(hash_uint32(stream + token_ids * 0x9E3779B9) ^ token_ids).float() + 0.5) * 2.0**-32
    # Near 0, floats are fine enough for the largest noise, which decides; near 1 they round to 1.
    return -(-torch.log1p(-share.clamp(max=1 - 2.0**-24))).log()


def _of_top_p(scores_PK: Tensor, top_p: Tensor) -> Tensor:
    """Of sorted scores, the likeliest first, those that make up the share."""
    # Summed from the least likely on, as transformers does, so that rounding is the same.
    below = scores_PK.flip(-1).softmax(-1).cumsum(-1).flip(-1)
    is_out = below <= 1 - top_p
    is_out[:, 0] = False
    return scores_PK.masked_fill(is_out, -torch.inf)


def _counts(logits_PV: Tensor, histories: Histories, rows: Tensor, from_prompt: bool) -> Tensor:
    """How often each token occurs in the history, or in the reply alone, [P, V] fp32."""
    assert histories.token_ids is not None
    token_ids = histories.token_ids.index_select(0, rows)
    lengths, num_prompt = (x.index_select(0, rows).unsqueeze(1) for x in (histories.lengths, histories.num_prompt))
    place = torch.arange(token_ids.shape[1], device=token_ids.device)
    is_counted = place < lengths if from_prompt else (place >= num_prompt) & (place < lengths)
    return torch.zeros_like(logits_PV).scatter_add_(1, token_ids.long(), is_counted.to(logits_PV.dtype))
