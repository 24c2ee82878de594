"""Without these, the engine's replies could differ from the model's own, or depend on who shares the batch."""

import random
from collections.abc import Iterable

import pytest
import torch

from glmtune.errors import AdapterError, DataError, ModelError
from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.layers import why_not
from glmtune.inference.engine.request import RunningRequest


def finish(engine: Engine, running: Iterable[RunningRequest]) -> list[list[int]]:
    """Steps until all have ended; what events say and what requests say agree."""
    running = list(running)
    told = {one: one.generated_ids for one in running}
    for _ in range(2000):
        for event in engine.step():
            told[event.request] += event.new_ids
            assert (event.finish_reason is None) == (event.request.finish_reason is None)
        if all(one.finish_reason for one in running):
            break
    assert [told[one] for one in running] == [one.generated_ids for one in running]
    return [one.generated_ids for one in running]


def answer(engine: Engine, requests) -> list[list[int]]:
    return finish(engine, [engine.submit(request) for request in requests])


@pytest.mark.parametrize(("max_rows", "max_prefill_tokens"), [(1, 512), (3, 7), (64, 1), (64, 512)])
def test_greedy_replies_are_those_of_generate(model, prompts, replies_of, ask, max_rows, max_prefill_tokens):
    """All at once, in few rows, and with prompts in chunks of a few tokens."""
    expected = replies_of(model, prompts)
    engine = Engine(model, None, max_rows=max_rows, max_prefill_tokens=max_prefill_tokens)
    replies = answer(engine, [ask(prompt, adapter="default") for prompt in prompts])
    assert replies == expected
    assert len({tuple(reply) for reply in replies}) > 3
    # Once more: prompts now share blocks of those before.
    assert answer(engine, [ask(prompt, adapter="default") for prompt in prompts]) == expected


def test_the_golden_models(golden, replies_of, ask):
    from transformers import AutoModelForCausalLM

    from glmtune.models.chatglm import register_auto_classes

    register_auto_classes()
    model = AutoModelForCausalLM.from_pretrained(golden, dtype=torch.float32).eval()
    prompts = [list(range(3, 3 + length)) for length in (2, 16, 35, 60)]
    engine = Engine(model, None)
    expected = replies_of(model, prompts, is_batched=False)
    assert answer(engine, [ask(prompt) for prompt in prompts]) == expected == replies_of(model, prompts)


def test_stop_ids_end_a_reply(model, prompts, replies_of, ask):
    """Every third token of a reply is a stop id of some request."""
    free = replies_of(model, prompts)
    stops = [(reply[index % 18 + 1], reply[4]) for index, reply in enumerate(free)]
    expected = [replies_of(model, [prompt], stop_ids=stop)[0] for prompt, stop in zip(prompts, stops, strict=True)]
    requests = [
        ask(prompt, adapter="default", stop_token_ids=stop) for prompt, stop in zip(prompts, stops, strict=True)
    ]
    engine = Engine(model, None, max_rows=5)
    running = [engine.submit(request) for request in requests]
    assert finish(engine, running) == expected
    assert {one.finish_reason for one in running} == {"stop"}


def test_each_request_has_its_own_length(one_model, prompts, replies_of, ask):
    lengths = [1 + 5 * index % 23 for index in range(len(prompts))]
    expected = [replies_of(one_model, [p], n)[0] for p, n in zip(prompts, lengths, strict=True)]
    engine = Engine(one_model, None, max_rows=4)
    running = [engine.submit(ask(p, n, adapter="default")) for p, n in zip(prompts, lengths, strict=True)]
    assert finish(engine, running) == expected
    assert {one.finish_reason for one in running} == {"length"}


def test_requests_that_come_and_go_at_random(one_model, prompts, replies_of, ask):
    """With few blocks, some cancelled on the way; in the end all blocks are free."""
    expected = replies_of(one_model, prompts)
    chance = random.Random(0)
    for max_prefill_tokens in (5, 64):
        engine = Engine(one_model, None, max_rows=4, num_blocks=17, max_prefill_tokens=max_prefill_tokens)
        running: dict[RunningRequest, int] = {}
        for _ in range(120):
            if chance.random() < 0.5:
                number = chance.randrange(len(prompts))
                running[engine.submit(ask(prompts[number], adapter="default"))] = number
            if chance.random() < 0.1:
                engine.cancel(chance.choice([*running]) if running else engine.submit(ask([1])))
            engine.step()
        while any(one.finish_reason is None for one in running):
            engine.step()
        for one, number in running.items():
            if one.finish_reason == "cancelled":
                assert one.generated_ids == expected[number][: len(one.generated_ids)]
            else:
                assert one.generated_ids == expected[number]
        assert {one.finish_reason for one in running} == {"length", "cancelled"}
        assert engine.num_free_blocks == 16


