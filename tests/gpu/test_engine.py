"""Without these, CUDA graphs could answer with the weights, rows or adapters of an earlier step."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig

from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.layers import why_not
from glmtune.inference.engine.request import Request, Sampling
from glmtune.inference.generate import answer, answer_one, generate_ids
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
NUM_NEW = 24


def small_base() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=256,
        hidden_size=128,
        ffn_hidden_size=192,
        kv_channels=32,
        num_attention_heads=8,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        seq_length=512,
    )
    return ChatGLMForConditionalGeneration(config)


def fill(model: torch.nn.Module) -> None:
    """Random weights of a size that makes replies differ."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3 if "lora_" in name else 0.2)


@pytest.fixture
def model() -> PeftModel:
    """A small random model in fp32 with two adapters that change it, on the GPU."""
    model = get_peft_model(
        small_base(), LoraConfig(r=4, target_modules=["query_key_value", "dense"]), adapter_name="one"
    )
    model.add_adapter("two", LoraConfig(r=8, target_modules="all-linear"))
    fill(model)
    return model.cuda().eval()


def expected(model: PeftModel, prompt: list[int], adapter: str | None) -> list[int]:
    """The reply of transformers' `generate`."""
    generation = GenerationConfig(max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0, eos_token_id=[2])
    if adapter is None:
        with model.disable_adapter():
            return generate_ids(model, [prompt], generation)[0]
    model.set_adapter(adapter)
    return generate_ids(model, [prompt], generation)[0]


def test_replies_through_graphs_are_those_of_generate(model: PeftModel) -> None:
    """Rows of several adapters that join at different times and wait for a row; then each alone."""
    lengths = [1, 3, 16, 17, 40, 5, 100, 64, 33]
    prompts = [torch.randint(3, 256, (length,)).tolist() for length in lengths]
    adapters = [("one", "two", None)[number % 3] for number in range(len(prompts))]
    replies = [expected(model, *pair) for pair in zip(prompts, adapters, strict=True)]
    assert len({tuple(reply) for reply in replies}) == len(replies)
    engine = Engine(model, None, max_rows=6, num_blocks=200)
    sampling = Sampling(max_new_tokens=NUM_NEW, stop_token_ids=(2,))
    requests = [Request(*pair[:1], sampling, pair[1]) for pair in zip(prompts, adapters, strict=True)]
    running = []
    for request in requests:
        running.append(engine.submit(request))
        engine.step()
    while any(one.finish_reason is None for one in running):
        engine.step()
    assert [one.generated_ids for one in running] == replies
    for request, reply in zip(requests, replies, strict=True):
        alone = engine.submit(request)
        while alone.finish_reason is None:
            engine.step()
        assert alone.generated_ids == reply


def test_bf16_errs_no_more_than_the_model_itself() -> None:
    """Both against the same weights in fp32, over the whole vocabulary, at every step of replies."""
    base = small_base()
    fill(base)
    base = base.bfloat16().cuda().eval()
    exact = copy.deepcopy(base).float()
    prompts = [torch.randint(3, 256, (length,)).tolist() for length in (1, 5, 17, 40, 64, 100)]
    sampling = Sampling(max_new_tokens=NUM_NEW, num_logprobs=256)
    found: dict = {}
    for event in Engine(base, None, max_rows=4, num_blocks=200).run([Request(prompt, sampling) for prompt in prompts]):
        found.setdefault(event.request, []).extend(event.logprobs)
    errors, of_model = [], []
    for running, logprobs in found.items():
        ids = torch.tensor([running.token_ids[:-1]], device="cuda")
        with torch.no_grad():
            expected, eager = (
                one(input_ids=ids).logits[0, running.num_prompt - 1 :].float().log_softmax(-1) for one in (exact, base)
            )
        for step, one in enumerate(logprobs):
            errors.append(torch.tensor(one.top, device="cuda") - expected[step, one.top_ids])
        of_model.append((eager - expected).flatten())
    assert len(errors) == len(prompts) * NUM_NEW
    root_mean_square = [torch.cat(some).square().mean().sqrt().item() for some in (errors, of_model)]
    assert root_mean_square[0] <= 1.1 * root_mean_square[1]


def test_what_the_kernels_cannot_run_on_is_left_to_transformers(model: PeftModel, monkeypatch) -> None:
    assert why_not(model) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert why_not(model) == "its kernels need an Ampere or newer GPU"


def test_chat_and_generate_take_the_engine_on_a_gpu(model: PeftModel, monkeypatch) -> None:
    """The way that users take: what is free is looked at, the engine is made and kept, adapters are compared."""
    model.set_adapter("one")
    generation = GenerationConfig(max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0, eos_token_id=[2])
    prompts = [torch.randint(3, 256, (length,)).tolist() for length in (5, 40, 17)]
    replies = [generate_ids(model, [prompt], generation)[0] for prompt in prompts]
    monkeypatch.setattr(model, "generate", None)
    assert [answer_one(model, None, prompt, generation) for prompt in prompts] == replies
    found: dict[int, list[int]] = {}
    for ended, _ in answer(model, None, prompts, generation, batch_size=2):
        found |= dict(ended)
    assert [found[number] for number in range(3)] == replies


def test_an_adapter_loaded_after_a_graph_was_recorded_is_the_one_that_answers(model: PeftModel, tmp_path) -> None:
    model.save_pretrained(tmp_path, selected_adapters=["two"])
    prompt = list(range(3, 40))
    other = expected(model, prompt, "two")
    model.delete_adapter("two")
    before = expected(model, prompt, "one")
    engine = Engine(model, None, max_rows=4, num_blocks=100)
    sampling = Sampling(max_new_tokens=NUM_NEW, stop_token_ids=(2,))

    def reply(adapter: str) -> list[int]:
        running = engine.submit(Request(prompt, sampling, adapter))
        while running.finish_reason is None:
            engine.step()
        return running.generated_ids

    assert reply("one") == before
    engine.load_adapter("two", tmp_path / "two")
    assert (reply("two"), reply("one")) == (other, before)
    engine.unload_adapter("one")
    assert reply("two") == other
