"""Without these, the memory plan would leave something out, and runs die on cards that they were said to fit."""

import dataclasses
import io
import itertools
import pickle
from typing import Any

import pytest
import torch

from glmtune.adapters.lora import attach_lora
from glmtune.data.packed_batch import PackedBatch
from glmtune.data.packing import TokenizedSample, pack
from glmtune.loading.formats import FORMATS, quantize_layers
from glmtune.loading.shape import BaseShape
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.models.families import family_of
from glmtune.planning.memory import MemorySettings, Pass, estimate_memory, kept_bytes
from glmtune.planning.shape import AdapterShape
from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.packed_model import PackedModel, fuse

CHATGLM3_6B = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True)
QKV = AdapterShape(1_949_696, first_layer=0, ranks=8, is_on_last_projection=False, has_dropout=True)
ALL = AdapterShape(14_823_424, first_layer=0, ranks=32, is_on_last_projection=True, has_dropout=True)


@pytest.fixture(scope="module")
def base() -> BaseShape:
    with torch.device("meta"):
        return BaseShape.of(ChatGLMForConditionalGeneration(CHATGLM3_6B), torch.bfloat16)


def peak(base: BaseShape, adapter: AdapterShape = QKV, rows: int = 2048, **settings: Any) -> int:
    return estimate_memory(base, adapter, MemorySettings(**settings), Pass(rows, rows // 3, rows // 50)).peak


def adapted(num_layers: int, targets: Any = ("query_key_value",), **config: Any) -> PackedModel:
    sizes = {
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "kv_channels": 8,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "padded_vocab_size": 96,
    }
    base = ChatGLMForConditionalGeneration(ChatGLMConfig(num_layers=num_layers, **{**sizes, **config})).double()
    return PackedModel(attach_lora(base, {"r": 4, "target_modules": list(targets)})).train()


def bytes_kept(model: PackedModel, packed: PackedBatch) -> int:
    """What autograd keeps for the backward pass."""
    sizes: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(packed=packed)
    return sum(sizes)


def test_chatglm3_6b(base: BaseShape) -> None:
    """The shape's well-known figures: 6.24 billion weights, 88.7 KB kept of a token and layer."""
    assert base.in_blocks + base.embedding + base.head + base.rest == 6_243_584_000
    assert kept_bytes(base.shape, torch.bfloat16) == (88_704, 8_192)
    memory = estimate_memory(base, QKV, MemorySettings(), Pass(448, 150, 9))
    assert memory.weights == 2 * 6_243_584_000
    assert memory.adapters == 6 * 1_949_696
    assert memory.optimizer == 12 * 1_949_696


def test_bits_of_the_formats(base: BaseShape) -> None:
    bits = {
        quantize: 8
        * sum(FORMATS[quantize].weight_bytes(n * k, n, torch.bfloat16) for n, k in base.linears)
        / base.in_blocks
        for quantize in ("none", "fp8", "int8", "nf4")
    }
    assert bits["none"] == 16
    assert bits["fp8"] == bits["int8"] == pytest.approx(8, abs=0.01)
    assert bits["nf4"] == pytest.approx(4.127, abs=0.001)


@pytest.mark.parametrize("quantize", ["none", "fp8", "int8", "nf4"])
def test_quantised_layers_take_as_many_bytes_as_counted(quantize: Any) -> None:
    model = adapted(2, hidden_size=128, ffn_hidden_size=192, kv_channels=32).get_base_model().float()
    model = ChatGLMForConditionalGeneration(model.config)
    shape = BaseShape.of(model, torch.float32)
    quantize_layers(model, quantize)
    counted = sum(FORMATS[quantize].weight_bytes(n * k, n, torch.float32) for n, k in shape.linears)
    assert sum(map(_bytes_of, model.transformer.encoder.layers.modules())) == counted


class _TensorCounter(pickle.Pickler):
    """Adds up the bytes of all tensors that belong to what it is given, wherever in it they are."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.num_bytes = 0

    def persistent_id(self, thing: Any) -> str | None:
        if not isinstance(thing, torch.Tensor):
            return None
        self.num_bytes += thing.nbytes
        return "a tensor"


def _bytes_of(module: torch.nn.Module) -> int:
    """A linear layer's weight and what belongs to it."""
    if not isinstance(module, torch.nn.Linear):
        return 0
    counter = _TensorCounter()
    counter.dump(module)
    return counter.num_bytes


@pytest.mark.parametrize("targets", [("query_key_value",), ("query_key_value", "dense", "dense_4h_to_h")])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_fused_layer_keeps_as_many_bytes_as_counted(is_checkpointed: bool, targets: tuple[str, ...]) -> None:
    """One layer more keeps so much more; the log-sum-exp of the scores is kept on CUDA alone."""
    packed = pack([TokenizedSample.of(range(10), [-100] * 6 + list(range(6, 10)))])
    totals = []
    for count in (3, 4):
        model = adapted(count, targets)
        assert fuse(model) is None
        checkpoint_layers(model, count * is_checkpointed)
        totals.append(bytes_kept(model, packed))
    ranks = 4 * len(targets)
    kept, checkpointed = kept_bytes(family_of(model).shape(model.config), torch.float64, ranks)
    if is_checkpointed and "dense_4h_to_h" in targets:
        checkpointed += 4 * 8  # the inner value of the last projection, which does not run again
    assert totals[1] - totals[0] == 10 * (checkpointed if is_checkpointed else kept - 4 * 4)


def test_the_shape_of_an_adapter() -> None:
    shape = AdapterShape.of(adapted(3, ["query_key_value", "dense_4h_to_h"]))
    assert shape.num_trained == 3 * 4 * (32 + 64 + 48 + 32)
    assert (shape.first_layer, shape.ranks, shape.is_on_last_projection) == (0, 8, True)
    assert not shape.has_dropout
    assert shape.why_not_fused is None
    base = adapted(3).unload()
    settings = {"r": 2, "target_modules": ["dense"], "layers_to_transform": [1, 2], "lora_dropout": 0.1}
    upper = AdapterShape.of(attach_lora(base, settings))
    assert (upper.first_layer, upper.ranks, upper.is_on_last_projection, upper.has_dropout) == (1, 2, False, True)


def test_an_adapter_of_which_nothing_is_there_yet() -> None:
    """The plan is made from a model without weights."""
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(CHATGLM3_6B)
    settings = {"r": 8, "target_modules": ["query_key_value"], "lora_dropout": 0.1}
    assert AdapterShape.of(attach_lora(model, settings)) == QKV


@pytest.mark.parametrize("adapter", [QKV, ALL])
def test_what_makes_less_of_it(base: BaseShape, adapter: AdapterShape) -> None:
    """Each step of this ladder needs less than the one before."""
    ladder: list[dict[str, Any]] = [
        {},
        {"num_checkpointed": 10},
        {"num_checkpointed": 28},
        {"num_checkpointed": 28, "offloads_checkpoints": True},
        {"num_checkpointed": 28, "offloads_checkpoints": True, "quantize": "int8"},
        {"num_checkpointed": 28, "offloads_checkpoints": True, "quantize": "nf4"},
        {"num_checkpointed": 28, "offloads_checkpoints": True, "quantize": "nf4", "offloads_embedding": True},
    ]
    peaks = [peak(base, adapter, rows=4096, **settings) for settings in ladder]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_more_layers_checkpointed_never_need_more(base: BaseShape) -> None:
    for rows in (64, 700, 8192):
        peaks = [peak(base, rows=rows, num_checkpointed=number) for number in range(28)]
        assert all(after <= before for before, after in itertools.pairwise(peaks))


def test_the_targets_of_small_cards(base: BaseShape) -> None:
    """Sums by hand, in GB: 12.49 of weights and 1.11 of activations in bf16; 4.01 of weights in nf4."""
    assert peak(base, rows=448) == pytest.approx(13.85e9, rel=0.01)
    assert peak(base, rows=448, quantize="nf4", offloads_embedding=True) < 5.3e9
    assert peak(base, rows=448, quantize="int8") < 9.0e9
    assert peak(base, rows=2048, quantize="nf4", num_checkpointed=28) < 6.0e9


def test_layers_that_are_not_fused_keep_twice_as_much(base: BaseShape) -> None:
    plain = dataclasses.replace(QKV, why_not_fused="lora.use_dora")
    kept = 28 * 2048 * 88_704
    assert peak(base, plain) > peak(base) + 0.9 * kept


def test_layers_below_the_first_adapter_keep_nothing(base: BaseShape) -> None:
    upper = dataclasses.replace(QKV, first_layer=20)
    assert peak(base) - peak(base, upper) == pytest.approx(20 * 2048 * 88_704, rel=0.01)


def test_graphs_have_memory_of_their_own(base: BaseShape) -> None:
    size = Pass(1024, 300, 20)
    plain, graphs = (estimate_memory(base, QKV, MemorySettings(uses_graphs=uses), size) for uses in (False, True))
    assert graphs.peak == plain.peak
    assert graphs.needed - plain.needed == plain.activations + plain.logits
    large = Pass(20_480, 6000, 400)
    graphs = estimate_memory(base, QKV, MemorySettings(uses_graphs=True), large)
    assert graphs.graphs < (graphs.activations + graphs.logits) / 8  # only passes of up to 2,048 rows are recorded


def test_the_head_is_the_peak_of_a_pass_of_labels(base: BaseShape) -> None:
    """With all layers checkpointed and on the host there is little else."""
    settings = MemorySettings(num_checkpointed=28, offloads_checkpoints=True)
    few, all_rows = (estimate_memory(base, QKV, settings, Pass(512, labels, 1)) for labels in (64, 512))
    assert all_rows.logits > 512 * 65_024 * 4  # at least the logits themselves, in fp32
    assert all_rows.peak > few.peak
    assert few.logits == 0  # with few labels a layer is the peak


def test_optimisers_that_keep_less(base: BaseShape) -> None:
    usual = estimate_memory(base, QKV, MemorySettings(), Pass(64, 9, 2))
    small = estimate_memory(base, QKV, MemorySettings(), Pass(64, 9, 2), state_bytes=2)
    assert small.optimizer < usual.optimizer
    assert usual.needed - small.needed >= usual.optimizer - small.optimizer


def test_what_is_trained_outside_the_layers(base: BaseShape) -> None:
    """Below them, all layers keep; an output layer that is trained makes all logits at once."""
    plain = adapted(3).unload()
    settings = {"r": 2, "target_modules": ["dense"], "layers_to_transform": [2]}
    below = AdapterShape.of(attach_lora(plain, {**settings, "modules_to_save": ["word_embeddings"]}))
    assert (below.first_layer, below.has_plain_head) == (0, True)
    head = AdapterShape.of(attach_lora(adapted(3).unload(), {**settings, "modules_to_save": ["output_layer"]}))
    assert (head.first_layer, head.has_plain_head) == (2, False)
    size = Pass(4096, 3000, 9)
    whole = dataclasses.replace(QKV, has_plain_head=False)
    logits = [estimate_memory(base, each, MemorySettings(num_checkpointed=28), size).logits for each in (QKV, whole)]
    assert logits[1] > 3000 * 65_024 * 4 > logits[0]
