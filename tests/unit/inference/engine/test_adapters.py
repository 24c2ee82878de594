"""Without these, a reply could be that of another adapter, or of one that has been replaced."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from glmtune.adapters.adapter_files import save_adapter
from glmtune.errors import AdapterError
from glmtune.inference.engine.adapters import StackedAdapters
from glmtune.inference.engine.engine import Engine
from glmtune.models.families import family_of

CONFIG = {"seq_length": 160}
ADAPTERS = {
    "qkv": {},
    "all": {"target_modules": "all-linear", "r": 5, "use_rslora": True},
    "pattern": {
        "target_modules": ["dense", "dense_4h_to_h"],
        "r": 3,
        "rank_pattern": {"dense": 9},
        "alpha_pattern": {"dense_4h_to_h": 20},
        "layers_to_transform": [0, 2],
    },
}

Make = Callable[..., PeftModel]


@pytest.fixture
def make(make_adapted, tmp_path: Path) -> Make:
    """Makes a model with an adapter on the same base, and saves the adapter in a folder of that name."""

    def make(name: str, seed: int = 0, **lora: Any) -> PeftModel:
        model = make_adapted(dtype=torch.float32, config=CONFIG, **lora).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "lora_B" in path:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        save_adapter(model, tmp_path / name)
        return model

    return make


@pytest.fixture
def bare(make_adapted):
    return make_adapted(dtype=torch.float32, config=CONFIG).unload().eval()


def answer(engine: Engine, requests) -> list[list[int]]:
    running = [engine.submit(request) for request in requests]
    while any(one.finish_reason is None for one in running):
        engine.step()
    return [one.generated_ids for one in running]


def test_adapters_from_folders_in_one_batch(make, bare, prompts, replies_of, ask, tmp_path):
    """Of several ranks, scalings and targets, with blocks that are known from before."""
    engine = Engine(bare, None)
    expected = {None: replies_of(bare, prompts)}
    for name, lora in ADAPTERS.items():
        expected[name] = replies_of(make(name, **lora), prompts)
        engine.load_adapter(name, tmp_path / name)
    assert engine.adapters == [*ADAPTERS]
    assert len({str(replies) for replies in expected.values()}) == 4
    for _ in range(2):
        replies = answer(engine, [ask(prompt, adapter=name) for prompt in prompts for name in expected])
        for number, name in enumerate(expected):
            assert replies[number :: len(expected)] == expected[name]


def test_adapters_come_and_go_while_others_run(make, bare, prompts, replies_of, ask, tmp_path):
    first, second = (make(str(seed), seed, target_modules="all-linear", r=6) for seed in (1, 2))
    engine = Engine(bare, None, max_prefill_tokens=16)
    engine.load_adapter("a", tmp_path / "1")
    running = [engine.submit(ask(prompt, adapter=name)) for prompt in prompts for name in ("a", None)]
    engine.step()
    engine.load_adapter("b", tmp_path / "2")
    running += [engine.submit(ask(prompt, adapter="b")) for prompt in prompts]
    engine.step()
    with pytest.raises(AdapterError, match=r"adapter a is in use by \d+ requests"):
        engine.unload_adapter("a")
    while any(one.finish_reason is None for one in running):
        engine.step()
    assert [one.generated_ids for one in running[: 2 * len(prompts) : 2]] == replies_of(first, prompts)
    assert [one.generated_ids for one in running[1 : 2 * len(prompts) : 2]] == replies_of(bare, prompts)
    assert [one.generated_ids for one in running[2 * len(prompts) :]] == replies_of(second, prompts)
    engine.unload_adapter("a")
    assert engine.adapters == ["b"]
    with pytest.raises(AdapterError, match="'a' is not loaded; loaded: b"):
        engine.submit(ask(prompts[0], adapter="a"))
    assert answer(engine, [ask(prompt, adapter="b") for prompt in prompts]) == replies_of(second, prompts)


def test_an_adapter_that_is_replaced_shares_no_blocks_with_the_new_one(make, bare, prompts, replies_of, ask, tmp_path):
    engine = Engine(bare, None)
    for seed in (1, 2):
        model = make(str(seed), seed)
        engine.load_adapter("a", tmp_path / str(seed))
        assert answer(engine, [ask(prompt, adapter="a") for prompt in prompts]) == replies_of(model, prompts)


def test_the_adapter_that_the_model_itself_uses(make, bare):
    model = make("default")
    assert Engine(model, None).active_adapter == "default"
    with model.disable_adapter():
        assert Engine(model, None).active_adapter is None
    assert Engine(bare, None).active_adapter is None


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"use_dora": True}, "lora.use_dora"),
        ({"modules_to_save": ["output_layer"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "lora.bias=lora_only"),
        ({"lora_bias": True}, "lora.lora_bias"),
        ({"target_modules": ["query_key_value", "word_embeddings"]}, "word_embeddings is adapted"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused_with_the_reason(make, bare, tmp_path, lora, reason):
    make("odd", **lora)
    engine = Engine(bare, None)
    with pytest.raises(AdapterError, match=f"odd cannot be used beside other adapters: .*{reason}"):
        engine.load_adapter("odd", tmp_path / "odd")
    assert engine.adapters == []


def test_an_initialisation_that_moves_the_base_is_refused(make, bare, tmp_path):
    model = make("moved")
    model.peft_config["default"].init_lora_weights = "pissa"
    save_adapter(model, tmp_path / "moved")
    with pytest.raises(AdapterError, match="pissa moved part of the base into the adapter"):
        Engine(bare, None).load_adapter("moved", tmp_path / "moved")


def test_a_broken_adapter_is_refused_and_the_old_one_stays(
    make, make_adapted, bare, prompts, replies_of, ask, tmp_path
):
    model = make("good")
    engine = Engine(bare, None)
    engine.load_adapter("a", tmp_path / "good")
    broken = make("broken")
    with torch.no_grad():
        next(weight for name, weight in broken.named_parameters() if "lora_B" in name)[0] = torch.nan
    save_adapter(broken, tmp_path / "broken")
    save_adapter(make_adapted(config={"hidden_size": 48}), tmp_path / "other")
    for name, reason in (("broken", "NaN"), ("other", "does not fit"), ("missing", "adapter_config.json")):
        with pytest.raises(AdapterError, match=reason):
            engine.load_adapter("a", tmp_path / name)
    assert answer(engine, [ask(prompt, adapter="a") for prompt in prompts]) == replies_of(model, prompts)


# The stack


def test_adapters_take_the_room_of_those_that_have_gone(bare):
    shape = family_of(bare.config).shape(bare.config)
    stack = StackedAdapters(shape, torch.float32, "cpu")

    def weights(rank: int) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
        return {(1, 3): (torch.randn(rank, shape.ffn_hidden_size), torch.randn(shape.hidden_size, rank))}

    def added(index: int, x: torch.Tensor) -> torch.Tensor:
        output = torch.zeros(len(x), shape.hidden_size)
        stack.add_to(output, x, 1, 3, stack.chosen(torch.full((len(x),), index)))
        return output

    kept = {name: weights(rank) for name, rank in (("a", 10), ("b", 6), ("c", 20))}
    for name, each in kept.items():
        stack.load(name, each)
    version = stack.version
    assert sorted(stack.index(name) for name in kept) == [1, 2, 3]
    x = torch.randn(4, shape.ffn_hidden_size)
    for name, each in [("b", weights(6)), ("d", weights(16)), ("b", weights(4)), ("e", weights(3))]:
        if name == "d":
            stack.unload("a")
            del kept["a"]
        stack.load(name, each)
        kept[name] = each
        for other, pairs in kept.items():
            a, b = pairs[1, 3]
            torch.testing.assert_close(added(stack.index(other), x), x @ a.T @ b.T)
        assert not added(0, x).any()
    assert stack.version == version
    stack.load("large", weights(30))
    assert stack.version > version
    for number in range(20):
        stack.load(str(number), copy.copy(kept["c"]))
    a, b = kept["c"][1, 3]
    assert all(torch.allclose(added(stack.index(name), x), x @ a.T @ b.T, atol=1e-3) for name in ("c", "0", "19"))
