"""Without these, options could mean something else than in transformers, or a reply could depend on the batch."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Sampling
from glmtune.inference.engine.sampling import Histories, Logprobs, Sampler, gumbel_noise

V = 200
PROMPTS = [[1, 2, 3, 3], [7] * 9, [150], [4, 5]]
REPLIES = [[9, 9, 9, 2], [8], [], [4, 11, 199]]
STOPS = (0, 17)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(4, V, generator=torch.Generator().manual_seed(0)) * 3


def histories(prompts: Sequence[list[int]] = PROMPTS, replies: Sequence[list[int]] = REPLIES) -> Histories:
    """What lies behind a history is not to be counted."""
    whole = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    token_ids = torch.full((len(whole), 20), 42)
    for row, ids in enumerate(whole):
        token_ids[row, : len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) for ids in whole])
    return Histories(token_ids, lengths, torch.tensor([len(prompt) for prompt in prompts]))


def sample(logits: Tensor, samplings: Sequence[Sampling], histories: Histories) -> tuple[Tensor, dict[int, Logprobs]]:
    """A token for each row, and log-probabilities by row, where asked for."""
    sampler = Sampler(samplings, logits.device)
    token_ids = sampler.choose(logits, histories)
    return token_ids, sampler.logprobs(logits, token_ids)


def by_transformers(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities that transformers draws from, row by row."""
    rows = []
    for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        if row == len(logits):
            break
        scores, ids = logits[row : row + 1].clone(), torch.tensor([[*prompt, *reply]])
        processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.min_new_tokens:
            processors.append(
                MinNewTokensLengthLogitsProcessor(len(prompt), sampling.min_new_tokens, [*sampling.stop_token_ids])
            )
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            processors.append(MinPLogitsWarper(sampling.min_p))
        rows.append(processors(ids, scores).softmax(-1))
    return torch.cat(rows)


