"""The command line speaks one language at a time: the reader's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import processes

CHINESE = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
COMMAND = re.compile(r"glmtune( [\w./-]+)+")
ENGLISH = re.compile(r"[A-Za-z]+(?: [a-z]{2,}){2,}")
CALLS = [
    ["--help"],
    ["train", "--help"],
    ["plan", "--help"],
    ["generate", "--help"],
    ["eval", "--help"],
    ["report", "--help"],
    ["data", "show", "--help"],
    ["data", "convert", "--help"],
    ["train", "--keys"],
    ["env"],  # before what imports more than it does
    ["plan", "--gpu-gib", "8"],
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
    ["eval", "nosuch", "--data", "broken.json"],
    ["eval", "nosuch"],
    ["report", "nosuch"],
    ["data", "check", "broken.json"],
    ["data", "convert", "broken.json", "--to", "qa"],
    ["data", "convert", "broken.json", "--to", "qa", "--output", "out.csv"],
]


ALL = [*CALLS, *MISTAKES]
# One process is one reader: it runs several commands, and says after each with which status it ended.
SCRIPT = """
import json, sys
from glmtune.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["glmtune", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(f"\\x1e{ended.code or 0}\\x1e", flush=True)
"""


def speak(language: str, folder: Path, commands: list[list[str]], text: str = "") -> list[tuple[int, str]]:
    """Runs commands in a language, in a folder; returns the exit status of each and what it printed."""
    done = processes.run(
        *(sys.executable, "-c", SCRIPT, json.dumps(commands)),
        cwd=folder,
        input=text,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "GLMTUNE_LANG": language, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    *parts, rest = done.stdout.split("\x1e")
    assert (len(parts), rest.strip()) == (2 * len(commands), "")
    return [(int(code), printed) for printed, code in zip(parts[::2], parts[1::2], strict=True)]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """By language, what all commands answer."""
    folder = tmp_path_factory.mktemp("spoken")
    rows = '[{"instruction": "a", "input": ""}, {"instruction": "", "output": "c"}, 5, {"messages": [{"role": "x"}]}]'
    (folder / "broken.json").write_text(rows, encoding="utf-8")
    return {language: speak(language, folder, ALL) for language in ("en", "zh")}


@pytest.mark.parametrize("number", range(len(ALL)), ids=[" ".join(arguments) for arguments in ALL])
def test_one_language_at_a_time(number: int, spoken: dict[str, list[tuple[int, str]]]) -> None:
    (code, english), (same_code, chinese) = (spoken[language][number] for language in ("en", "zh"))
    assert code == 0 if ALL[number] in CALLS else code in (1, 2)
    assert CHINESE.findall(english) == []
    assert same_code == code
    assert CHINESE.search(chinese)
    assert ENGLISH.findall(COMMAND.sub("", chinese)) == []


@pytest.mark.parametrize("language", ["zh", "en"])
def test_demo_and_chat(language: str, tmp_path: Path) -> None:
    commands = [["demo"], ["chat", "demo-output/run"]]
    (code, printed), chatted = speak(language, tmp_path, commands, "/help\n/system\n/nonsense\n你好\n/exit\n")
    assert (code, chatted[0]) == (0, 0)
    chat = chatted[1]
    if language == "zh":
        assert ENGLISH.findall(COMMAND.sub("", printed + chat)) == []
        assert "助手>" in chat
    else:
        table, rest = re.split(r"\n(?=correct)", printed)
        ours = [line for line in table.splitlines() if "│" not in line]
        assert CHINESE.findall("\n".join(ours) + rest) == []
        assert [line for line in chat.splitlines() if CHINESE.search(line) and "GLM>" not in line] == []
    log = (tmp_path / "demo-output" / "run" / "trainer_log.jsonl").read_text(encoding="utf-8")
    assert CHINESE.findall(log) == []
