"""Tokenising in several processes that is ended from outside leaves none of them behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

# Tokenises in two workers, each of which says that it has begun and then takes its time.
SCRIPT = """
import os, sys, time
from pathlib import Path
import datasets
from glmtune.data.dataset import tokenize_conversations
from glmtune.data.formats import Conversations
from glmtune.data.readers import Source
from glmtune.prompts import Conversation, Message

class SlowTokenizer:
    eos_token_id, prefix_token_ids = 0, [1]

    def encode_text(self, text):
        Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(60)

    def get_vocab(self):
        return {}

    def get_command(self, token):
        return 2

datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1], "cache")
items = [Conversation((Message("user", "q"), Message("assistant", "a")))] * 2
try:
    tokenize_conversations(Conversations(items, [Source("a.json", 1)] * 2), SlowTokenizer(), num_workers=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.posix  # needs process groups and SIGHUP
@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [("SIGTERM", False, 143), ("SIGHUP", True, 129), ("SIGINT", True, 130)],
)
def test_a_signal_while_tokenising_leaves_no_worker_and_no_traceback(
    tmp_path: Path, number: str, to_all: bool, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("[0-9]*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        (os.killpg if to_all else os.kill)(process.pid, signal.Signals[number])
        try:
            _, printed = process.communicate(timeout=60)  # to the end of the last process that could print
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert b"Traceback" not in printed
    assert process.returncode == code, printed
