"""Without these, packed or padded samples could read each other's text."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from glmtune.models.chatglm import ChatGLMConfig
from glmtune.models.chatglm.masking import causal_mask

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
ATTENTION = ["sdpa", "eager", "flex_attention"]
# Not flex attention with a filled static cache: there transformers' own causal mask reads its offset only after the
# cache has moved on.
CONTINUED = [*((attention, "dynamic") for attention in ATTENTION), ("sdpa", "static"), ("eager", "static")]
ROWS = [[5, 9, 3, 2], [8, 1, 10]]  # lengths of the samples in each row; both make 19


@pytest.fixture(autouse=True)
def uncompiled_flex() -> Iterator[None]:
    """Compiling flex attention for the CPU takes half a minute a shape; the masks are the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def samples() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [[torch.randint(0, 640, (1, length), generator=generator) for length in row] for row in ROWS]


@pytest.fixture
def packed(samples: list[list[Tensor]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.cat([torch.cat(row, dim=1) for row in samples]),
        "position_ids": torch.stack([torch.cat([torch.arange(length) for length in row]) for row in ROWS]),
    }


def _alone(model, samples: list[list[Tensor]]) -> Tensor:
    return torch.cat([torch.cat([model(sample).logits for sample in row], dim=1) for row in samples])


def _cache(kind: str, model):
    return {
        "none": lambda: None,
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=32),
    }[kind]()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("num_rows", [1, 2])
@torch.no_grad()
def test_packed_samples_do_not_see_each_other(make_model, samples, packed, attention, cache, num_rows) -> None:
    model = make_model(attention)
    inputs = {name: tensor[:num_rows] for name, tensor in packed.items()}
    logits = model(**inputs, past_key_values=_cache(cache, model), use_cache=cache != "none").logits
    assert_close(logits, _alone(make_model(), samples[:num_rows]), **CLOSE)


@torch.no_grad()
def test_packed_by_default_cache(make_model, samples, packed) -> None:
    model = make_model()
    assert model.config.use_cache
    assert_close(model(**packed).logits, _alone(model, samples), **CLOSE)


@torch.no_grad()
def test_rows_share_one_row_of_positions(make_model, samples, packed) -> None:
    model = make_model()
    input_ids = packed["input_ids"][:1].expand(3, -1)
    logits = model(input_ids, position_ids=packed["position_ids"][:1]).logits
    assert_close(logits, _alone(model, samples[:1]).expand(3, -1, -1), **CLOSE)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_packed_rows_with_a_padding_mask(make_model, samples, packed, attention, use_cache) -> None:
    """The last sample of each row is declared padding."""
    model = make_model(attention)
    mask = torch.ones_like(packed["input_ids"])
    for row, lengths in enumerate(ROWS):
        mask[row, sum(lengths[:-1]) :] = 0
    logits = model(**packed, attention_mask=mask, use_cache=use_cache).logits
    assert_close(logits[mask == 1], _alone(make_model(), samples)[mask == 1], **CLOSE)


@torch.no_grad()
def test_prefill_in_two_parts_keeps_seeing_the_first(make_model, samples) -> None:
    """Positions that go on from the cache are one sample, however it is cut."""
    model = make_model()
    whole = torch.cat(samples[0], dim=1)
    cache = DynamicCache(config=model.config)
    positions = torch.arange(whole.shape[1]).unsqueeze(0)
    parts = [
        model(whole[:, s], position_ids=positions[:, s], past_key_values=cache) for s in (slice(11), slice(11, 19))
    ]
    assert_close(torch.cat([part.logits for part in parts], dim=1), model(whole).logits, **CLOSE)


@pytest.mark.parametrize(("attention", "cache"), CONTINUED)
@pytest.mark.parametrize("border", [5, 11, 14, 16])  # 5 and 14 are where samples of the first row begin
@torch.no_grad()
def test_packed_rows_in_two_parts(make_model, samples, packed, attention, cache, border) -> None:
    model = make_model(attention)
    seen = _cache(cache, model)
    parts = [
        model(**{name: tensor[:, part] for name, tensor in packed.items()}, past_key_values=seen).logits
        for part in (slice(border), slice(border, 19))
    ]
    assert_close(torch.cat(parts, dim=1), _alone(make_model(), samples), **CLOSE)


@pytest.mark.parametrize(("attention", "cache"), CONTINUED)
@torch.no_grad()
def test_decoding_on_after_packed_rows(make_model, samples, packed, attention, cache) -> None:
    """Tokens one by one after each row belong to its last sample."""
    model = make_model(attention)
    seen = _cache(cache, model)
    model(**packed, past_key_values=seen)
    more = torch.tensor([[7, 8], [9, 10]])
    logits = torch.cat(
        [
            model(
                more[:, step : step + 1],
                position_ids=torch.tensor([[row[-1] + step] for row in ROWS]),
                past_key_values=seen,
            ).logits
            for step in range(2)
        ],
        dim=1,
    )
    for row, row_samples in enumerate(samples):
        alone = make_model()(torch.cat((row_samples[-1], more[row : row + 1]), dim=1)).logits[:, -2:]
        assert_close(logits[row : row + 1], alone, **CLOSE)


@torch.no_grad()
def test_flash_attention_refuses_what_it_cannot_separate(make_model, packed) -> None:
    """The mask comes first, and needs no flash attention to be installed."""
    config = ChatGLMConfig(attn_implementation="flash_attention_2")
    ids, positions = packed["input_ids"], packed["position_ids"]
    hidden = torch.zeros(*ids.shape, 32)
    with pytest.raises(ValueError, match="single row"):
        causal_mask(config, hidden, None, positions, None)
    with pytest.raises(ValueError, match="single row"):
        causal_mask(config, hidden[:1], torch.ones(1, ids.shape[1]), positions[:1], None)
    model = make_model()
    cache = DynamicCache(config=model.config)
    model(ids[:1], position_ids=positions[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="empty cache"):
        causal_mask(config, hidden[:1, :1], None, torch.tensor([[10]]), cache)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_positions", [True, False])
@torch.no_grad()
def test_padded_rows(make_model, samples, attention, side, with_positions) -> None:
    model = make_model(attention)
    first, second = samples[0][1], samples[0][2]  # 9 and 3 tokens
    padding = torch.zeros(1, 6, dtype=torch.long)
    ones = torch.ones(1, 9, dtype=torch.long)
    if side == "left":
        input_ids, mask = torch.cat((padding, second), 1), torch.cat((padding, ones[:, :3]), 1)
    else:
        input_ids, mask = torch.cat((second, padding), 1), torch.cat((ones[:, :3], padding), 1)
    input_ids, mask = torch.cat((first, input_ids)), torch.cat((ones, mask))
    # Rotary positions are relative, so that it does not matter whether padding is counted.
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1) if with_positions else None
    logits = model(input_ids, attention_mask=mask, position_ids=positions).logits
    alone = make_model()
    assert_close(logits[:1], alone(first).logits, **CLOSE)
    assert_close(logits[1, mask[1] == 1], alone(second).logits[0], **CLOSE)
