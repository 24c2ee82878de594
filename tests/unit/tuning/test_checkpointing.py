import pytest
import torch
from peft import PeftModel

from glmtune.data.packing import PackedSample, pack
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.models.chatglm.packed import PackedRows
from glmtune.tuning.checkpointing import ActivationBytes, checkpoint_layers, layers_to_checkpoint
from glmtune.tuning.fused import fuse
from glmtune.tuning.lora import attach_lora

CHATGLM3_6B = ChatGLMConfig(multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True)
GIB = 2**30


def num_layers(num_tokens: int = 4096, free_gib: float = 20.0, is_fused: bool = True) -> int:
    return layers_to_checkpoint(
        CHATGLM3_6B,
        torch.bfloat16,
        is_fused=is_fused,
        num_tokens=num_tokens,
        num_trained=2_000_000,
        free_bytes=int(free_gib * GIB),
    )


def adapted(num_layers: int) -> PeftModel:
    """A model of so many layers in float64, fused, an adapter at the very beginning."""
    config = ChatGLMConfig(
        num_layers=num_layers,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        kv_channels=8,
        multi_query_attention=True,
        multi_query_group_num=2,
        padded_vocab_size=96,
    )
    base = ChatGLMForConditionalGeneration(config).double()
    return attach_lora(base, {"target_modules": ["query_key_value"], "layers_to_transform": [0]}).train()


def bytes_kept(model: PeftModel, packed: PackedRows) -> int:
    """What autograd keeps for the backward pass."""
    sizes: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.get_base_model()(packed=packed)
    return sum(sizes)


def test_bytes_at_the_shape_of_chatglm3_6b() -> None:
    assert ActivationBytes.of(CHATGLM3_6B, torch.bfloat16, is_fused=True) == ActivationBytes(88_704, 8_192)


def test_layers_that_are_not_fused_keep_more() -> None:
    plain = ActivationBytes.of(CHATGLM3_6B, torch.bfloat16, is_fused=False)
    assert plain.kept > 2 * 88_704
    assert plain.checkpointed == 8_192


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_fused_layer_keeps_as_many_bytes_as_counted(is_checkpointed: bool) -> None:
    """One layer more keeps so much more; the log-sum-exp of the scores is kept on CUDA alone."""
    packed = pack([PackedSample.of(range(10), [-100] * 6 + list(range(6, 10)))])
    totals = []
    for count in (3, 4):
        model = adapted(count)
        assert fuse(model) is None
        checkpoint_layers(model, count * is_checkpointed)
        totals.append(bytes_kept(model, packed))
    expected = ActivationBytes.of(model.config, torch.float64, is_fused=True)
    num_bytes = expected.checkpointed if is_checkpointed else expected.kept - 4 * 4
    assert totals[1] - totals[0] == 10 * num_bytes


def test_with_much_memory_no_layer_is_checkpointed() -> None:
    assert num_layers(free_gib=80) == 0


@pytest.mark.parametrize("free_gib", [-1, 0, 0.4])
def test_with_no_memory_all_layers_are(free_gib: float) -> None:
    assert num_layers(free_gib=free_gib) == 28


def test_more_memory_never_means_more_layers() -> None:
    counts = [num_layers(free_gib=number / 8) for number in range(160)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 20


def test_more_tokens_never_mean_fewer_layers() -> None:
    counts = [num_layers(num_tokens=number, free_gib=10) for number in range(64, 30_000, 64)]
    assert counts == sorted(counts)
    assert set(counts) > {0, 2, 14, 27, 28}


def test_layers_that_are_not_fused_are_checkpointed_sooner() -> None:
    assert num_layers(free_gib=12, is_fused=True) < num_layers(free_gib=12, is_fused=False)


@pytest.mark.parametrize(("free_gib", "num_tokens"), [(8, 4096), (4, 2048), (16, 8192), (6, 3000)])
def test_what_stays_fits_and_no_layer_is_wasted(free_gib: int, num_tokens: int) -> None:
    """What the layers keep, without anything beside them, fits; with three checkpointed layers fewer it would not."""
    layer = ActivationBytes.of(CHATGLM3_6B, torch.bfloat16, is_fused=True)
    count = num_layers(num_tokens, free_gib)
    assert 3 < count < 28

    def kept(num_checkpointed: int) -> float:
        return num_tokens * ((28 - num_checkpointed) * layer.kept + num_checkpointed * layer.checkpointed)

    beside = 14 * 2_000_000 + 512 * 2**20 + num_tokens * 2 * (4 * 13_696 + 6 * 4096)
    assert kept(count) + beside < free_gib * GIB * 0.96 < kept(count - 3) + beside


@pytest.mark.parametrize("num_checkpointed", [0, 1, 3, 4])
def test_exactly_the_first_layers_are_checkpointed(num_checkpointed: int) -> None:
    model = adapted(4)
    checkpoint_layers(model, num_checkpointed)
    flags = [layer.gradient_checkpointing for layer in model.get_base_model().transformer.encoder.layers]
    assert flags == [index < num_checkpointed for index in range(4)]
