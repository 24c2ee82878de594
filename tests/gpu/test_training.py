"""Without these, fused layers, CUDA graphs and fp8 could learn something else on a GPU than plain modules."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from rich.console import Console
from torch import Tensor

from glmtune.adapters.lora import attach_lora
from glmtune.config import load_config
from glmtune.data.packed_batch import PackedBatch
from glmtune.data.packing import PackingCollator, TokenizedSample, pack
from glmtune.loading.formats import quantize_layers
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.training.graphs import GradientAccumulator
from glmtune.training.packed_model import PackedModel, fuse
from glmtune.training.run import train
from settings import changed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def make_model(
    dtype: torch.dtype, targets: object = "all-linear", dropout: float = 0.0, quantize="none"
) -> PackedModel:
    """A model with a random adapter, B included, the same for every dtype."""
    config = ChatGLMConfig(
        num_layers=4,
        padded_vocab_size=1000,
        hidden_size=256,
        ffn_hidden_size=688,
        kv_channels=64,
        num_attention_heads=8,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
    )
    torch.manual_seed(0)
    base = ChatGLMForConditionalGeneration(config).to(torch.bfloat16).to(dtype).cuda()
    quantize_layers(base, quantize)
    settings = {"r": 8, "lora_alpha": 32, "lora_dropout": dropout, "target_modules": targets}
    model = PackedModel(attach_lora(base, settings)).train()
    generator = torch.Generator("cuda").manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02, generator=generator)
    return model


def make_samples(seed: int = 0, number: int = 12) -> list[TokenizedSample]:
    """Samples of 3 to 60 tokens, most of which begin with the same nine."""
    random = numpy.random.default_rng(seed)
    prefix = random.integers(0, 1000, 9)
    samples = []
    for index in range(number):
        own = random.integers(0, 1000, random.integers(3, 52))
        ids = own if index % 4 == 0 else numpy.concatenate([prefix, own])
        labels = numpy.where(numpy.arange(len(ids)) < len(ids) - random.integers(1, 3), -100, ids)
        samples.append(TokenizedSample.of(ids, labels))
    return samples


def trained(model: PackedModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(model: PackedModel, packed: PackedBatch) -> tuple[float, Tensor]:
    loss = model(packed=packed.to("cuda"))
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained(model))]).double()


def distance(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


@pytest.mark.parametrize("targets", ["query_key_value", "all-linear"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_shared", [False, True])
def test_fused_gradients_are_as_near_to_fp32_as_those_of_stock_modules(targets, half, is_shared: bool) -> None:
    packed = pack(make_samples(), shares_prefix=is_shared)
    _, exact = gradients(make_model(torch.float32, targets), pack(make_samples()))
    model = make_model(half, targets)
    _, stock = gradients(model, packed)
    assert fuse(model) is None
    _, fused = gradients(model, packed)
    assert 0 < distance(stock, exact) < 0.1
    assert distance(fused, exact) < 1.2 * distance(stock, exact)


@pytest.mark.parametrize("is_shared", [False, True])
def test_fused_fp32_equals_stock_modules(is_shared: bool) -> None:
    model = make_model(torch.float32)
    loss, exact = gradients(model, pack(make_samples()))
    assert fuse(model) is None
    fused_loss, fused = gradients(model, pack(make_samples(), shares_prefix=is_shared))
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert distance(fused, exact) < 1e-4


def test_another_sample_of_the_same_length_leaves_other_losses_as_they_are() -> None:
    model = make_model(torch.bfloat16, dropout=0.1)
    assert fuse(model) is None
    samples = make_samples()
    changed = [*samples[:5], samples[5]._replace(input_ids=(samples[5].input_ids + 7) % 1000), *samples[6:]]
    losses = []
    for each in (samples, changed):
        torch.manual_seed(3)  # the same dropout
        with torch.no_grad():
            losses.append(model.label_losses(pack(each).to("cuda")))
    begin = sum(len(sample.labels) for sample in samples[:5])
    end = begin + len(samples[5].labels)
    assert torch.equal(losses[0][:begin], losses[1][:begin])
    assert torch.equal(losses[0][end:], losses[1][end:])
    assert not torch.equal(losses[0][begin:end], losses[1][begin:end])


@pytest.fixture(params=["query_key_value", "all-linear"])
def accumulators(request: pytest.FixtureRequest) -> Iterator[tuple[GradientAccumulator, GradientAccumulator]]:
    """One with graphs and one without, on the same model without dropout."""
    model = make_model(torch.bfloat16, request.param)
    assert fuse(model) is None
    parameters = trained(model)
    made = []
    for uses_graphs in (True, False):
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        draw = model.fused_layers.draw_graph_seed
        loss = lambda packed: model(packed=packed)  # noqa: E731
        accumulator = GradientAccumulator(loss, parameters, sums, draw, uses_graphs)
        accumulator.sums = sums
        made.append(accumulator)
    return tuple(made)


@pytest.mark.parametrize("is_shared", [False, True])
def test_graphs_compute_what_the_model_does(accumulators, is_shared: bool, monkeypatch) -> None:
    graphed, plain = accumulators
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    for seed in range(12):
        samples = make_samples(seed, number=6 + seed % 3)
        padded = pack(samples, shares_prefix=is_shared, pads_to_bucket=True)
        loss = graphed.add(padded.to("cuda"), 0.5 + seed)
        expected = plain.add(pack(samples, shares_prefix=is_shared).to("cuda"), 0.5 + seed)
        torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    assert replays
    sums, expected_sums = (torch.cat([g.flatten() for g in a.sums]).double() for a in (graphed, plain))
    assert distance(sums, expected_sums) < 0.02


def test_graphs_draw_another_dropout_at_each_replay_and_repeat_it_from_a_seed() -> None:
    model = make_model(torch.bfloat16, dropout=0.5)
    assert fuse(model) is None
    parameters = trained(model)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    draw = model.fused_layers.draw_graph_seed
    accumulator = GradientAccumulator(lambda packed: model(packed=packed), parameters, sums, draw, True)
    packed = pack(make_samples(), pads_to_bucket=True).to("cuda")
    losses = []
    for seed in (5, 5, 5, 6):
        torch.manual_seed(seed)
        losses.append(accumulator.add(packed, 1.0).item())
    assert losses[0] == losses[1] == losses[2]  # computed, recorded and replayed, replayed
    assert losses[3] != losses[0]


@pytest.mark.skipif(not HAS_FP8, reason="needs a GPU that multiplies fp8")
def test_fp8_base_is_near_and_learns() -> None:
    packed = pack(make_samples(), loss_weight="sample")
    loss, exact = gradients(make_model(torch.float32), packed)
    model = make_model(torch.bfloat16, quantize="fp8")
    assert fuse(model) is None
    fp8_loss, fp8 = gradients(model, packed)
    assert fp8_loss == pytest.approx(loss, rel=0.02)
    assert distance(fp8, exact) < 0.25
    optimizer = torch.optim.AdamW(trained(model), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(packed=packed.to("cuda")).backward()
        optimizer.step()
    assert gradients(model, packed)[0] < 0.9 * fp8_loss


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dtype=bfloat16"],
        ["model.dtype=float16"],
        ["model.dtype=float32"],
        ["model.dtype=bfloat16", "lora.lora_dropout=0", "train.gradient_checkpointing=true"],
        ["model.dtype=bfloat16", "lora.use_dora=true"],
        ["model.dtype=bfloat16", "train.max_tokens_per_device=40", "train.optim=adafactor"],
        pytest.param(
            ["model.dtype=bfloat16", "model.quantize=fp8", "lora.target_modules=all-linear"],
            marks=pytest.mark.skipif(not HAS_FP8, reason="needs a GPU that multiplies fp8"),
        ),
    ],
    ids=" ".join,
)
def test_a_whole_run(overrides: list[str], tmp_path: Path) -> None:
    rows = [{"instruction": f"第{n}个问题？", "output": f"这是第{n % 3}个回答，没有别的。"} for n in range(32)]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    settings = [
        f"data.path={data}",
        f"train.output_dir={tmp_path / 'run'}",
        "train.num_train_epochs=10",
        "train.learning_rate=2e-3",
        "train.logging_steps=1",
        "data.eval_fraction=0.1",
        "train.save_steps=20",
    ]
    console = Console(record=True, force_terminal=False, width=160, file=io.StringIO())
    result = train(load_config(None, changed(settings, *overrides)), console)
    assert result.last_loss < 0.7 * result.first_loss
    assert result.metrics["eval_loss"] < result.first_loss
    assert ("layers cannot be fused" in console.export_text()) == ("lora.use_dora=true" in overrides)


def test_batches_reach_the_gpu_as_they_were() -> None:
    features = [{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}] * 3
    (packed,) = PackingCollator(pads_to_buckets=True)(features)["micro_batches"]
    moved = packed.pin_memory().to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(moved.input_ids.cpu(), packed.input_ids)
    assert torch.equal(moved.label_weights.cpu(), packed.label_weights)
