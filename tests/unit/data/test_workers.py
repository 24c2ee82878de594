"""Without this, Ctrl-C while tokenising could leave processes behind that go on working."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import processes

# Tokenises in two workers, each of which says that it has begun and then works until it is stopped.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import datasets
from glmtune.data.compact import SourceList, conversation_list
from glmtune.data.dataset import tokenize_conversations
from glmtune.data.formats import Conversations
from glmtune.data.rows import Source
from glmtune.prompts import Conversation, Message

class SlowTokenizer:
    eos_token_id, prefix_token_ids = 0, [1]

    def encode_text(self, text):
        os.write(1, b"begun\\n")  # in one piece: the other worker writes too
        while True:
            signal.pause()

    def get_vocab(self):
        return {}

    def get_command(self, token):
        return 2

datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1], "cache")
items = [Conversation((Message("user", "q"), Message("assistant", "a")))] * 2
try:
    data = Conversations(conversation_list(items), SourceList([Source("a.json", 1)] * 2))
    tokenize_conversations(data, SlowTokenizer(), num_workers=2)
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
    command = [sys.executable, "-c", SCRIPT, tmp_path]
    with processes.started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        for _ in range(2):
            processes.read_until(process.stdout, "begun")
        (os.killpg if to_all else os.kill)(process.pid, signal.Signals[number])
        try:
            _, printed = process.communicate(timeout=processes.HANG_S)  # to the end of the last that could print
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert b"Traceback" not in printed
    assert process.returncode == code, printed
