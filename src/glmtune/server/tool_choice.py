"""Lets the model begin a call where a request demands one: the tool's name becomes part of the prompt."""

from collections.abc import Collection, Sequence

from glmtune.inference.engine.request import Request, Sampling
from glmtune.server.generation import take
from glmtune.server.models import ServedModel
from glmtune.server.service import Service

_ALL = 2**31 - 1


async def begin_call(
    service: Service, served: ServedModel, prompt_ids: Sequence[int], names: Sequence[str]
) -> tuple[str, list[int]]:
    """Chooses a tool as the model would, token by token, if it could only write one of the names.

    Args:
        service: The server.
        served: The model that is asked.
        prompt_ids: The prompt, up to where the reply begins.
        names: The names of the tools, at least one.

    Returns:
        The name, and its ids, which the prompt has to end with.

    Raises:
        ApiError: The model cannot be asked.
    """
    # The line break ends each, so none is the beginning of another.
    left = {name: service.models.tokenizer.encode_text(f"{name}\n") for name in names}
    begun: list[int] = []
    while len(left) > 1:
        possible = {ids[len(begun)] for ids in left.values()}
        if len(possible) == 1:
            begun += possible
        else:
            begun.append(await _likeliest(service, served, [*prompt_ids, *begun], possible))
        left = {name: ids for name, ids in left.items() if ids[: len(begun)] == begun}
    return next(iter(left.items()))


async def _likeliest(
    service: Service, served: ServedModel, prompt_ids: Sequence[int], possible: Collection[int]
) -> int:
    request = Request(prompt_ids, Sampling(max_new_tokens=1, num_logprobs=_ALL), served.adapter)
    tickets = service.submit([request], is_whole=True)
    try:
        [event] = await take(tickets[0])
    finally:
        service.worker.cancel(tickets)
    return next(token_id for token_id in event.logprobs[0].top_ids if token_id in possible)