def distributions(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The probabilities that are drawn from here, [R, V]."""
    probabilities = torch.zeros_like(logits)
    for rows, candidates in Sampler(samplings, "cpu").candidates(logits, histories()):
        shape = candidates.log_probabilities.shape
        probabilities[rows] = torch.zeros(shape[0], V).scatter(
            1, candidates.token_ids.expand(shape), candidates.log_probabilities.exp()
        )
    return probabilities


DRAWN = Sampling(20, do_sample=True, top_k=0, seed=1)
OPTIONS = {
    "all tokens": DRAWN,
    "temperature": replace(DRAWN, temperature=0.3),
    "top_k": replace(DRAWN, top_k=7),
    "top_k of all": replace(DRAWN, top_k=V + 5),
    "top_k 1": replace(DRAWN, top_k=1),
    "top_p": replace(DRAWN, top_p=0.7),
    "top_p so small that one is left": replace(DRAWN, top_p=1e-6),
    "min_p": replace(DRAWN, min_p=0.05),
    "min_p 1": replace(DRAWN, min_p=1.0),
    "repetition_penalty": replace(DRAWN, repetition_penalty=1.4),
    "repetition_penalty below 1": replace(DRAWN, repetition_penalty=0.6),
    "min_new_tokens": replace(DRAWN, min_new_tokens=2, stop_token_ids=STOPS),
    "all of them": replace(
        DRAWN,
        temperature=1.7,
        top_k=60,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        min_new_tokens=4,
        stop_token_ids=STOPS,
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_distributions_are_those_of_transformers(logits, name):
    expected = by_transformers(logits, OPTIONS[name])
    found = distributions(logits, [OPTIONS[name]] * 4)
    assert torch.equal(found > 0, expected > 0)
    assert_close(found, expected)


@pytest.mark.parametrize("shift", range(len(OPTIONS)))
def test_each_row_has_options_of_its_own(logits, shift):
    options = [[*OPTIONS.values()][(shift + 3 * row) % len(OPTIONS)] for row in range(4)]
    expected = torch.stack([by_transformers(logits, one)[row] for row, one in enumerate(options)])
    found = distributions(logits, options)
    assert torch.equal(found > 0, expected > 0)
    assert_close(found, expected)


def test_tokens_as_likely_as_the_kth_are_candidates_too(logits):
    ties = logits.round()
    sampling = replace(DRAWN, top_k=9)
    assert_close(distributions(ties, [sampling] * 4), by_transformers(ties, sampling))


def test_presence_and_frequency_are_of_the_reply_alone(logits):
    """As OpenAI's reference defines them."""
    sampling = replace(DRAWN, presence_penalty=0.5, frequency_penalty=0.25)
    expected = logits.clone()
    for row, reply in enumerate(REPLIES):
        for token_id in {*reply}:
            expected[row, token_id] -= reply.count(token_id) * 0.25 + 0.5
    assert_close(distributions(logits, [sampling] * 4), expected.softmax(-1))


def test_greedy_rows_take_the_likeliest_after_penalties(logits):
    greedy = Sampling(20)
    assert sample(logits, [greedy] * 4, histories())[0].tolist() == logits.argmax(-1).tolist()
    best = logits[3].argmax().item()
    history = histories(PROMPTS, [*REPLIES[:3], [best]])
    for penalty in ({"repetition_penalty": 50.0}, {"presence_penalty": 50.0}, {"frequency_penalty": 50.0}):
        token_ids, _ = sample(logits, [*[greedy] * 3, replace(greedy, **penalty)], history)
        assert token_ids[3] == logits[3].argsort(descending=True)[1]
        assert token_ids[:3].tolist() == logits[:3].argmax(-1).tolist()
    early = replace(greedy, min_new_tokens=2, stop_token_ids=(best,))
    assert sample(logits, [early] * 4, history)[0][3] != best
    assert sample(logits, [replace(early, min_new_tokens=1)] * 4, history)[0][3] == best


@pytest.mark.parametrize("options", [{}, {"top_k": 12}, {"top_p": 0.8}], ids=str)
def test_draws_have_the_right_frequencies(options):
    """Of 40,000 seeds; each token's count within five standard deviations."""
    row = torch.randn(1, 30, generator=torch.Generator().manual_seed(3)) * 2
    sampling = replace(DRAWN, **options)
    probabilities = by_transformers(row, sampling)[0]
    count = 40_000
    samplings = [replace(sampling, seed=seed) for seed in range(count)]
    place = Histories(None, torch.full((count,), 3), torch.ones(count, dtype=torch.int64))
    drawn = sample(row.expand(count, 30), samplings, place)[0].bincount(minlength=30).double()
    deviation = (count * probabilities * (1 - probabilities)).sqrt()
    assert ((drawn - count * probabilities).abs() <= 5 * deviation + 1e-9).all()


def test_noise_is_gumbel_and_independent_between_seeds_places_and_tokens():
    """Mean and variance, and no correlation along any of the three."""
    seeds, places, ids = torch.arange(40).view(-1, 1, 1), torch.arange(50).view(1, -1, 1), torch.arange(200)
    noise = gumbel_noise(seeds, places, ids).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)
    centred = noise - noise.mean()
    for dim in range(3):
        neighbours = centred.narrow(dim, 1, noise.shape[dim] - 1) * centred.narrow(dim, 0, noise.shape[dim] - 1)
        assert neighbours.mean().abs() < 0.015


def test_a_draw_is_the_same_whoever_shares_the_batch(logits):
    one = replace(DRAWN, top_k=5, seed=11)
    alone = sample(logits[:1], [one], histories(PROMPTS[:1], REPLIES[:1]))[0]
    for others in ([Sampling(9)] * 3, [replace(DRAWN, top_k=150, seed=2)] * 3, [*OPTIONS.values()][-3:]):
        batched = sample(logits.flip(0), [*others, one], histories(PROMPTS[::-1], REPLIES[::-1]))[0]
        assert batched[3] == alone[0]


