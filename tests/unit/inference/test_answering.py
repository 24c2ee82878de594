"""Without these, replies could come from a model as it was before, or from another way of generating in silence."""

import gc
import threading
import weakref

import pytest
import torch
from transformers import GenerationConfig

from glmtune.errors import ConfigError, ModelError
from glmtune.inference.answering import engine_for, release, uses_engine
from glmtune.inference.chat import Chat
from glmtune.inference.engine.layers import why_not
from glmtune.inference.generate import answer, answer_one, generate_ids, generate_replies
from glmtune.inference.options import build_generation_config
from glmtune.prompts import Conversation, Message, render_prompt

PROMPTS = [[5, 6, 7], list(range(40)), [9] * 20, [50, 3, 8, 9], list(range(40, 75))]
GENERATION = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=[95], pad_token_id=0)


@pytest.fixture
def model(make_adapted):
    return make_adapted(dtype=torch.float32, config={"seq_length": 160}, target_modules="all-linear").eval()


def replies(model, prompts=PROMPTS, batch_size=None, generation=GENERATION):
    found = {}
    for ended, _ in answer(model, None, prompts, generation, batch_size):
        found |= dict(ended)
    return [found[index] for index in range(len(prompts))]


def plain(model, generation=GENERATION):
    return [generate_ids(model, [prompt], generation)[0] for prompt in PROMPTS]


def change(model, name="default", factor=-2.0):
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if f"lora_B.{name}." in path:
                weight.mul_(factor)


def add_other(model):
    model.add_adapter("other", model.peft_config["default"])
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "lora_B.other." in path:
                weight.fill_(0.05)


def fill_base(model):
    with torch.no_grad():
        model.get_base_model().get_input_embeddings().weight.mul_(-1)


