"""Reaching the model hub."""

from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE

_HUB_TIMEOUT_S = 5.0


def reach_hub(hub_id: str) -> None:
    """Probes the hub once; without a network, its client would retry for a minute.

    Raises:
        OSError: It cannot be reached.
    """
    if HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        return
    try:
        urlopen(Request(hf_hub_url(hub_id, "config.json"), method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except HTTPError:
        return  # the hub answered; the download reports what the status means, and may have a token
    except URLError as error:
        if not isinstance(error.reason, SSLError):  # not fatal: the hub's client may have other certificates
            raise
