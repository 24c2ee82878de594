"""Without these, fused layers could train something else than PEFT's own modules compute."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from glmtune.adapters.fusable import why_not_fused
from glmtune.adapters.lora import make_lora_config
from glmtune.data.packed_batch import PackedBatch
from glmtune.data.packing import PackingCollator
from glmtune.ops import reference
from glmtune.training.fused import FusedLayers
from glmtune.training.packed_model import PackedModel, fuse

LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared prefix": {"shares_prefix": True},
    "several micro-batches": {"max_tokens": 20},
    "padded": {"pads_to_buckets": True},
    "everything": {"shares_prefix": True, "max_tokens": 40, "pads_to_buckets": True},
}

MakeAdapted = Callable[..., PackedModel]
Compute = Callable[..., Any]
Samples = list[dict[str, list[int]]]


def checkpoint(model: PackedModel) -> None:
    for layer in model.get_base_model().transformer.encoder.layers:
        layer.gradient_checkpointing = True


def rows_of(samples: Samples, **collator: Any) -> PackedBatch:
    (rows,) = PackingCollator(**collator)(samples)["micro_batches"]
    return rows


def losses_of(model: PackedModel, samples: Samples, **collator: Any) -> Tensor:
    with torch.no_grad():
        return model.label_losses(rows_of(samples, **collator))


def assert_equal(result: Any, expected: Any, tolerance: float = 1e-10) -> None:
    assert result.loss == pytest.approx(expected.loss, rel=tolerance)
    assert result.gradients.keys() == expected.gradients.keys()
    assert len(expected.gradients) > 0
    for name, gradient in expected.gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(
            result.gradients[name], gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()), msg=name
        )


# The same as PEFT's modules


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("targets", [*((name,) for name in LINEARS), "all-linear"])
def test_each_target(
    make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute, targets: Any, is_checkpointed: bool
) -> None:
    model = make_adapted(target_modules=targets if isinstance(targets, str) else list(targets))
    expected = alone(model, samples)
    assert fuse(model) is None
    if is_checkpointed:
        checkpoint(model)
    for layout in LAYOUTS.values():
        assert_equal(packed(model, samples, **layout), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_without_fusing(
    make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute, layout: str
) -> None:
    model = make_adapted(target_modules="all-linear")
    assert_equal(packed(model, samples, **LAYOUTS[layout]), alone(model, samples))


@pytest.mark.parametrize(
    "lora",
    [
        {"layers_to_transform": [0]},
        {"layers_to_transform": [1]},
        {"layers_to_transform": [2]},
        {"r": 1},
        {"r": 7, "lora_alpha": 3},
        {"rank_pattern": {"dense_h_to_4h": 2, "layers.1.self_attention.dense": 6}},
        {"alpha_pattern": {"dense_4h_to_h": 31}},
        {"use_rslora": True},
        {"target_modules": r".*(layers\.0\.mlp\.dense_4h_to_h|layers\.2\.self_attention\.query_key_value)"},
    ],
    ids=str,
)
def test_other_settings(
    make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute, lora: dict[str, Any]
) -> None:
    model = make_adapted(**{"target_modules": "all-linear", **lora})
    expected = alone(model, samples)
    assert fuse(model) is None
    assert_equal(packed(model, samples), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"add_bias_linear": True},
        {"add_qkv_bias": False},
        {"post_layer_norm": False},
        {"num_layers": 1},
        {"multi_query_group_num": 1},
        {"multi_query_group_num": 4},
        {"rope_ratio": 50},
        {"layernorm_epsilon": 0.1},
    ],
    ids=str,
)
def test_other_bases(
    make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute, config: dict[str, Any]
) -> None:
    model = make_adapted(config=config, target_modules="all-linear")
    expected = alone(model, samples)
    assert fuse(model) is None
    assert_equal(packed(model, samples, shares_prefix=True), expected)


def test_in_float32(make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute) -> None:
    model = make_adapted(torch.float32, target_modules="all-linear")
    expected = alone(model, samples)
    assert fuse(model) is None
    assert_equal(packed(model, samples), expected, tolerance=2e-5)


def test_adapters_of_a_16_bit_base_are_trained_in_float32(
    make_adapted: MakeAdapted, samples: Samples, packed: Compute
) -> None:
    model = make_adapted(torch.bfloat16, target_modules="all-linear")
    fuse(model)
    gradients = packed(model, samples).gradients
    exact = packed(make_adapted(target_modules="all-linear"), samples).gradients
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    for name, gradient in gradients.items():
        assert (gradient - exact[name]).norm() < 0.05 * exact[name].norm(), name


def test_weights_by_sample(make_adapted: MakeAdapted, samples: Samples, packed: Compute) -> None:
    model = make_adapted()
    expected = packed(model, samples, loss_weight="sample")
    assert fuse(model) is None
    assert_equal(packed(model, samples, loss_weight="sample"), expected)
    assert packed(model, samples).loss > 2 * expected.loss


@pytest.mark.parametrize("is_fused", [False, True])
def test_samples_do_not_see_each_other(make_adapted: MakeAdapted, samples: Samples, is_fused: bool) -> None:
    model = make_adapted(torch.float32, target_modules="all-linear")
    if is_fused:
        fuse(model)
    before = losses_of(model, samples)
    num_labels = [sum(label != -100 for label in sample["labels"][1:]) for sample in samples]
    begin, end = sum(num_labels[:2]), sum(num_labels[:3])
    samples[2] = {**samples[2], "input_ids": [95 - token for token in samples[2]["input_ids"]]}
    after = losses_of(model, samples)
    assert torch.equal(before[:begin], after[:begin])
    assert torch.equal(before[end:], after[end:])
    assert (before[begin:end] != after[begin:end]).all()


# What stays PEFT's own


def test_the_base_alone_while_adapters_are_disabled(make_adapted: MakeAdapted, samples: Samples) -> None:
    model = make_adapted(target_modules="all-linear")
    with model.disable_adapter():
        expected = losses_of(model, samples)
    adapted = losses_of(model, samples)
    fuse(model)
    with model.disable_adapter():
        torch.testing.assert_close(losses_of(model, samples), expected)
    torch.testing.assert_close(losses_of(model, samples), adapted)
    assert (adapted - expected).abs().max() > 1e-3


def test_an_adapter_that_changes_later_is_used(make_adapted: MakeAdapted, samples: Samples) -> None:
    model = make_adapted(target_modules="all-linear")
    fuse(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    fused = losses_of(model, samples)
    model.fused_layers = None
    torch.testing.assert_close(fused, losses_of(model, samples))


def test_an_adapter_that_is_loaded_later_is_used(make_adapted: MakeAdapted, samples: Samples) -> None:
    model, other = (make_adapted(target_modules="all-linear") for _ in range(2))
    fuse(model)
    before = losses_of(model, samples)
    weights = {name: 1.5 * value for name, value in get_peft_model_state_dict(other).items()}
    for each in (model, other):
        set_peft_model_state_dict(each, weights)
    torch.testing.assert_close(losses_of(model, samples), losses_of(other, samples))
    assert (losses_of(model, samples) - before).abs().max() > 1e-3


def test_parameters_and_files_keep_their_names(make_adapted: MakeAdapted) -> None:
    model = make_adapted(target_modules="all-linear")
    names, saved = [name for name, _ in model.named_parameters()], list(get_peft_model_state_dict(model))
    state = list(model.state_dict())
    assert fuse(model) is None
    assert [name for name, _ in model.named_parameters()] == names
    assert list(get_peft_model_state_dict(model)) == saved
    assert list(model.state_dict()) == state


def test_other_calls_run_through_peft(make_adapted: MakeAdapted) -> None:
    model, ids = make_adapted().eval(), torch.arange(12).view(2, 6)
    before = model(input_ids=ids).logits
    fuse(model)
    assert torch.equal(model(input_ids=ids).logits, before)


# Dropout


def test_dropout_is_drawn_anew_at_each_pass(make_adapted: MakeAdapted, samples: Samples) -> None:
    model = make_adapted(lora_dropout=0.5)
    assert fuse(model) is None
    first, second = losses_of(model, samples), losses_of(model, samples)
    assert (first - second).abs().max() > 1e-3


def test_the_same_seed_repeats_dropout(make_adapted: MakeAdapted, samples: Samples, packed: Compute) -> None:
    model = make_adapted(lora_dropout=0.5, target_modules="all-linear")
    fuse(model)
    results = []
    for is_checkpointed in (False, False, True):
        if is_checkpointed:
            checkpoint(model)
        torch.manual_seed(3)
        results.append(packed(model, samples))
    for result in results[1:]:
        assert_equal(result, results[0], tolerance=1e-15)


def test_there_is_no_dropout_in_evaluation(make_adapted: MakeAdapted, samples: Samples) -> None:
    model, plain = make_adapted(lora_dropout=0.5), make_adapted()
    fuse(model)
    torch.testing.assert_close(losses_of(model.eval(), samples), losses_of(plain, samples))


def test_dropout_changes_nothing_on_average(make_adapted: MakeAdapted, samples: Samples) -> None:
    """The last layer's adapter adds to the logits' input linearly; what dropout adds is zero in the mean."""
    model = make_adapted(lora_dropout=0.5, target_modules=["dense_4h_to_h"], layers_to_transform=[2])
    fuse(model)
    rows = rows_of(samples)
    with torch.no_grad():
        mean = torch.stack([model.label_hidden(rows) for _ in range(400)]).mean(0)
        one, exact = model.label_hidden(rows), (model.eval(), model.label_hidden(rows))[1]
    assert (mean - exact).norm() < 0.1 * (one - exact).norm()


def test_no_two_projections_share_a_mask(
    make_adapted: MakeAdapted, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_adapted(lora_dropout=0.5, target_modules="all-linear")
    fuse(model)
    streams: list[int] = []
    original = reference.dropout

    def spy(x: Tensor, mask: reference.Mask) -> Tensor:
        streams.append(mask.stream)
        return original(x, mask)

    monkeypatch.setattr(reference, "dropout", spy)
    losses_of(model, samples)
    assert len(streams) == len(set(streams)) == 12


# What is not fused


def test_a_plain_model_can_be_fused(make_adapted: MakeAdapted) -> None:
    model = make_adapted(target_modules="all-linear")
    assert why_not_fused(model) is None
    assert model.fused_layers is None  # asking changes nothing
    assert fuse(model) is None
    assert isinstance(model.fused_layers, FusedLayers)


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"use_dora": True}, "lora.use_dora"),
        ({"modules_to_save": ["output_layer"]}, "lora.modules_to_save trains whole modules"),
        ({"bias": "all"}, "lora.bias=all trains biases of the base, which stay changed where the adapter is off"),
        (
            {"bias": "lora_only"},
            "lora.bias=lora_only trains biases of the base, which stay changed where the adapter is off",
        ),
        ({"lora_bias": True}, "lora.lora_bias trains biases of the adapter"),
        (
            {"target_modules": ["query_key_value", "output_layer"]},
            "output_layer is adapted, which is not a linear layer of a block",
        ),
        (
            {"target_modules": ["query_key_value", "word_embeddings"]},
            "word_embeddings is adapted, which is not a linear layer of a block",
        ),
        ({"config": {"rmsnorm": False}}, "the base has LayerNorm"),
        ({"config": {"fp32_residual_connection": True}}, "the base has fp32_residual_connection"),
        ({"config": {"multi_query_attention": False}}, "the base has no multi_query_attention"),
        (
            {"config": {"apply_residual_connection_post_layernorm": True}},
            "the base has apply_residual_connection_post_layernorm",
        ),
    ],
    ids=str,
)
def test_what_is_not_fused_is_named_and_trains_all_the_same(
    make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute, lora: dict[str, Any], reason: str
) -> None:
    model = make_adapted(**lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name or "lora_B.default.bias" in name:
                nn.init.normal_(parameter, std=0.1)
    assert fuse(model) == why_not_fused(model) == reason
    assert model.fused_layers is None
    expected = alone(model, samples)
    for layout in LAYOUTS.values():
        # Logits of an output layer that is trained, and a residual stream in fp32, are rounded to fp32.
        assert_equal(packed(model, samples, **layout), expected, tolerance=1e-4)


def test_a_residual_stream_in_float32_stays_so(make_adapted: MakeAdapted, samples: Samples) -> None:
    model = make_adapted(torch.bfloat16, config={"fp32_residual_connection": True})
    hidden = model.label_hidden(rows_of(samples))
    assert hidden.dtype == torch.float32
    assert (hidden != hidden.bfloat16()).any()


@pytest.mark.parametrize("name", ["hidden_dropout", "attention_dropout"])
def test_dropout_in_the_base_is_not_fused(make_adapted: MakeAdapted, name: str) -> None:
    assert fuse(make_adapted(config={name: 0.1})) == f"the base has {name}"


def test_a_second_adapter_is_not_fused(
    make_adapted: MakeAdapted, samples: Samples, alone: Compute, packed: Compute
) -> None:
    model = make_adapted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter("other", make_lora_config(model.get_base_model(), {"target_modules": ["query_key_value"]}))
    assert fuse(model) == "there are several adapters"
    assert model.fused_layers is None
    assert_equal(packed(model, samples), alone(model, samples))


def test_more_that_is_trained_is_not_fused(make_adapted: MakeAdapted) -> None:
    model = make_adapted()
    model.get_base_model().transformer.encoder.final_layernorm.weight.requires_grad_()
    assert fuse(model) == "more than LoRA's A and B is trained"