CHANGES = {
    "trained on": change,
    "in double precision": lambda model: model.double(),
    "another added": add_other,
    "switched to another": lambda model: (add_other(model), model.set_adapter("other")),
    "merged": lambda model: model.merge_adapter(),
    "several active": lambda model: (add_other(model), model.base_model.set_adapter(["default", "other"])),
    "taken out": lambda model: (add_other(model), model.set_adapter("other"), model.delete_adapter("default")),
    "another base": fill_base,
    "in training mode": lambda model: model.train(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_replies_are_the_models_own_after_any_change(model, what):
    before = replies(model)
    assert before == plain(model)
    CHANGES[what](model)
    expected = plain(model)
    assert replies(model) == expected
    assert [answer_one(model, None, prompt, GENERATION) for prompt in PROMPTS] == expected
    is_the_same = what in ("in double precision", "another added", "merged", "in training mode")
    assert (expected == before) == is_the_same


def test_an_adapter_that_is_switched_off_for_a_while(model):
    own = replies(model)
    with model.disable_adapter():
        assert replies(model) == plain(model) != own
    assert replies(model) == own


def test_the_inside_of_a_peft_model_computes_with_the_adapter_too(model):
    replies(model)
    base = model.get_base_model()
    assert why_not(base) == "it is the inside of a PEFT model"
    assert replies(base) == plain(base) == plain(model)
    merged = model.merge_and_unload()
    assert uses_engine(merged, GENERATION)
    assert replies(merged) == plain(merged)


def test_prefixes_of_unchanged_adapters_stay_in_the_cache(model):
    add_other(model)
    prompt = PROMPTS[1]
    answer_one(model, None, prompt, GENERATION)
    change(model, "other")
    engine = engine_for(model, None, [160])
    num_before = engine.num_prefilled
    assert answer_one(model, None, prompt, GENERATION) == generate_ids(model, [prompt], GENERATION)[0]
    assert engine.num_prefilled - num_before == len(prompt) % 16
    change(model)
    num_before = engine.num_prefilled
    assert answer_one(model, None, prompt, GENERATION) == generate_ids(model, [prompt], GENERATION)[0]
    assert engine.num_prefilled - num_before == len(prompt)


def test_a_later_turn_computes_only_what_is_new(tiny):
    chat = Chat(*tiny, system="你是甄嬛" * 8, max_new_tokens=20)
    chat.ask("你好")
    engine = engine_for(tiny.model, tiny.tokenizer, [tiny.model.config.seq_length])
    first = render_prompt(Conversation((Message("user", "你好"),)).with_system(chat.system), tiny.tokenizer)
    messages = (*chat.history, Message("user", "再说一遍"))
    second = render_prompt(Conversation(messages).with_system(chat.system), tiny.tokenizer)
    num_before = engine.num_prefilled
    "".join(chat.stream("再说一遍"))
    assert len(first) > 16
    assert second[: len(first)] == first
    assert engine.num_prefilled - num_before <= len(second) - len(first) // 16 * 16


def test_an_engine_goes_with_its_model(make_adapted):
    model = make_adapted(dtype=torch.float32, config={"seq_length": 64})
    replies(model)
    engine = weakref.ref(engine_for(model, None, [20]))
    assert engine() is not None
    del model
    gc.collect()
    assert engine() is None


def test_what_the_engine_does_not_do_is_generated_by_transformers_and_said_once(tiny, caplog):
    conversations = [Conversation((Message("user", text),)) for text in ("你好", "你是谁？")]
    for _ in range(2):
        found = generate_replies(*tiny, conversations, max_new_tokens=6, num_beams=3)
    generation = build_generation_config(tiny.tokenizer, 512, {"max_new_tokens": 6, "num_beams": 3})
    prompts = [render_prompt(each, tiny.tokenizer) for each in conversations]
    expected = generate_ids(tiny.model, prompts, generation)
    assert replies(tiny.model, prompts, generation=generation) == expected
    assert found[0].text
    assert caplog.text.count("transformers' generate") == 1
    assert "it does not have the option num_beams=3" in caplog.text


@pytest.mark.parametrize(
    ("options", "is_possible"),
    [
        ({}, True),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "use_cache": True, "early_stopping": False}, True),
        ({"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 1.0}, True),
        ({"repetition_penalty": 1.2, "min_new_tokens": 3, "frequency_penalty": 1, "presence_penalty": -1}, True),
        ({"do_sample": True, "typical_p": 0.5}, False),
        ({"no_repeat_ngram_size": 2}, False),
        ({"max_time": 3.0}, False),
        ({"use_cache": False}, False),
        ({"renormalize_logits": True}, False),
    ],
)
def test_options_that_the_engine_has(tiny, options, is_possible):
    assert uses_engine(tiny.model, build_generation_config(tiny.tokenizer, 512, options)) == is_possible


def test_options_of_the_models_own_configuration_apply(model):
    own = model.get_base_model().generation_config
    free = replies(model)
    own.repetition_penalty = 5.0
    assert replies(model) == plain(model) != free
    own.no_repeat_ngram_size = 2
    assert not uses_engine(model, GENERATION)
    assert replies(model) == plain(model)


def test_options_of_the_engine_alone_are_refused_without_it(tiny):
    conversations = [Conversation((Message("user", "你好"),))]
    with pytest.raises(ConfigError, match=r"seed: only the engine has this, and it cannot be used: .*num_beams=2"):
        generate_replies(*tiny, conversations, do_sample=True, seed=1, num_beams=2)
    with pytest.raises(ConfigError, match="presence_penalty: expected a number from -2 to 2"):
        generate_replies(*tiny, conversations, presence_penalty=3)
    with pytest.raises(ConfigError, match="seed: no effect on greedy replies"):
        generate_replies(*tiny, conversations, seed=3)


def test_a_seed_gives_equal_questions_replies_of_their_own(tiny):
    conversations = [Conversation((Message("user", "你好"),))] * 4
    options = {"do_sample": True, "temperature": 2.0, "seed": 3, "max_new_tokens": 12}
    drawn = generate_replies(*tiny, conversations, **options)
    assert len(set(drawn)) == 4
    assert drawn == generate_replies(*tiny, conversations, **options)
    assert drawn[:1] == generate_replies(*tiny, conversations[:1], **options)


def test_a_seed_gives_the_same_reply_whatever_is_beside_it(tiny):
    conversations = [Conversation((Message("user", text),)) for text in ("你好", "你是谁？", "hello")]

    def draw(seed, conversations, batch_size=None):
        options = {"do_sample": True, "temperature": 2.0, "seed": seed, "max_new_tokens": 12}
        return generate_replies(*tiny, conversations, batch_size=batch_size, **options)

    first = draw(1, conversations)
    assert first == draw(1, conversations, batch_size=2)
    assert first[:1] == draw(1, conversations[:1])
    assert first[1:2] == draw(1, [conversations[2], conversations[1]])[1:]
    assert first != draw(2, conversations)


def test_a_batch_size_of_the_users_own_is_the_most_at_once(model):
    assert replies(model, batch_size=4) == plain(model)
    assert engine_for(model, None, [20] * 5, batch_size=2).max_rows == 2
    assert replies(model, batch_size=2) == plain(model)
    assert engine_for(model, None, [20]).max_rows == 2  # for one request any will do


def run_out_of_memory(monkeypatch, num_times):
    from glmtune.ops import reference

    real = reference.swiglu
    left = num_times

    def swiglu(gate_up):
        nonlocal left
        left -= 1
        if left >= 0:
            raise torch.OutOfMemoryError("out of memory")
        return real(gate_up)

    monkeypatch.setattr(reference, "swiglu", swiglu)


def test_memory_that_runs_out_halves_what_runs_at_once(model, monkeypatch, caplog):
    expected = plain(model)
    run_out_of_memory(monkeypatch, 2)
    assert replies(model) == expected
    assert "Out of memory with 5 prompts at once; continuing with 2." in caplog.text
    assert "Out of memory with 2 prompts at once; continuing with 1." in caplog.text


def test_memory_too_small_for_one_prompt_is_an_error(model, monkeypatch):
    run_out_of_memory(monkeypatch, 100)
    message = r"out of memory while generating 12 new tokens for 1 prompt\(s\) of up to \d+; lower max_new_tokens"
    with pytest.raises(ModelError, match=message):
        replies(model)
    with pytest.raises(ModelError, match=message):
        answer_one(model, None, PROMPTS[0], GENERATION)


def test_a_smaller_cache_is_made_where_there_is_no_memory_for_a_large_one(model, monkeypatch, caplog):
    from glmtune.inference.engine import capacity

    real = capacity.KeyValueCache

    def cache(shape, num_blocks, *rest):
        if num_blocks > 7:
            raise torch.OutOfMemoryError("out of memory")
        return real(shape, num_blocks, *rest)

    monkeypatch.setattr(capacity, "KeyValueCache", cache)
    assert replies(model) == plain(model)
    assert "Out of memory with a key-value cache of 12 blocks; continuing with 6." in caplog.text
    release(model)
    monkeypatch.setattr(capacity, "KeyValueCache", lambda *_: cache(None, 8))
    with pytest.raises(ModelError, match="no room for a key-value cache"):
        answer_one(model, None, PROMPTS[0], GENERATION)


@pytest.mark.parametrize("num_affordable", [20, 0])
def test_little_memory_makes_passes_smaller_before_it_makes_the_cache_so(model, monkeypatch, num_affordable):
    """Only the smallest passes leave memory for the cache; or, by the estimate, none do."""
    sizes = []

    def affordable(base, num_rows, max_pass_tokens):
        sizes.append(max_pass_tokens)
        return num_affordable if max_pass_tokens <= 256 else 0

    monkeypatch.setattr("glmtune.inference.answering.affordable_blocks", affordable)
    expected = plain(model)
    engine = engine_for(model, None, [len(prompt) + 12 for prompt in PROMPTS], batch_size=3)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 256
    # Three of the longest at once, or the longest alone.
    assert engine.num_free_blocks == (4 + 3 + 2 if num_affordable else 4)
    assert replies(model, batch_size=3) == expected


def test_replies_that_are_read_by_turns_or_by_several_threads(tiny):
    questions = ["你好", "你是谁？", "hello", "请介绍一下你自己"]
    expected = [Chat(*tiny, max_new_tokens=20).ask(question) for question in questions]
    streams = [Chat(*tiny, max_new_tokens=20).stream(question) for question in questions]
    pieces = ["", "", "", ""]
    while any(new := [next(stream, "") for stream in streams]):
        pieces = [before + more for before, more in zip(pieces, new, strict=True)]
    assert pieces == expected
    found = {}

    def ask(question):
        found[question] = Chat(*tiny, max_new_tokens=20).ask(question)

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[question] for question in questions] == expected


def test_a_cache_has_the_blocks_that_the_requests_at_hand_need(model):
    """Not those of the whole context, which would take memory from whoever goes on to train."""
    assert engine_for(model, None, [20, 33, 5, 40], batch_size=2).num_free_blocks == 3 + 3
    assert engine_for(model, None, [20, 33, 5, 40], batch_size=4).num_free_blocks == 2 + 3 + 1 + 3
    assert engine_for(model, None, [5] * 100, batch_size=4).num_free_blocks == 2 + 3 + 1 + 3  # the same one


def test_adapters_other_than_lora_are_left_to_transformers(model, caplog):
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["query_key_value"], feedforward_modules=[])
    other = get_peft_model(model.unload(), config).eval()
    assert replies(other) == plain(other)
    assert "it has an adapter other than LoRA" in caplog.text