def test_a_reply_does_not_depend_on_others_adapters(one_model, prompts, replies_of, ask):
    """The same prompts with and without an adapter, in one batch; they share no blocks."""
    own = replies_of(one_model, prompts)
    with one_model.disable_adapter():
        plain = replies_of(one_model, prompts)
    assert own != plain
    engine = Engine(one_model, None)
    requests = [ask(prompt, adapter=adapter) for prompt in prompts for adapter in ("default", None)]
    replies = answer(engine, requests)
    assert replies[::2] == own
    assert replies[1::2] == plain


def test_a_later_turn_shares_what_the_reply_has_computed(one_model, prompts, replies_of, ask):
    engine = Engine(one_model, None)
    [reply] = answer(engine, [ask(prompts[8], adapter="default")])
    turn = [*prompts[8], *reply, 7, 8]
    running = engine.submit(ask(turn, adapter="default"))
    engine.step()
    assert running.num_computed == len(turn)
    other = engine.submit(ask([*turn, 5], adapter="default"))
    assert finish(engine, [running, other]) == replies_of(one_model, [turn, [*turn, 5]])


def test_an_identical_prompt_computes_its_last_token_again(one_model, replies_of, ask):
    """A prompt of whole blocks, all of which are known."""
    prompt = list(range(32))
    engine = Engine(one_model, None)
    expected = replies_of(one_model, [prompt])
    for _ in range(3):
        assert answer(engine, [ask(prompt, adapter="default")]) == expected


def test_what_can_never_fit_is_refused_with_the_numbers(one_model, ask):
    with pytest.raises(ModelError, match=r"100 tokens and 61 new ones do not fit .* 160 tokens"):
        Engine(one_model, None).submit(ask([1] * 100, 61))
    with pytest.raises(ModelError, match=r"100 tokens and 60 new ones need 10 blocks .* has 9 in all"):
        Engine(one_model, None, num_blocks=10).submit(ask([1] * 100, 60))
    engine = Engine(one_model, None)
    with pytest.raises(DataError, match="at least one token"):
        engine.submit(ask([]))
    for token_id in (-1, 96):
        with pytest.raises(DataError, match="outside of the model's vocabulary, 0 to 95"):
            engine.submit(ask([1, token_id]))
    with pytest.raises(AdapterError, match="'other' is not loaded; loaded: default"):
        engine.submit(ask([1], adapter="other"))
    assert engine.step() == []


def test_what_does_not_fit_now_waits_in_order_of_arrival(one_model, ask):
    engine = Engine(one_model, None, num_blocks=11)
    first, large, small = (engine.submit(ask([1] * length, 60)) for length in (50, 90, 1))
    engine.step()
    assert first.generated_ids
    assert not large.generated_ids
    for _ in range(60):
        engine.step()
    assert first.finish_reason == "length"
    assert large.generated_ids
    assert not small.generated_ids  # there was room for it before, but the large one came first


def test_a_long_prompt_does_not_hold_others_up(one_model, prompts, ask):
    """The running one gets a token at each step, while the prompt is computed four tokens a step."""
    engine = Engine(one_model, None, max_prefill_tokens=4)
    running = engine.submit(ask([1], 40))
    engine.step()
    long = engine.submit(ask(prompts[9], 5))
    for step in range(2, 19):
        engine.step()
        assert len(running.generated_ids) == step
        assert long.num_computed == 4 * (step - 1)
    engine.step()
    assert len(long.generated_ids) == 1


def test_logprobs_are_of_the_models_own_distribution(one_model, prompts, ask):
    engine = Engine(one_model, None)
    running = [engine.submit(ask(prompt, 6, num_logprobs=3, repetition_penalty=3.0)) for prompt in prompts[:4]]
    silent = engine.submit(ask(prompts[4], 6))
    reported: dict[RunningRequest, list] = {one: [] for one in [*running, silent]}
    while silent.finish_reason is None:
        for event in engine.step():
            reported[event.request] += event.logprobs
    assert reported[silent] == []
    for one, logprobs in ((one, reported[one]) for one in running):
        with one_model.disable_adapter(), torch.no_grad():
            logits = one_model(input_ids=torch.tensor([one.token_ids])).logits[0, one.num_prompt - 1 : -1]
        expected = logits.log_softmax(-1)
        for row, token_id, found in zip(expected, one.generated_ids, logprobs, strict=True):
            assert found.chosen == pytest.approx(row[token_id].item(), abs=1e-4)
            assert found.top == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
            assert found.top_ids == row.topk(3).indices.tolist()


def test_nan_ends_its_own_request_alone(one_model, prompts, replies_of, ask):
    """An adapter that holds NaN; later requests get blocks that it has written."""
    expected = replies_of(one_model, prompts)
    engine = Engine(one_model, None, num_blocks=40)
    with torch.no_grad():
        one_model.get_base_model().get_input_embeddings().weight[94] = torch.nan
    broken = engine.submit(ask([*prompts[0], 94]))
    good = [engine.submit(ask(prompt, adapter="default")) for prompt in prompts if 94 not in prompt]
    events = [event for event in engine.step() if event.request is broken]
    assert [event.finish_reason for event in events] == ["error"]
    with pytest.raises(ModelError, match="computes NaN instead of logits"):
        raise events[0].error
    right = [reply for reply, prompt in zip(expected, prompts, strict=True) if 94 not in prompt]
    assert finish(engine, good) == right
    again = [engine.submit(ask([*prompt], adapter="default")) for prompt in prompts if 94 not in prompt]
    assert finish(engine, again) == right