def test_nan_is_reported_for_its_own_row(logits):
    logits[1, 5] = torch.nan
    for sampling in (Sampling(9), DRAWN, replace(DRAWN, top_k=5), replace(DRAWN, top_p=0.5)):
        token_ids = sample(logits, [sampling] * 4, histories())[0]
        assert [token_id == -1 for token_id in token_ids.tolist()] == [False, True, False, False]


def test_logprobs_ignore_the_options(logits):
    options = replace(OPTIONS["all of them"], num_logprobs=2)
    token_ids, logprobs = sample(logits, [options, Sampling(9), replace(options, num_logprobs=0), DRAWN], histories())
    assert sorted(logprobs) == [0, 2]
    raw = logits.log_softmax(-1)
    assert logprobs[0].chosen == pytest.approx(raw[0, token_ids[0]].item())
    assert logprobs[0].top == pytest.approx(raw[0].topk(2).values.tolist())
    assert logprobs[0].top_ids == raw[0].topk(2).indices.tolist()
    assert logprobs[2].chosen == pytest.approx(raw[2, token_ids[2]].item())
    assert logprobs[2].top == []


def test_one_row_that_asks_for_many_logprobs_costs_the_others_nothing(logits, monkeypatch):
    found = []
    topk = Tensor.topk
    monkeypatch.setattr(Tensor, "topk", lambda scores, k: found.append(scores.shape[0] * k) or topk(scores, k))
    samplings = [Sampling(9, num_logprobs=count) for count in (2, 30, 0, 2)]
    token_ids, logprobs = sample(logits, samplings, histories())
    assert sum(found) == 30 + 2 + 2
    raw = logits.log_softmax(-1)
    for row, sampling in enumerate(samplings):
        expected = raw[row].sort(descending=True, stable=True)
        assert logprobs[row].top == pytest.approx(expected.values[: sampling.num_logprobs].tolist())
        assert logprobs[row].chosen == pytest.approx(raw[row, token_ids[row]].item())


# In the engine


def test_a_seeds_reply_does_not_depend_on_the_batch(one_model, prompts, ask):
    options = {"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.1, "frequency_penalty": 0.1}
    requests = [ask(prompt, seed=number, **options) for number, prompt in enumerate(prompts)]

    def replies(engine: Engine, order: Sequence[int]) -> dict[int, list[int]]:
        running = {number: engine.submit(requests[number]) for number in order}
        while any(one.finish_reason is None for one in running.values()):
            engine.step()
        return {number: one.generated_ids for number, one in running.items()}

    engine = Engine(one_model, None, max_rows=4, max_prefill_tokens=9)
    together = replies(engine, range(len(prompts)))
    for number in (0, 5, 13):
        assert replies(engine, [number]) == {number: together[number]}
    assert replies(Engine(one_model, None), [*together][::-1]) == together
    assert together[9] != together[13]  # the same prompt with other seeds


def test_without_a_seed_replies_differ_and_torchs_seed_repeats_them(one_model, prompts, ask):
    engine = Engine(one_model, None)

    def draw() -> list[list[int]]:
        running = [engine.submit(ask(prompts[1], do_sample=True, temperature=2.0)) for _ in range(2)]
        while any(one.finish_reason is None for one in running):
            engine.step()
        return [one.generated_ids for one in running]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = draw()
        torch.manual_seed(0)
        assert draw() == first
    assert first[0] != first[1]


def test_penalties_follow_the_reply_of_each_row(one_model, prompts, replies_of, ask):
    """Greedy with a repetition penalty, as `generate` has it, while rows come and go."""
    expected = replies_of(one_model, prompts, is_batched=False, repetition_penalty=1.3)
    engine = Engine(one_model, None, max_rows=3)
    requests = [ask(prompt, adapter="default", repetition_penalty=1.3) for prompt in prompts]
    plain = [engine.submit(ask(prompt, 2 + number % 5)) for number, prompt in enumerate(prompts)]
    running = [engine.submit(request) for request in requests]
    while any(one.finish_reason is None for one in [*plain, *running]):
        engine.step()
    assert [one.generated_ids for one in running] == expected
