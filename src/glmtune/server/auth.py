"""API keys: from a file or the environment, compared in constant time, never shown."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from glmtune.errors import ConfigError

VARIABLE = "GLMTUNE_API_KEY"
_SHORTEST = 8


class ApiKeys:
    """The keys that open the server; without any, it is open to all.

    Only their digests are kept, so that no log, traceback or dump of the process can show them.

    Args:
        keys: The keys.

    Raises:
        ConfigError: One is too short to be a secret.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        keys = list(keys)
        if any(len(key) < _SHORTEST or not key.isascii() for key in keys):
            raise ConfigError(f"an API key needs at least {_SHORTEST} characters, all of them ASCII")
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: bytes | None) -> bool:
        """Whether an `Authorization` header opens the server.

        Every key is compared in full, whichever fits.

        Args:
            authorization: The header's value; None if there is none.
        """
        if not self._digests:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(fits) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def page_key() -> str | None:
    """A random key for the page where no keys are set: every user of a shared machine reaches its address.

    Returns:
        The key; None if the environment has an empty one, which says that the page is to be open.
    """
    return None if VARIABLE in os.environ else secrets.token_urlsafe(18)


def read_keys(file: str | None) -> ApiKeys:
    """Reads the keys.

    Args:
        file: A file with one key a line; empty lines and those that begin with # do not count. None for the one in the
            environment, if it is there.

    Raises:
        ConfigError: The file cannot be read, has no key, or one is too short.
    """
    if file is None:
        key = os.environ.get(VARIABLE, "").strip()
        return ApiKeys([key] if key else [])
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--key-file: {file} cannot be read: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--key-file: {file} holds no key; expected one a line")
    return ApiKeys(keys)
