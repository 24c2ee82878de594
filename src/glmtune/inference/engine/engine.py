"""Answers many requests at once: each step computes one token of every running one, and parts of new prompts.

It has no threads of its own: the caller of `step` does the work. Several threads may share an engine; a call by one
waits at most for the end of the step that another is taking.
"""

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from glmtune.errors import AdapterError, DataError, ModelError, show_names
from glmtune.inference.engine.adapters import AdapterWeights, StackedAdapters, all_adapter_weights, read_adapter
from glmtune.inference.engine.blocks import BlockPool, block_names
from glmtune.inference.engine.capacity import affordable_blocks, blocks_needed, make_cache
from glmtune.inference.engine.decoder import Decoder, PromptChunk
from glmtune.inference.engine.graphs import DecodingGraphs
from glmtune.inference.engine.layers import DecoderWeights, active_adapter, base_of, why_not
from glmtune.inference.engine.request import FinishReason, Request, RunningRequest
from glmtune.inference.engine.rows import DecodingRows
from glmtune.inference.engine.sampling import Histories, Logprobs, Sampler
from glmtune.inference.engine.scheduler import Chunk, Scheduler, most_prefill_tokens
from glmtune.inference.engine.stop_texts import StopTexts
from glmtune.inference.faults import nan_logits
from glmtune.loading.devices import is_out_of_memory
from glmtune.models.families import shape_of
from glmtune.models.tokenizer import Tokenizer
from glmtune.ops.reference import BLOCK_SIZE


class Event(NamedTuple):
    """What a step has brought for a request.

    Attributes:
        request: What `submit` returned.
        new_ids: New ids of the reply, the one that ended it included.
        finish_reason: Why the reply has ended; None if it goes on.
        logprobs: Log-probabilities of the new ids, if the request asks for them; otherwise none.
        text: New text of the reply, if the request has stop texts, which the ids may reach beyond; otherwise None.
        error: What went wrong, where the reason is `error`.
    """

    request: RunningRequest
    new_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: Sequence[Logprobs] = ()
    text: str | None = None
    error: ModelError | None = None


