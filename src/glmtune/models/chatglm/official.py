"""Methods of the official models other than `chat` and `stream_chat`, for code written against them.

Source: `modeling_chatglm.py` of the official ChatGLM2-6B and ChatGLM3-6B releases.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BatchEncoding, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from glmtune.errors import ModelError
from glmtune.models.chatglm.tokenization import ChatGLMTokenizer
from glmtune.models.streaming import stream_token_ids


class OfficialMethodsMixin:
    """Adds `build_inputs` and `stream_generate` to a model that has `generate`; `quantize` names the alternative."""

    device: torch.device

    def build_inputs(
        self, tokenizer: ChatGLMTokenizer, query: str, history: Sequence[tuple[str, str]] | None = None
    ) -> BatchEncoding:
        """ChatGLM2's prompt for a question, on the model's device; the official signature.

        Args:
            tokenizer: The tokenizer.
            query: The new question.
            history: Earlier questions and replies.

        Returns:
            `input_ids` and `attention_mask`, int64, [1, T].
        """
        return tokenizer([tokenizer.build_prompt(query, history=history)], return_tensors="pt").to(self.device)

    def quantize(self, bits: int, *args: Any, **kwargs: Any) -> Self:
        """The official method to quantise a loaded model; here a base is quantised while it is loaded.

        Args:
            bits: 0 leaves the model unchanged; all other values are refused.
            *args: Unused.
            **kwargs: Unused.

        Raises:
            ModelError: `bits` is not 0.
        """
        if bits == 0:
            return self
        raise ModelError(
            f"quantize({bits}) is not supported: a model is quantised while it is loaded. Use "
            'glmtune.load(FOLDER, quantize="nf4") or `glmtune chat FOLDER --quantize nf4` for 4 bits, int8 for 8; '
            "to train, set model.quantize"
        )

    def stream_generate(
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> Iterator[Tensor]:
        """Generates, yielding the whole sequence after every new token; the official signature.

        Args:
            input_ids: The prompt, [1, T], int64.
            generation_config: As for `generate`.
            logits_processor: As for `generate`.
            stopping_criteria: As for `generate`.
            prefix_allowed_tokens_fn: As for `generate`.
            return_past_key_values: Must be false: the cache stays in `generate`.
            **kwargs: Further arguments of `generate`.

        Yields:
            Token ids, [1, T + n] after n new tokens, including the one that ends the reply.

        Raises:
            ValueError: There are several rows, or the cache is requested.
        """
        if input_ids.shape[0] != 1:
            raise ValueError(f"stream_generate takes one row of input_ids, found {input_ids.shape[0]}; use generate")
        if return_past_key_values:
            raise ValueError("stream_generate keeps its cache to itself; leave return_past_key_values out")
        new_ids = stream_token_ids(
            self,
            {"inputs": input_ids},
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria or (),
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            **kwargs,
        )
        for token_id in new_ids:
            input_ids = torch.cat([input_ids, input_ids.new_tensor([[token_id]])], dim=1)
            yield input_ids