def test_running_many_gives_their_events_and_cancels_the_rest_when_closed(one_model, prompts, replies_of, ask):
    engine = Engine(one_model, None, max_rows=3)
    requests = [ask(prompt, adapter="default") for prompt in prompts]
    replies: dict[int, list[int]] = {id(request): [] for request in requests}
    for event in engine.run(requests):
        replies[id(event.request.request)] += event.new_ids
    assert list(replies.values()) == replies_of(one_model, prompts)
    events = engine.run(requests)
    started = next(events).request
    events.close()
    assert started.finish_reason == "cancelled"
    assert engine.step() == []


def test_an_interruption_ends_all_requests_and_leaves_the_engine_usable(
    one_model, prompts, replies_of, ask, monkeypatch
):
    engine = Engine(one_model, None, num_blocks=41)
    running = [engine.submit(ask(prompt, adapter="default")) for prompt in prompts]

    def interrupt(gate_up):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("glmtune.ops.reference.swiglu", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert {one.finish_reason for one in running} == {"error"}
    assert engine.num_free_blocks == 40
    requests = [ask(prompt, adapter="default") for prompt in prompts]
    assert answer(engine, requests) == replies_of(one_model, prompts)


def test_memory_that_runs_out_is_an_error_and_the_engine_goes_on(one_model, prompts, replies_of, ask, monkeypatch):
    engine = Engine(one_model, None)
    running = engine.submit(ask(max(prompts, key=len)))

    def run_out(gate_up):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr("glmtune.ops.reference.swiglu", run_out)
        with pytest.raises(ModelError, match="out of memory while generating"):
            engine.step()
    assert running.finish_reason == "error"
    assert answer(engine, [ask(prompts[0], adapter="default")]) == replies_of(one_model, prompts[:1])


def test_a_stop_text_ends_the_reply_before_it(tiny, ask):
    """Wherever tokens begin and end; the request beside it, without stop texts, goes on."""
    engine = Engine(tiny.model, tiny.tokenizer)
    prompt = tiny.tokenizer.encode_text("你好，请介绍")
    [whole] = answer(engine, [ask(prompt, 30)])
    text = tiny.tokenizer.decode_text(whole)
    stop = text[len(text) // 2 :][:3]
    running = engine.submit(ask(prompt, 30, stop_texts=("never said", stop)))
    beside = engine.submit(ask(prompt, 30))
    pieces = []
    while beside.finish_reason is None:
        pieces += [event.text for event in engine.step() if event.request is running]
    assert "".join(pieces) == text.partition(stop)[0]
    assert running.finish_reason == "stop"
    assert running.generated_ids == whole[: len(running.generated_ids)]
    assert len(running.generated_ids) < 30
    assert beside.generated_ids == whole


def test_without_a_stop_text_in_it_the_whole_text_comes(tiny, ask):
    engine = Engine(tiny.model, tiny.tokenizer)
    prompt = tiny.tokenizer.encode_text("你好")
    [whole] = answer(engine, [ask(prompt, 12)])
    text = tiny.tokenizer.decode_text(whole)
    pieces = [event.text for event in engine.run([ask(prompt, 12, stop_texts=(text[-1] + "never said",))])]
    assert "".join(pieces) == text


@pytest.mark.parametrize("quantize", ["fp8", "int8", "nf4"])
def test_a_base_in_fewer_bits(tiny_base, prompts, replies_of, ask, quantize):
    from glmtune.loading.bases import load_base

    model, _ = load_base(str(tiny_base), "float32", "cpu", quantize=quantize)
    engine = Engine(model, None)
    assert answer(engine, [ask(prompt) for prompt in prompts[:9]]) == replies_of(model, prompts[:9], is_batched=False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"rmsnorm": False}, "the base has LayerNorm"),
        ({"fp32_residual_connection": True}, "the base has fp32_residual_connection"),
        ({"apply_residual_connection_post_layernorm": True}, "the base has apply_residual"),
    ],
)
def test_models_that_it_does_not_support_are_refused(make_adapted, config, reason):
    model = make_adapted(config=config)
    for each in (model, model.get_base_model()):
        assert why_not(each).startswith(reason)
        with pytest.raises(ModelError, match=reason):
            Engine(each, None)


def test_adapters_that_it_does_not_support_are_named(make_adapted, one_model):
    assert why_not(one_model) is None
    assert why_not(make_adapted(use_dora=True)) == "lora.use_dora"
    assert "output_layer is adapted" in why_not(make_adapted(target_modules=["query_key_value", "output_layer"]))
    one_model.merge_adapter()
    assert why_not(one_model) == "an adapter is merged into the base"
