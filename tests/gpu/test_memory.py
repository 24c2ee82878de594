"""Without these, a run could need more memory than its plan says, and die on a card that it was said to fit."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from glmtune.adapters.lora import attach_lora
from glmtune.config import load_config
from glmtune.data.packing import TokenizedSample, pack
from glmtune.errors import TrainingError
from glmtune.loading.bases import load_base
from glmtune.loading.devices import free_device_bytes
from glmtune.loading.formats import quantize_layers, weight_format
from glmtune.loading.shape import BaseShape
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.models.host_embedding import HostEmbedding
from glmtune.ops import HostTable, Scratch, reference
from glmtune.planning import device
from glmtune.planning.memory import MemorySettings, Pass, estimate_memory
from glmtune.planning.shape import AdapterShape
from glmtune.planning.speed import DeviceSpeed
from glmtune.training import run as training
from glmtune.training.checkpointing import checkpoint_layers
from glmtune.training.packed_model import PackedModel, fuse
from settings import changed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# What the formats themselves lose: of weights, and so of a product.
ERRORS = {"int8": 0.02, "nf4": 0.2}


def make_base(dtype: torch.dtype = torch.bfloat16, **changed: int) -> ChatGLMForConditionalGeneration:
    sizes = {"num_layers": 4, "hidden_size": 512, "ffn_hidden_size": 1376, "padded_vocab_size": 2048, **changed}
    config = ChatGLMConfig(
        kv_channels=64,
        num_attention_heads=8,
        multi_query_attention=True,
        multi_query_group_num=2,
        add_qkv_bias=True,
        **sizes,
    )
    torch.manual_seed(0)
    return ChatGLMForConditionalGeneration(config).to(torch.bfloat16).to(dtype).cuda()


def adapted(base: ChatGLMForConditionalGeneration, targets: object = "all-linear"):
    settings = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": targets}
    model = PackedModel(attach_lora(base, settings)).train()
    generator = torch.Generator("cuda").manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02, generator=generator)
    assert fuse(model) is None
    return model


def packed(number: int = 8, length: int = 60):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2048, (number, length), generator=generator).numpy()
    half = length // 2
    samples = [TokenizedSample.of(row, [-100] * half + row[half:].tolist()) for row in ids]
    return pack(samples).to("cuda")


def gradients(model, rows) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(model(packed=rows), trained)]).double()


def distance(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_golden_logits(golden: Path, quantize: str) -> None:
    expected = load_file(golden / "expected.safetensors")
    model, _ = load_base(str(golden), "float32", "cuda", quantize=quantize)
    with torch.no_grad():
        logits = model(expected["plain.input_ids"].cuda()).logits.cpu()[..., expected["logit_columns"]]
    assert 1e-4 < distance(logits, expected["plain.logits"]) < ERRORS[quantize]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_weights_are_written_out_as_on_the_cpu(quantize: str, dtype: torch.dtype) -> None:
    base = make_base(dtype)
    full = base.transformer.encoder.layers[1].mlp.dense_h_to_4h.weight.clone()
    quantize_layers(base, quantize)
    layer = base.transformer.encoder.layers[1].mlp.dense_h_to_4h
    output = torch.empty_like(full)
    layer.write_to(output)
    assert distance(output, full) < (0.012 if quantize == "int8" else 0.1)
    if quantize == "int8":
        expected = torch.empty_like(full)
        reference.scale_rows(layer.weight, layer.scales, expected)
        assert torch.equal(output, expected)
    elsewhere = layer.cpu()
    on_cpu = torch.empty(full.shape, dtype=dtype)
    elsewhere.write_to(on_cpu)
    assert distance(output.cpu(), on_cpu) < (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_single_row_is_computed_as_many_are(quantize: str, dtype: torch.dtype) -> None:
    base = make_base(dtype)
    quantize_layers(base, quantize)
    frozen = base.transformer.encoder.layers[1].mlp.dense_h_to_4h.frozen
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, base.config.hidden_size, generator=generator).to("cuda", dtype)
    allowed = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert distance(frozen.row_product(x[:1]), frozen.product(x)[:1]) < allowed
    narrow = torch.nn.Linear(64, 4, bias=False, device="cuda", dtype=dtype)
    frozen = weight_format(quantize).make(narrow, narrow.weight, Scratch()).frozen
    assert distance(frozen.row_product(x[:1, :64]), frozen.product(x[:, :64])[:1]) < allowed


@pytest.mark.parametrize("quantize", ["int8", "nf4", "fp8"])
def test_gradients_are_near_those_of_the_full_base(quantize: str) -> None:
    if quantize == "fp8" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a GPU that multiplies fp8")
    exact = gradients(adapted(make_base()), packed())
    base = make_base()
    quantize_layers(base, quantize)
    assert distance(gradients(adapted(base), packed()), exact) < {"int8": 0.08, "nf4": 0.5, "fp8": 0.5}[quantize]


@pytest.mark.parametrize("shape", [(7,), (2, 5), (1,)])
def test_rows_of_a_table_on_the_host(shape: tuple[int, ...]) -> None:
    table = HostTable(torch.randn(300, 1500).bfloat16())
    for dtype in (torch.int32, torch.int64):
        ids = torch.randint(300, shape, device="cuda", dtype=dtype)
        rows = table.rows(ids)
        assert rows.is_cuda
        assert table.is_mapped
        assert torch.equal(rows.cpu(), table.values_VH[ids.cpu().long()])


def test_a_table_that_cannot_be_mapped_is_copied_from() -> None:
    """Registering the same memory twice fails, and the next kernels do not hear of it."""
    values = torch.randn(50, 64)
    first, second = HostTable(values), HostTable(values)
    ids = torch.tensor([3, 1, 49], device="cuda")
    assert torch.equal(first.rows(ids), second.rows(ids))
    assert first.is_mapped
    assert not second.is_mapped
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_an_embedding_on_the_host_changes_nothing() -> None:
    base = make_base()
    expected = gradients(adapted(base), packed())
    base = make_base()
    base.set_input_embeddings(HostEmbedding(base.get_input_embeddings().weight))
    assert base.device.type == "cuda"
    assert torch.equal(gradients(adapted(base), packed()), expected)
    ids = torch.randint(2048, (2, 9), device="cuda")
    assert base(ids).logits.shape == (2, 9, 2048)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_checkpoints_on_the_host_change_nothing(count: int) -> None:
    model = adapted(make_base())
    expected = gradients(model, packed())
    checkpoint_layers(model, count, offloads=True)
    for _ in range(3):  # pinned memory is used again
        assert distance(gradients(model, packed()), expected) < 1e-6


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("num_checkpointed", [0, 4])
def test_the_peak_is_as_planned(quantize: str, num_checkpointed: int) -> None:
    """On a small model the terms that do not grow with it weigh more; at full shape benchmarks/memory.py measures."""
    base = make_base(hidden_size=1024, ffn_hidden_size=2816)
    shape = BaseShape.of(base, torch.bfloat16)
    quantize_layers(base, quantize)
    model = adapted(base)
    adapter = AdapterShape.of(model)
    checkpoint_layers(model, num_checkpointed)
    rows = packed(number=60, length=100)
    gradients(model, rows)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(model, rows)
    measured = torch.cuda.max_memory_allocated() - before
    settings = MemorySettings(quantize=quantize, num_checkpointed=num_checkpointed)
    size = Pass(len(rows.input_ids), len(rows.label_indices), 61)
    planned = estimate_memory(shape, adapter, settings, size)
    assert planned.activations + planned.logits == pytest.approx(measured, rel=0.1)


@pytest.fixture
def run(tiny_base: Path, tmp_path: Path):
    file = tmp_path / "data.json"
    rows = [{"instruction": f"第{n}个问题？", "output": f"这是第{n}个回答，没有别的。"} for n in range(24)]
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    def run(*overrides: str):
        console = Console(record=True, force_terminal=False, width=300, file=io.StringIO())
        arguments = [
            f"model.path={tiny_base}",
            f"data.path={file}",
            f"train.output_dir={tmp_path / 'run'}",
            "train.num_train_epochs=1",
            "train.per_device_train_batch_size=2",
            "train.logging_steps=1",
            "train.save_steps=2",
        ]
        result = training.train(load_config(None, changed(arguments, *overrides)), console)
        return result, console.export_text()

    return run


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_run_on_a_quantised_base(run, quantize: str) -> None:
    result, text = run(f"model.quantize={quantize}", "model.offload_embedding=true", "train.learning_rate=0.01")
    assert result.last_loss < result.first_loss
    assert f"base {quantize}" in text
    assert "embedding in host memory" in text


def test_a_resumed_run_goes_by_its_plan(run, monkeypatch) -> None:
    _, text = run("train.max_steps=2", "train.lr_scheduler_type=constant")
    first = next(line for line in text.splitlines() if "memory plan" in line).partition("; ")[2]
    free = device.free_device_bytes
    monkeypatch.setattr(device, "free_device_bytes", lambda cuda: min(free(cuda), 2_000_000_000))
    _, text = run("train.max_steps=4", "train.lr_scheduler_type=constant", "train.resume_from_checkpoint=true")
    assert next(line for line in text.splitlines() if "memory plan" in line).partition("; ")[2] == first


def test_running_out_of_memory_on_a_full_device(run, monkeypatch) -> None:
    """What the step holds is let go of before changes are looked for."""
    original = training.LoraTrainer.training_step

    def step(self, *args, **kwargs):
        held = []
        while self.state.global_step == 3:
            held.append(torch.empty(2**28, dtype=torch.uint8, device="cuda"))
        return original(self, *args, **kwargs)

    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(4 * 2**30 / total)
    monkeypatch.setattr(training.LoraTrainer, "training_step", step)
    try:
        with pytest.raises(TrainingError, match=r"(?s)out of memory after step 3.*GiB less.*checkpoint-2"):
            run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_run_that_does_not_fit_stops_before_loading(run, monkeypatch) -> None:
    def load(*_args, **_kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(training, "load_model", load)
    monkeypatch.setattr(device, "free_device_bytes", lambda _: 10_000_000)
    with pytest.raises(TrainingError, match=r"does not fit: it needs at least .* smallest card that would do"):
        run()


def test_running_out_of_memory_names_changes(run, monkeypatch) -> None:
    original = training.LoraTrainer.training_step

    def step(self, *args, **kwargs):
        if self.state.global_step == 3:
            torch.empty(10**15, device="cuda")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(training.LoraTrainer, "training_step", step)
    with pytest.raises(
        TrainingError, match=r"(?s)out of memory after step 3.*cheapest changes.*GiB less.*checkpoint-2"
    ):
        run()


def test_the_share_of_a_process_counts_as_free() -> None:
    device = torch.device("cuda", 0)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(4 * 2**30 / total)
    try:
        assert free_device_bytes(device) <= 4 * 2**30
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_measured_speed_is_one_that_a_gpu_can_have() -> None:
    speed = DeviceSpeed.measure(torch.device("cuda", 0), torch.float16)
    assert 1e12 < speed.flops < 1e16
    assert 1e10 < speed.bytes_per_s < 1e14
    assert 1e-7 < speed.launch_s < 1e-2
