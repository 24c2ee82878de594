"""Without these, a server could mix up replies, lose blocks, or wait for ever."""

import random
import threading
from collections import defaultdict
from contextlib import suppress

import torch

from glmtune.adapters.adapter_files import save_adapter
from glmtune.errors import AdapterError
from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, RunningRequest, Sampling
from glmtune.ops import reference

ADAPTERS = {"attention": ["query_key_value"], "all": "all-linear", "mlp": ["dense_4h_to_h"]}
CONFIG = {"seq_length": 160}


def drive(engine: Engine, *threads: threading.Thread) -> dict[RunningRequest, list[int]]:
    """Steps in this thread while others ask, until all have ended; returns the ids that events told of."""
    told = defaultdict(list)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.num_running or engine.num_waiting:
        for event in engine.step():
            told[event.request] += event.new_ids
    return told


def random_sampling(chance: random.Random) -> Sampling:
    options = {"stop_token_ids": (95, chance.randrange(95)), "seed": chance.randrange(1000)}
    if chance.random() < 0.5:
        options |= {"do_sample": True, "temperature": chance.uniform(0.5, 2), "top_k": chance.choice((0, 5, 50))}
        options |= {"top_p": chance.choice((0.8, 1.0)), "min_p": chance.choice((None, 0.1))}
    if chance.random() < 0.3:
        options |= {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.2}
    return Sampling(chance.randint(1, 10), **options)


def test_a_soak(make_adapted, prompts, tmp_path):
    """Random requests of several threads, some cancelled, in few blocks, while an adapter is loaded again and again."""
    base = make_adapted(dtype=torch.float32, config=CONFIG).unload().eval()
    engine = Engine(base, None, max_rows=12, num_blocks=37, max_prefill_tokens=20)
    for name, targets in ADAPTERS.items():
        save_adapter(make_adapted(dtype=torch.float32, config=CONFIG, target_modules=targets), tmp_path / name)
        engine.load_adapter(name, tmp_path / name)
    asked = [random.Random(seed) for seed in range(3)]
    running: list[RunningRequest] = []

    def ask(chance: random.Random) -> None:
        for _ in range(70):
            adapter = chance.choice((None, *ADAPTERS))
            running.append(engine.submit(Request(chance.choice(prompts), random_sampling(chance), adapter)))
            if chance.random() < 0.2:
                engine.cancel(chance.choice(running))

    def load() -> None:
        for _ in range(10):
            with suppress(AdapterError):  # in use
                engine.load_adapter("mlp", tmp_path / "mlp")

    ask(asked[0])  # before the first step, so that some are cancelled however slow the threads are
    threads = [threading.Thread(target=ask, args=(chance,)) for chance in asked[1:]]
    told = drive(engine, *threads, threading.Thread(target=load))
    assert len(running) == 210
    assert engine.num_free_blocks == engine.num_blocks == 36
    assert engine.num_generated == sum(len(one.generated_ids) for one in running)
    again = [engine.submit(Request(one.request.prompt_ids, one.sampling, one.request.adapter)) for one in running]
    drive(engine)
    for one, other in zip(running, again, strict=True):
        assert told[one] == one.generated_ids
        if one.finish_reason == "cancelled":
            assert one.generated_ids == other.generated_ids[: len(one.generated_ids)]
        else:
            assert (one.finish_reason, one.generated_ids) == (other.finish_reason, other.generated_ids)
    assert {one.finish_reason for one in running} == {"stop", "length", "cancelled"}


def test_cancelling_frees_row_and_blocks_at_once(one_model, prompts, ask):
    """Of one that decodes, of one whose prompt is being computed, and of one that waits."""
    engine = Engine(one_model, None, max_rows=2, max_prefill_tokens=4)
    decoding = engine.submit(ask([1]))
    engine.step()
    prefilling, waiting = engine.submit(ask(prompts[9])), engine.submit(ask([2]))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (2, 1)
    assert engine.num_free_blocks == engine.num_blocks - 2 - 6
    engine.cancel(waiting)
    assert (engine.num_running, engine.num_waiting) == (2, 0)
    engine.cancel(prefilling)
    assert (engine.num_running, engine.num_free_blocks) == (1, engine.num_blocks - 2)
    engine.cancel(decoding)
    assert (engine.num_running, engine.num_free_blocks) == (0, engine.num_blocks)
    assert engine.step() == []


def test_cancelling_in_the_midst_of_a_step_waits_for_its_end(one_model, prompts, replies_of, ask, monkeypatch):
    """As the garbage collector does, when somebody has dropped an iterator of `run`."""
    engine = Engine(one_model, None)
    first, second, third = (engine.submit(ask(prompt, adapter="default")) for prompt in prompts[:3])
    engine.step()
    swiglu = reference.swiglu

    def cancel_and_go_on(gate_up: torch.Tensor) -> torch.Tensor:
        engine.cancel(first)
        return swiglu(gate_up)

    with monkeypatch.context() as patched:
        patched.setattr("glmtune.ops.reference.swiglu", cancel_and_go_on)
        engine.step()
    assert first.finish_reason == "cancelled"
    assert engine.num_running == 2
    while third.finish_reason is None:
        engine.step()
    assert [second.generated_ids, third.generated_ids] == replies_of(one_model, prompts[1:3])


def test_another_threads_cancellation_is_done_when_it_returns(one_model, ask):
    """While steps are taken, but fewer than the replies have tokens, so that none ends by itself."""
    engine = Engine(one_model, None)
    running = [engine.submit(ask([number], 100, stop_token_ids=())) for number in range(8)]
    num_steps = 5 * len(running)
    allowed = threading.Semaphore(0)
    seen = []

    def cancel() -> None:
        try:
            for one in running:
                allowed.release(5)
                engine.cancel(one)
                seen.append((one.finish_reason, one.blocks, len(one.generated_ids)))
        finally:
            allowed.release(num_steps)  # where it has failed, steps must not wait for it

    thread = threading.Thread(target=cancel)
    thread.start()
    for _ in range(num_steps):
        allowed.acquire()
        engine.step()
    thread.join()
    assert seen == [("cancelled", [], len(one.generated_ids)) for one in running]
