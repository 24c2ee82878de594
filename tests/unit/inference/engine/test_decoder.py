"""Without these, the engine's passes could compute something else than the model."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from glmtune.inference.engine.adapters import StackedAdapters, adapter_weights
from glmtune.inference.engine.cache import KeyValueCache
from glmtune.inference.engine.decoder import Decoder, PromptChunk
from glmtune.inference.engine.layers import DecoderWeights

PROMPT = [(7 * i * i + 3) % 96 for i in range(40)]
BLOCKS = [5, 2, 7]


def make_decoder(model, num_blocks: int = 12) -> Decoder:
    weights = DecoderWeights.of(model)
    dtype = weights.head.dtype
    cache = KeyValueCache(weights.shape, num_blocks, dtype, "cpu")
    return Decoder(weights, cache, StackedAdapters(weights.shape, dtype, "cpu"))


def expected_logits(model, token_ids: Sequence[int]) -> Tensor:
    """Of the token after each."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(token_ids)])).logits[0]


def decode(decoder: Decoder, rows: Sequence[tuple[int, int, Sequence[int], int]], width: int = 3) -> Tensor:
    token_ids, positions, tables, adapters = zip(*rows, strict=True)
    padded = [[*table, *[0] * (width - len(table))] for table in tables]
    return decoder.decode(
        torch.tensor(token_ids),
        torch.tensor(positions, dtype=torch.int32),
        torch.tensor(padded, dtype=torch.int32),
        torch.tensor(adapters, dtype=torch.int32),
    )


CONFIGS = {
    "as published": {},
    "one group": {"multi_query_group_num": 1},
    "a group for each head": {"multi_query_group_num": 4},
    "biases everywhere": {"add_bias_linear": True},
    "no final norm": {"post_layer_norm": False},
    "another base of the rotation": {"rope_ratio": 3},
}


@pytest.fixture(params=CONFIGS)
def model(request, make_adapted):
    """Each shape in turn, without adapters."""
    return make_adapted(config={"seq_length": 64, **CONFIGS[request.param]}).unload().eval()


@pytest.fixture
def adapted(make_adapted):
    """A model with adapters on all projections, of several ranks and scalings."""
    settings = {"target_modules": "all-linear", "rank_pattern": {"dense": 7}, "alpha_pattern": {"dense_h_to_4h": 3}}
    return make_adapted(config={"seq_length": 64}, **settings).eval()


def test_a_prompt_in_one_pass_and_token_by_token(model):
    """The logits that the model itself computes, at every position."""
    expected = expected_logits(model, PROMPT)
    decoder = make_decoder(model)
    assert_close(decoder.prefill([PromptChunk(PROMPT[:20], 0, BLOCKS)])[0], expected[19])
    for position in range(20, 40):
        logits = decode(decoder, [(PROMPT[position], position, BLOCKS, 0)])
        assert_close(logits[0], expected[position])


@pytest.mark.parametrize("size", [1, 3, 16, 17])
def test_a_prompt_in_chunks_of_any_size(model, size):
    decoder = make_decoder(model)
    expected = expected_logits(model, PROMPT)
    for start in range(0, 40, size):
        ids = PROMPT[start : start + size]
        logits = decoder.prefill([PromptChunk(ids, start, BLOCKS[: -(-(start + len(ids)) // 16)])])
        assert_close(logits[0], expected[start + len(ids) - 1])


def test_chunks_of_several_prompts_share_a_pass(model):
    """A new one, one that goes on, and one behind a block of the first that is computed in the same pass."""
    decoder = make_decoder(model)
    other = PROMPT[::-1]
    decoder.prefill([PromptChunk(other[:10], 0, [3])])
    behind = [*PROMPT[:16], 1, 2, 3]
    logits = decoder.prefill(
        [
            PromptChunk(PROMPT, 0, BLOCKS),
            PromptChunk(other[10:19], 10, [3, 9]),
            PromptChunk(behind[16:], 16, [BLOCKS[0], 8]),
        ]
    )
    for row, whole in zip(logits, [PROMPT, other[:19], behind], strict=True):
        assert_close(row, expected_logits(model, whole)[-1])


def test_rows_of_many_sequences_and_several_of_one(model):
    """Three tokens of one sequence at once, as speculation has it; a shorter sequence; and rows of padding."""
    decoder = make_decoder(model)
    other = PROMPT[::-1]
    decoder.prefill([PromptChunk(PROMPT[:30], 0, BLOCKS), PromptChunk(other[:4], 0, [4])])
    rows = [(PROMPT[position], position, BLOCKS, 0) for position in (30, 31, 32)]
    padding = (0, -1, [], 0)
    logits = decode(decoder, [rows[0], padding, rows[1], (other[4], 4, [4], 0), rows[2], padding])
    expected = expected_logits(model, PROMPT)
    for row, position in ((0, 30), (2, 31), (4, 32)):
        assert_close(logits[row], expected[position])
    assert_close(logits[3], expected_logits(model, other)[4])
    assert logits.isfinite().all()


def test_padding_leaves_the_cache_alone_but_for_the_first_block(model):
    decoder = make_decoder(model)
    decoder.prefill([PromptChunk(PROMPT, 0, BLOCKS)])
    before = decoder.cache.key[:, 16:].clone(), decoder.cache.value[:, 16:].clone()
    decode(decoder, [(3, -1, BLOCKS, 0), (4, -1, [], 0)])
    assert torch.equal(decoder.cache.key[:, 16:], before[0])
    assert torch.equal(decoder.cache.value[:, 16:], before[1])


def test_rows_of_one_pass_have_adapters_of_their_own(adapted):
    decoder = make_decoder(adapted)
    with adapted.disable_adapter():
        plain = expected_logits(adapted, PROMPT)
    own = expected_logits(adapted, PROMPT)
    decoder.adapters.load("own", adapter_weights(adapted, "default"))
    negated = {place: (a, -b) for place, (a, b) in adapter_weights(adapted, "default").items()}
    decoder.adapters.load("negated", negated)
    index = decoder.adapters.index
    chunks = [
        PromptChunk(PROMPT[:20], 0, [1, 2], index("own")),
        PromptChunk(PROMPT[:20], 0, [3, 4], 0),
        PromptChunk(PROMPT[:20], 0, [5, 6], index("negated")),
    ]
    logits = decoder.prefill(chunks)
    assert_close(logits[0], own[19])
    assert_close(logits[1], plain[19])
    assert (logits[2] - plain[19]).abs().max() > 1e-3
    rows = [(PROMPT[20], 20, [1, 2], index("own")), (PROMPT[20], 20, [3, 4], 0)]
    logits = decode(decoder, rows)
    assert_close(logits[0], own[20])
    assert_close(logits[1], plain[20])