class Engine:
    """Continuous batching of one model.

    The engine shares the model's weights; its adapters it copies. It does not keep the model itself alive.

    Args:
        model: A model that `why_not` has nothing against, bare or within PEFT.
        tokenizer: Its tokenizer.
        max_rows: The most requests that run at once.
        num_blocks: Blocks of the key-value cache; None for as many as all rows may need, as far as there is memory.
            Where there is less memory, it gets fewer.
        max_prefill_tokens: The most tokens of prompts in a step while others decode.

    Attributes:
        max_rows: The most requests that run at once.
        num_prefilled: The tokens of prompts that have been computed; not those that were in the cache already.
        num_generated: The tokens of replies that have been generated.

    Raises:
        ModelError: The engine does not support the model, or there is no memory for a cache.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: Tokenizer,
        *,
        max_rows: int = 64,
        num_blocks: int | None = None,
        max_prefill_tokens: int = 512,
    ) -> None:
        if reason := why_not(model):
            raise ModelError(f"the engine does not support this model: {reason}")
        self.max_rows = max_rows
        self.num_prefilled = 0
        self.num_generated = 0
        self._model_reference = weakref.ref(model)
        self._tokenizer = tokenizer
        self._asking = threading.RLock()
        self._lock = threading.RLock()
        self._is_busy = False
        self._to_cancel: deque[RunningRequest] = deque()
        base = base_of(model)
        self._max_length = shape_of(base).context_length
        weights = DecoderWeights.of(model)
        dtype, device = weights.head.dtype, weights.head.device
        if num_blocks is None:
            affordable = affordable_blocks(base, max_rows, most_prefill_tokens(max_prefill_tokens))
            num_blocks = min(blocks_needed([self._max_length] * max_rows, max_rows), max(2, affordable))
        self._cache = make_cache(weights.shape, num_blocks, dtype, device)
        self._adapters = StackedAdapters(weights.shape, dtype, device)
        self._decoder = Decoder(weights, self._cache, self._adapters)
        self._pool = BlockPool(self._cache.num_blocks, BLOCK_SIZE)
        self._scheduler = Scheduler(self._pool, max_rows, max_prefill_tokens)
        self._rows = DecodingRows(max_rows, self._max_length, device)
        self._graphs = DecodingGraphs(self._decoder, self._rows) if device.type == "cuda" else None
        self._sampler: Sampler | None = None
        self._stop_texts: dict[RunningRequest, StopTexts] = {}
        self._of_model: set[str] = set()
        self.refresh()

    # Requests

    def submit(self, request: Request) -> RunningRequest:
        """Takes a request, which begins when there is room for it.

        Args:
            request: Its ids, with what ends the reply.

        Returns:
            What its events name it by; it shows how far the reply has come.

        Raises:
            ModelError: Prompt and reply can never fit, into the context or into the cache.
            AdapterError: There is no such adapter.
            DataError: The prompt is empty, or holds ids that the model does not know.
        """
        with self._asking, self._alone():
            return self._submit(request)

    def _submit(self, request: Request) -> RunningRequest:
        self._check(request)
        sampling = request.sampling
        if sampling.do_sample and sampling.seed is None:
            sampling = replace(sampling, seed=int(torch.randint(2**62, ())))
        namespace = "" if request.adapter is None else self._adapters.namespace(request.adapter)
        running = RunningRequest(
            request=request,
            sampling=sampling,
            adapter=0 if request.adapter is None else self._adapters.index(request.adapter),
            names=block_names(namespace, request.prompt_ids, BLOCK_SIZE),
            token_ids=list(request.prompt_ids),
        )
        self._scheduler.add(running)
        if request.stop_texts:
            self._stop_texts[running] = StopTexts(self._tokenizer, request.stop_texts)
        return running

    def cancel(self, running: RunningRequest) -> None:
        """Ends a request and frees what it has; later steps bring no events of it. One that has ended stays."""
        self._to_cancel.append(running)
        if self._lock.acquire(blocking=False):
            try:
                if not self._is_busy:  # or the garbage collector closes a dropped iterator in the midst of a step
                    self._end_cancelled()
            finally:
                self._lock.release()
        else:
            with self._asking, self._alone():
                pass

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Answers requests until all are done; closing the iterator cancels the rest.

        Args:
            requests: They are submitted in this order.

        Yields:
            Events of all requests that the engine has, as they come.

        Raises:
            As `submit`, before anything is computed.
        """
        own = [self.submit(request) for request in requests]
        try:
            while any(running.finish_reason is None for running in own):
                yield from self.step()
        finally:
            for running in own:
                self.cancel(running)

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Computes the next token of every running request, and parts of new prompts.

        Returns:
            An event for each request that got a token.

        Raises:
            ModelError: Memory ran out. All requests are ended, their reason `error`.
        """
        with self._asking:  # pending callers take the lock before the next step: Python's locks are not fair
            pass
        with self._alone(), self._on_device():
            try:
                logits_RV = self._logits(self._scheduler.next_chunks())
                return [] if logits_RV is None else self._choose(logits_RV)
            except BaseException as error:
                told = ModelError("another request was interrupted, and this one with it; ask again")
                if is_out_of_memory(error):
                    told = ModelError("out of memory while generating; lower max_rows or the number of blocks")
                    told.__cause__ = error
                # What was to be computed is known of already, but may not be.
                for running in self._scheduler.unfinished:
                    self._finish(running, "error", told)
                if is_out_of_memory(error):
                    raise told from error
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other threads out; requests that are cancelled meanwhile end before others are let in."""
        with self._lock:
            self._is_busy = True
            try:
                yield
            finally:
                self._end_cancelled()
                self._is_busy = False

    def _end_cancelled(self) -> None:
        while self._to_cancel:
            running = self._to_cancel.popleft()
            if running.finish_reason is None:
                self._finish(running, "cancelled")

    # How busy it is

    @property
    def num_running(self) -> int:
        """Requests that take part in steps."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Requests for which there is no room at present."""
        return self._scheduler.num_waiting

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache that requests can have."""
        return self._pool.num_blocks - 1

    @property
    def num_free_blocks(self) -> int:
        """Blocks of the cache that no request has at present."""
        return self._pool.num_free

    # Adapters

    @property
    def active_adapter(self) -> str | None:
        """The adapter that the model itself computes with at present; None if it has none, or it is switched off."""
        return active_adapter(self._model)

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded adapters."""
        return self._adapters.names

    def refresh(self) -> None:
        """Takes over which adapters the model itself has now, and their numbers; cached prefixes of others stay valid.

        Raises:
            AdapterError: Requests still use one that has changed or is gone.
        """
        with self._asking, self._alone():
            found = all_adapter_weights(self._model)
            for name in self._of_model - found.keys():
                self._unload_adapter(name)
            for name, weights in found.items():
                if not self._adapters.holds(name, weights):
                    self._replace_adapter(name, weights)
            self._of_model = set(found)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Loads an adapter from a folder, in place of one of that name if there is one.

        Args:
            name: What requests call it.
            folder: A run folder's adapter, or one of stock PEFT.

        Raises:
            AdapterError: It is damaged, is no plain LoRA on the linear layers of the blocks, or does not fit the base;
                or requests still use the one that it replaces.
        """
        weights = read_adapter(base_of(self._model), folder)
        with self._asking, self._alone():
            self._replace_adapter(name, weights)
            self._of_model.discard(name)

    def unload_adapter(self, name: str) -> None:
        """Takes an adapter out.

        Raises:
            AdapterError: There is none of that name, or requests still use it.
        """
        with self._asking, self._alone():
            self._unload_adapter(name)

    @property
    def _model(self) -> PreTrainedModel | PeftModel:
        model = self._model_reference()
        if model is None:
            raise ModelError("the engine's model has been deleted; keep a reference to it")
        return model

    def _replace_adapter(self, name: str, weights: AdapterWeights) -> None:
        if name in self._adapters.names:
            self._unload_adapter(name)
        self._adapters.load(name, weights)

    def _unload_adapter(self, name: str) -> None:
        self._check_adapter(name)
        if num_users := sum(running.request.adapter == name for running in self._scheduler.unfinished):
            raise AdapterError(f"adapter {name} is in use by {num_users} requests; let them end, or cancel them")
        self._adapters.unload(name)
        self._of_model.discard(name)

    # A step

    def _on_device(self) -> AbstractContextManager[None]:
        """Makes the model's GPU the current one, on which Triton launches kernels and graphs are recorded."""
        device = self._rows.positions.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _logits(self, chunks: list[Chunk]) -> Tensor | None:
        """The logits of all rows, those of prompts that are complete now behind the others, [R, V]."""
        parts = []
        if num_rows := len(self._scheduler.decoding):
            parts.append(self._decode(num_rows))
        if chunks:
            logits = self._decoder.prefill([_prompt_chunk(chunk) for chunk in chunks])
            self.num_prefilled += sum(chunk.stop - chunk.start for chunk in chunks)
            complete = [number for number, chunk in enumerate(chunks) if chunk.is_last]
            for number in complete:
                self._scheduler.start_decoding(chunks[number].running)
                self._rows.join(chunks[number].running)
                self._sampler = None
            if complete:
                parts.append(logits[complete])
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, num_rows: int) -> Tensor:
        if self._graphs is not None:
            return self._graphs(num_rows)
        rows, longest = self._rows, max(len(running.token_ids) for running in self._scheduler.decoding)
        width = -(-longest // BLOCK_SIZE)
        return self._decoder.decode(
            rows.token_ids[:num_rows],
            rows.positions[:num_rows],
            rows.block_tables[:num_rows, :width],
            rows.adapters[:num_rows],
        )

    def _choose(self, logits_RV: Tensor) -> list[Event]:
        """Chooses a token for each row, and ends the replies that are complete with it."""
        decoding, rows = list(self._scheduler.decoding), self._rows
        if self._sampler is None:
            self._sampler = Sampler([running.sampling for running in decoding], logits_RV.device)
        count = len(decoding)
        history = None if rows.history is None else rows.history[:count]
        histories = Histories(history, rows.positions[:count] + 1, rows.num_prompt[:count])
        chosen = self._sampler.choose(logits_RV, histories)
        logprobs = self._sampler.logprobs(logits_RV, chosen)
        rows.advance(chosen)
        return [
            self._event(running, token_id, logprobs.get(row))
            for row, (running, token_id) in enumerate(zip(decoding, chosen.tolist(), strict=True))
        ]

    def _event(self, running: RunningRequest, token_id: int, logprobs: Logprobs | None) -> Event:
        if token_id < 0:
            self._finish(running, "error", nan_logits())
            return Event(running, [], "error", error=running.error)
        self._scheduler.add_token(running, token_id)
        self.num_generated += 1
        sampling, stop_texts = running.sampling, self._stop_texts.get(running)
        text = None if stop_texts is None else stop_texts.push(token_id)
        reason: FinishReason | None = None
        if token_id in sampling.stop_token_ids or (stop_texts is not None and stop_texts.is_found):
            reason = "stop"
        elif len(running.token_ids) == running.max_length:
            reason = "length"
        if reason is not None:
            if stop_texts is not None and text is not None:
                text += stop_texts.flush()
                reason = "stop" if stop_texts.is_found else reason
            self._finish(running, reason)
        return Event(running, [token_id], reason, () if logprobs is None else (logprobs,), text)

    def _finish(self, running: RunningRequest, reason: FinishReason, error: ModelError | None = None) -> None:
        """Ends a request, and gives its row and its blocks back."""
        running.finish_reason, running.error = reason, error
        self._stop_texts.pop(running, None)
        if reason == "error":  # what it has written may be NaN, which would spread
            self._cache.clear([block for block in running.blocks if self._pool.num_users(block) == 1])
        row = running.row
        moved = self._scheduler.remove(running, keeps_blocks_known=reason != "error")
        if row >= 0:
            last = len(self._scheduler.decoding)
            if moved is not None:
                self._rows.move(last, row)
            self._rows.clear(last)
            self._sampler = None

    # Checks

    def _check(self, request: Request) -> None:
        num_prompt, num_new = len(request.prompt_ids), request.sampling.max_new_tokens
        if request.adapter is not None:
            self._check_adapter(request.adapter)
        if num_prompt == 0 or num_new < 1:
            raise DataError("a request needs at least one token of a prompt, and one to generate")
        num_ids = self._decoder.weights.shape.vocabulary_size
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= num_ids:
            raise DataError(f"the prompt holds token ids outside of the model's vocabulary, 0 to {num_ids - 1}")
        if num_prompt + num_new > self._max_length:
            raise ModelError(
                f"a prompt of {num_prompt} tokens and {num_new} new ones do not fit into the model's context of "
                f"{self._max_length} tokens; lower max_new_tokens or shorten the prompt"
            )

    def _check_adapter(self, name: str) -> None:
        if name not in self._adapters.names:
            there_are = show_names(self._adapters.names) or "none"
            raise AdapterError(f"adapter {name!r} is not loaded; loaded: {there_are}")


def _prompt_chunk(chunk: Chunk) -> PromptChunk:
    running = chunk.running
    return PromptChunk(running.token_ids[chunk.start : chunk.stop], chunk.start, running.blocks, running.adapter)
