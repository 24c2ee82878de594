"""lm-evaluation-harness: without these, it would judge a model by other probabilities than the model's own."""

from pathlib import Path

import pytest
import torch

import glmtune

pytestmark = pytest.mark.interop

PAIRS = [("你好，", "你是谁？"), ("今天天气", "很好。"), ("one two", " three"), ("a </s> b", " c")]


def _requests(pairs: list[tuple[str, str]]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


@pytest.mark.parametrize("has_adapter", [False, True])
@torch.inference_mode()
def test_log_likelihoods_are_ours(base: Path, adapter: Path, has_adapter) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = glmtune.load(
        adapter if has_adapter else base, model_path=base if has_adapter else None, dtype="float32", device_map="cpu"
    )
    expected = []
    for context, continuation in PAIRS:
        ids, length = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(float(log_probs[place - 1, ids[place]]) for place in range(length, len(ids))))
    harness = HFLM(
        pretrained=str(base),
        peft=str(adapter) if has_adapter else None,
        prefix_token_id=tokenizer.get_command("[gMASK]"),
        device="cpu",
        dtype="float32",
        batch_size=2,
    )
    found = [result[0] for result in harness.loglikelihood(_requests(PAIRS), disable_tqdm=True)]
    assert found == pytest.approx(expected, abs=1e-3)


def test_chat_prompts_have_their_special_tokens_where_that_is_asked_for(base: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = glmtune.load(base, dtype="float32", device_map="cpu")
    tokenizer.encode_special_tokens = True
    harness = HFLM(pretrained=model, tokenizer=tokenizer, prefix_token_id=tokenizer.get_command("[gMASK]"))
    messages = [{"role": "user", "content": "你好"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert harness.tok_encode(harness.apply_chat_template(messages)) == expected
