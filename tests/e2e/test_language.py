"""The installed command speaks one language at a time: the reader's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GLMTUNE = Path(sys.executable).with_name("glmtune")
CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
COMMAND = re.compile(r"glmtune( [\w./-]+)+")
ENGLISH = re.compile(r"[A-Za-z]+(?: [a-z]{2,}){2,}")
CALLS = [
    ["--help"],
    ["train", "--help"],
    ["plan", "--help"],
    ["generate", "--help"],
    ["data", "show", "--help"],
    ["train", "--keys"],
    ["plan", "--gpu-gib", "8"],
    ["env"],
]
MISTAKES = [
    ["train", "nosuch.yaml"],
    ["train", "train.learning_rat=1", "train.max_steps=x", "lora.r=0", "data.max_length=abc", "train.no_cuda=true"],
    ["train", "data.path=nosuch.json"],
    ["train", "model.quantize=int8", "lora.use_dora=true"],
    ["plan", "--gpu-gib", "0.61"],
    ["chat"],
    ["chat", "./nosuch"],
    ["chat", "--nonsense"],
    ["nonsense"],
    ["generate", "nosuch", "--batch-size", "many"],
    ["data", "check", "broken.json"],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = '[{"instruction": "a", "input": ""}, {"instruction": "", "output": "c"}, 5, {"messages": [{"role": "x"}]}]'
    (tmp_path / "broken.json").write_text(rows, encoding="utf-8")
    return tmp_path


def speak(language: str, folder: Path, arguments: list[str], text: str | None = None) -> tuple[int, str]:
    """Runs the command in a language, in a folder; returns its exit status and what it printed."""
    done = subprocess.run(
        [GLMTUNE, *arguments],
        cwd=folder,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=240,
        env={**os.environ, "GLMTUNE_LANG": language, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
    )
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


@pytest.mark.parametrize("arguments", [*CALLS, *MISTAKES], ids=" ".join)
def test_one_language_at_a_time(arguments: list[str], folder: Path) -> None:
    code, english = speak("en", folder, arguments)
    assert code == 0 if arguments in CALLS else code in (1, 2)
    assert CHINESE.findall(english) == []
    same_code, chinese = speak("zh", folder, arguments)
    assert same_code == code
    assert CHINESE.search(chinese)
    assert ENGLISH.findall(COMMAND.sub("", chinese)) == []


@pytest.mark.parametrize("language", ["zh", "en"])
def test_demo_and_chat(language: str, folder: Path) -> None:
    code, printed = speak(language, folder, ["demo"])
    assert code == 0
    code, chat = speak(language, folder, ["chat", "demo-output/run"], "/help\n/system\n/nonsense\n你好\n/exit\n")
    assert code == 0
    if language == "zh":
        assert ENGLISH.findall(COMMAND.sub("", printed + chat)) == []
        assert "助手>" in chat
    else:
        table, rest = re.split(r"\n(?=correct)", printed)
        ours = [line for line in table.splitlines() if "│" not in line]
        assert CHINESE.findall("\n".join(ours) + rest) == []
        assert [line for line in chat.splitlines() if CHINESE.search(line) and "GLM>" not in line] == []
    log = (folder / "demo-output" / "run" / "trainer_log.jsonl").read_text(encoding="utf-8")
    assert CHINESE.findall(log) == []
