"""Without these, transformers, Trainer and PEFT could find the model lacking what they rely on."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM

from glmtune.errors import ModelError
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(3, 640, (2, 19), generator=torch.Generator().manual_seed(3))


# ---- outputs ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_inputs_embeds(make_model, input_ids) -> None:
    model = make_model()
    embedded = model.get_input_embeddings()(input_ids)
    assert_close(model(inputs_embeds=embedded).logits, model(input_ids).logits)
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one"):
        model()


@torch.no_grad()
def test_logits_to_keep(make_model, input_ids) -> None:
    model = make_model()
    logits = model(input_ids).logits
    assert_close(model(input_ids, logits_to_keep=3).logits, logits[:, -3:])
    kept = torch.tensor([0, 7])
    assert_close(model(input_ids, logits_to_keep=kept).logits, logits[:, kept])


@torch.no_grad()
def test_attentions_and_hidden_states(make_model, input_ids) -> None:
    model = make_model("eager")
    output = model(input_ids, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 19, 19)] * 2
    for weights in output.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 4, 19))
        assert weights.triu(1).count_nonzero() == 0
    assert len(output.hidden_states) == model.config.num_layers + 1
    normed = model.transformer.encoder.final_layernorm(output.hidden_states[-1])
    assert_close(model.transformer.output_layer(normed), output.logits)
    assert model(input_ids).hidden_states is None


@torch.no_grad()
def test_tuple_outputs(make_model, input_ids) -> None:
    model = make_model()
    loss, logits, cache = model(input_ids, labels=input_ids, use_cache=True, return_dict=False)
    assert (loss.ndim, logits.shape, cache.get_seq_length()) == (0, (2, 19, 640), 19)


@torch.no_grad()
def test_loss_is_the_mean_over_learnt_tokens(make_model, input_ids) -> None:
    model = make_model()
    labels = input_ids.clone()
    labels[:, :10] = -100
    output = model(input_ids, labels=labels)
    expected = nn.functional.cross_entropy(output.logits[:, 9:-1].flatten(0, 1), input_ids[:, 10:].flatten())
    assert_close(output.loss, expected)
    summed = model(input_ids, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    assert_close(summed, expected * 18 / 100)
    assert model.bfloat16()(input_ids, labels=labels).loss.dtype == torch.float32


def test_the_model_without_its_head(make_model, input_ids) -> None:
    model = make_model()
    with torch.no_grad():
        assert_close(
            model.transformer.output_layer(model.transformer(input_ids).last_hidden_state), model(input_ids).logits
        )


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, input_ids, use_reentrant) -> None:
    def gradients(model) -> dict[str, torch.Tensor]:
        model.train().requires_grad_(False)
        for layer in model.transformer.encoder.layers:  # as with LoRA: the embedding stays frozen
            layer.self_attention.query_key_value.weight.requires_grad_(True)
        model(input_ids, labels=input_ids).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients(make_model())
    model = make_model()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    calls = []
    for layer in model.transformer.encoder.layers:
        layer.self_attention.register_forward_hook(lambda *_: calls.append(1))
    found = gradients(model)
    assert len(calls) == 2 * model.config.num_layers  # each layer ran twice: it was really checkpointed
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.count_nonzero() > 0
        assert_close(gradient, expected[name])


def test_dropout_is_only_for_training(make_model, input_ids) -> None:
    model = make_model(hidden_dropout=0.5, attention_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model(input_ids).logits, model(input_ids).logits)
        model.train()
        assert not torch.equal(model(input_ids).logits, model(input_ids).logits)


# ---- generation ------------------------------------------------------------------------------------------------------


def _prompts(input_ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A left-padded batch of two prompts, and the prompts alone."""
    mask = torch.ones_like(input_ids)
    mask[1, :8] = 0
    batch = {"input_ids": input_ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    return batch, [input_ids[:1], input_ids[1:, 8:]]


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_batch_generates_what_each_prompt_alone_does(make_model, input_ids, cache, attention, options) -> None:
    model = make_model(attention)
    batch, prompts = _prompts(input_ids)
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
        **options,
    }
    together = model.generate(**batch, **options)[:, 19:]
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(prompt, **{**options, "cache_implementation": None})[0, prompt.shape[1] :]
        assert row.tolist() == alone.tolist()


@torch.no_grad()
def test_greedy_is_the_argmax_of_a_plain_forward(make_model, input_ids) -> None:
    model = make_model()
    expected = input_ids
    for _ in range(8):
        expected = torch.cat((expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    assert model.generate(input_ids, max_new_tokens=8, do_sample=False).tolist() == expected.tolist()
    assert model.generate(input_ids, max_new_tokens=8, do_sample=False, use_cache=False).tolist() == expected.tolist()


def test_sampling(make_model, input_ids) -> None:
    model = make_model()
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.9, "top_p": 0.8, "top_k": 20}
    torch.manual_seed(0)
    first = model.generate(input_ids, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(input_ids, **options), first)
    assert not torch.equal(model.generate(input_ids, **options), first)


def test_several_end_tokens(make_model, input_ids) -> None:
    model = make_model()
    reply = model.generate(input_ids[:1], max_new_tokens=8, do_sample=False)[0, 19:].tolist()
    stop = reply[3]
    stopped = model.generate(input_ids[:1], max_new_tokens=8, do_sample=False, eos_token_id=[639, stop], pad_token_id=0)
    assert stopped[0, 19:].tolist() == reply[: reply.index(stop) + 1]


def test_a_second_turn_over_the_cache_of_the_first(make_model, input_ids) -> None:
    model = make_model()
    first = model.generate(
        input_ids[:1, :10], max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    longer = torch.cat((first.sequences, input_ids[:1, 10:]), dim=1)
    again = model.generate(longer, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert again.tolist() == model.generate(longer, max_new_tokens=4, do_sample=False).tolist()


# ---- the published layout --------------------------------------------------------------------------------------------


def test_chatglm3_6b_has_its_published_size() -> None:
    config = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True)
    with torch.device("meta"):
        weights = ChatGLMForConditionalGeneration(config).state_dict()
    assert len(weights) == 3 + 28 * 7
    assert sum(weight.numel() for weight in weights.values()) == 6_243_584_000


@pytest.mark.real_data
def test_weights_have_their_published_names(real_data: Path) -> None:
    reference = real_data / "reference" / "chatglm3-6b"
    config = ChatGLMConfig.from_json_file(reference / "config.json")
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(config).half()
    weights = model.state_dict()
    for index_file in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = json.loads((reference / index_file).read_text(encoding="utf-8"))
        assert weights.keys() == index["weight_map"].keys() - {"transformer.rotary_pos_emb.inv_freq"}
    assert len(weights) == 199
    assert sum(weight.nbytes for weight in weights.values()) == 2 * 6_243_584_000
    assert not list(model.buffers())


def test_both_auto_classes_give_the_model_with_its_head(official_folder: Path) -> None:
    for auto_class in (AutoModel, AutoModelForCausalLM):
        assert type(auto_class.from_pretrained(official_folder)) is ChatGLMForConditionalGeneration


def test_embeddings_are_never_resized(make_model) -> None:
    model = make_model()
    embeddings = model.get_input_embeddings()
    assert model.resize_token_embeddings(640) is embeddings
    assert model.resize_token_embeddings() is embeddings
    for size in (641, 600):
        with pytest.raises(ModelError, match=f"{size}.*640"):
            model.resize_token_embeddings(size)
    assert embeddings.weight.shape == (640, 32)
