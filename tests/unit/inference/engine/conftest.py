"""Models to run the engine on, and replies to compare with."""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import GenerationConfig

from glmtune.inference.engine.request import Request, Sampling
from glmtune.inference.generate import generate_ids

Replies = Callable[..., list[list[int]]]

SHAPES = {
    "grouped": {},
    "multi-query": {"multi_query_group_num": 1},
    "all heads": {"multi_query_group_num": 4, "add_bias_linear": True, "post_layer_norm": False},
}


@pytest.fixture(params=SHAPES)
def model(request, make_adapted):
    """Each shape in turn, with an adapter."""
    config = {"seq_length": 160, **SHAPES[request.param]}
    return make_adapted(dtype=torch.float32, config=config, target_modules="all-linear").eval()


@pytest.fixture
def one_model(make_adapted):
    return make_adapted(dtype=torch.float32, config={"seq_length": 160}, target_modules="all-linear").eval()


@pytest.fixture
def prompts() -> list[list[int]]:
    """Of many lengths, some of which begin alike."""
    generator = torch.Generator().manual_seed(1)
    lengths = (1, 5, 15, 16, 17, 31, 32, 33, 40, 70)
    made = [torch.randint(96, (length,), generator=generator).tolist() for length in lengths]
    beginning = made[-1][:50]
    return [*made, [*beginning, 3, 4], [*beginning, 5], beginning[:48], made[-1]]


@pytest.fixture
def replies_of() -> Replies:
    """What transformers' `generate` gives, greedily, in one batch or for each prompt by itself."""

    def generate(
        model,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 20,
        stop_ids: Sequence[int] = (95,),
        is_batched: bool = True,
        **options,
    ) -> list[list[int]]:
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=[*stop_ids], pad_token_id=0, **options
        )
        if is_batched:
            return generate_ids(model, prompts, config)
        return [generate_ids(model, [prompt], config)[0] for prompt in prompts]

    return generate


@pytest.fixture
def ask() -> Callable[..., Request]:
    def ask(prompt: Sequence[int], max_new_tokens: int = 20, adapter: str | None = None, **options) -> Request:
        options.setdefault("stop_token_ids", (95,))
        texts = options.pop("stop_texts", ())
        return Request(prompt, Sampling(max_new_tokens, **options), adapter, texts)

    return ask
