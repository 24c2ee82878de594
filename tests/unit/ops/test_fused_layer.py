"""Without these, training would go by wrong gradients of the fused layer, on every device alike."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from segment_twin import (
    PLAIN,
    PLAIN_LABEL_ROWS,
    PLAIN_LABELS,
    SHARED,
    SHARED_LABEL_ROWS,
    SHARED_LABELS,
    Random,
    explicit_attention,
    gathered,
    seed_of,
    segments_of,
)
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.testing import assert_close

from glmtune.ops import (
    Adapter,
    DenseLinear,
    LayerCall,
    LayerWeights,
    Projection,
    fused_layer,
    label_head,
    reference,
    rotary_cos_sin,
)
from glmtune.ops.reference import Mask

HIDDEN, HEADS, GROUPS, HEAD_DIM, FFN, RANK = 8, 4, 2, 4, 6, 2
PROJECTIONS = ("query_key_value", "dense", "up", "down")
SHAPES = ((HIDDEN, (HEADS + 2 * GROUPS) * HEAD_DIM), (HEADS * HEAD_DIM, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN))


LAYOUTS = {
    "plain": (PLAIN, None),
    "plain, some rows ask": (PLAIN_LABELS, PLAIN_LABEL_ROWS),
    "shared": (SHARED, None),
    "shared, some rows ask": (SHARED_LABELS, SHARED_LABEL_ROWS),
    "a row asks twice": (gathered(segments_of([1, 2], [5, 4]), [0, 1, 2, 3, 4, 5, 6, 7, 7], 8), [4, 7, 7]),
}


def make_call(random: Random, layout: str, *, seed: int | None = None, is_checkpointed: bool = False) -> LayerCall:
    """A layer without adapters, all linears with a bias, on eight rows."""
    segments, rows = LAYOUTS[layout]
    linears = [DenseLinear(random(n, k) * 0.5, random(n)) for k, n in SHAPES]
    weights = LayerWeights(
        random(HIDDEN) + 1,
        random(HIDDEN) + 1,
        1e-2,
        *(Projection(linear) for linear in linears),
        num_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_DIM,
    )
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 0]])
    cos, sin = rotary_cos_sin(positions, HEAD_DIM // 2, 10_000.0, torch.float64)
    return LayerCall(
        weights=weights,
        cos=cos[0],
        sin=sin[0],
        segments=segments,
        query_indices=None if rows is None else torch.tensor(rows, dtype=torch.int32),
        seed=None if seed is None else seed_of(seed),
        stream=4,
        is_checkpointed=is_checkpointed,
    )


def make_adapters(random: Random, targets: Sequence[str]) -> list[Tensor]:
    """A and B of each target, in the order of the projections."""
    shapes = [shape for name, shape in zip(PROJECTIONS, SHAPES, strict=True) if name in targets]
    return [
        x.requires_grad_()
        for num_inputs, num_outputs in shapes
        for x in (random(RANK, num_inputs), random(num_outputs, RANK))
    ]


def with_adapters(call: LayerCall, targets: Sequence[str], parameters: Sequence[Tensor], dropout: float) -> LayerCall:
    weights = call.weights
    pairs = iter([x.detach() for x in parameters])
    for name in PROJECTIONS:
        if name in targets:
            adapter = Adapter(next(pairs), next(pairs), 1.5, dropout)
            linear = weights.__dict__[name].linear
            weights = replace(weights, **{name: Projection(linear, adapter)})
    return replace(call, weights=weights)


def run_layer(call: LayerCall, targets: Sequence[str], dropout: float = 0.0) -> Callable[..., Tensor]:
    """The layer as a function of hidden states and adapters."""

    def run(hidden: Tensor, *parameters: Tensor) -> Tensor:
        return fused_layer(hidden, with_adapters(call, targets, parameters, dropout), parameters)

    return run


def written_out(call: LayerCall, targets: Sequence[str], hidden: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The layer in differentiable torch, without dropout; every row asks, and rows are chosen in the end."""
    pairs = iter(parameters)
    weights = call.weights

    def project(name: str, x: Tensor) -> Tensor:
        linear = weights.__dict__[name].linear
        output = F.linear(x, linear.weight, linear.bias)
        return output + 1.5 * x @ next(pairs).T @ next(pairs).T if name in targets else output

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * scale

    heads = project("query_key_value", norm(hidden, weights.input_norm)).unflatten(-1, (-1, HEAD_DIM))
    query, key, value = heads.split([HEADS, GROUPS, GROUPS], dim=1)
    query, key = (reference.apply_rotary(x[None], call.cos[None], call.sin[None])[0] for x in (query, key))
    segments = call.segments
    if call.query_indices is not None:
        query = query[call.query_indices]
    if segments.key_indices is not None:
        key, value = key[segments.key_indices], value[segments.key_indices]
    attended = explicit_attention(query, key, value, segments, HEAD_DIM**-0.5).flatten(1)
    middle = (hidden if call.query_indices is None else hidden[call.query_indices]) + project("dense", attended)
    gate_up = project("up", norm(middle, weights.post_attention_norm))
    gate, up = gate_up.chunk(2, dim=-1)
    return middle + project("down", gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_layer_is_the_layer_written_out(random: Random, layout: str) -> None:
    call = make_call(random, layout)
    inputs = [random(8, HIDDEN).requires_grad_(), *make_adapters(random, PROJECTIONS)]
    expected = written_out(call, PROJECTIONS, inputs[0], inputs[1:])
    output = run_layer(call, PROJECTIONS)(*inputs)
    assert_close(output, expected)
    grad = random(*expected.shape)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for result, gradient in zip(torch.autograd.grad(output, inputs, grad), wanted, strict=True):
        assert_close(result, gradient)


EACH = [(name,) for name in PROJECTIONS]


@pytest.mark.parametrize("layout", ["plain", "shared, some rows ask"])
@pytest.mark.parametrize(
    ("targets", "needs_hidden"),
    [((), True), *((targets, needs) for targets in (*EACH, PROJECTIONS) for needs in (True, False))],
)
def test_gradients_of_the_fused_layer(
    random: Random, targets: tuple[str, ...], layout: str, needs_hidden: bool
) -> None:
    call = make_call(random, layout)
    hidden = random(8, HIDDEN).requires_grad_(needs_hidden)
    assert gradcheck(run_layer(call, targets), (hidden, *make_adapters(random, targets)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_every_layout(random: Random, layout: str) -> None:
    call = make_call(random, layout)
    inputs = (random(8, HIDDEN).requires_grad_(), *make_adapters(random, PROJECTIONS))
    assert gradcheck(run_layer(call, PROJECTIONS), inputs)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("layout", ["plain", "shared, some rows ask"])
def test_gradients_with_dropout(random: Random, layout: str, is_checkpointed: bool) -> None:
    call = make_call(random, layout, seed=3, is_checkpointed=is_checkpointed)
    inputs = (random(8, HIDDEN).requires_grad_(), *make_adapters(random, PROJECTIONS))
    run = run_layer(call, PROJECTIONS, dropout=0.4)
    assert (run(*inputs) - run_layer(call, PROJECTIONS)(*inputs)).abs().max() > 1e-3
    assert gradcheck(run, inputs)


@pytest.mark.parametrize("target", PROJECTIONS)
def test_dropout_is_on_the_input_of_the_adapter_alone(random: Random, target: str) -> None:
    """With B = 0 the adapter, dropped or not, adds nothing."""
    call = make_call(random, "plain", seed=3)
    hidden, (a, b) = random(8, HIDDEN), make_adapters(random, [target])
    dropped = run_layer(call, [target], dropout=0.4)
    assert torch.equal(dropped(hidden, a, torch.zeros_like(b)), run_layer(call, [])(hidden))
    assert (dropped(hidden, a, b) - run_layer(call, [target])(hidden, a, b)).abs().max() > 1e-3


def test_projections_do_not_share_a_mask(random: Random, monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(random, "plain", seed=3)
    streams: list[int] = []
    original = reference.dropout

    def spy(x: Tensor, mask: Mask) -> Tensor:
        streams.append(mask.stream)
        return original(x, mask)

    monkeypatch.setattr(reference, "dropout", spy)
    run_layer(call, PROJECTIONS, dropout=0.4)(random(8, HIDDEN), *make_adapters(random, PROJECTIONS))
    assert streams == [4, 5, 6, 7]


@pytest.mark.parametrize("layout", ["plain", "shared, some rows ask"])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_checkpointed_layer_gives_the_same_to_the_bit(random: Random, layout: str, seed: int | None) -> None:
    kept = make_call(random, layout, seed=seed)
    inputs = [random(8, HIDDEN).requires_grad_(), *make_adapters(random, PROJECTIONS)]
    results = []
    for call in (kept, replace(kept, is_checkpointed=True)):
        output = run_layer(call, PROJECTIONS, dropout=0.4)(*inputs)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(("is_checkpointed", "num_numbers"), [(True, 8 * HIDDEN), (False, 8 * (2 * 8 + 48 + 12))])
def test_what_a_layer_keeps(random: Random, is_checkpointed: bool, num_numbers: int) -> None:
    """Its input; or also heads and attended values (32 and 16), the stream between (8), gate and up (12)."""
    call = make_call(random, "plain", is_checkpointed=is_checkpointed)
    sizes: list[int] = []

    def keep(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run_layer(call, [])(random(8, HIDDEN).requires_grad_())
    assert sum(sizes) == num_numbers


# The head


@pytest.mark.parametrize("has_norm", [True, False])
def test_label_head(random: Random, has_norm: bool) -> None:
    hidden, head, labels = random(5, HIDDEN).requires_grad_(), random(11, HIDDEN), torch.tensor([1, 10, 0, 0, 4])
    scale = random(HIDDEN) if has_norm else None
    normed = hidden if scale is None else reference.rms_norm(hidden, scale, 1e-2)
    expected = F.cross_entropy(normed @ head.T, labels, reduction="none")
    losses = label_head(hidden, scale, 1e-2, head, labels)
    assert_close(losses, expected)
    assert gradcheck(lambda x: label_head(x, scale, 1e-2, head, labels), (hidden,))


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_label_head_in_chunks(random: Random, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    hidden, head, labels = random(5, HIDDEN).requires_grad_(), random(11, HIDDEN), torch.tensor([1, 10, 0, 0, 4])
    scale, weights = random(HIDDEN), random(5)
    results = []
    for rows in (1024, chunk):
        monkeypatch.setattr(import_module("glmtune.ops.label_head"), "CHUNK_LABELS", rows)
        losses = label_head(hidden, scale, 1e-2, head, labels)
        results.append((losses, *torch.autograd.grad((losses * weights).sum(), hidden)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


def test_label_head_without_gradient(random: Random) -> None:
    losses = label_head(random(5, HIDDEN), random(HIDDEN), 1e-2, random(11, HIDDEN), torch.tensor([1, 10, 0, 0, 4]))
    assert not losses.requires_grad
