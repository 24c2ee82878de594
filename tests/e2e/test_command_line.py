"""Without these, a command that people type could break as a whole though each of its parts works."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmtune
import processes
from glmtune import cli
from settings import changed

GLMTUNE = Path(sys.executable).with_name("glmtune")
SETTINGS = [
    "train.save_steps=4",
    "train.logging_steps=1",
    "train.learning_rate=2e-3",
    "train.lr_scheduler_type=constant",
    "train.seed=1",
]


def run_glmtune(*arguments: str, text: str | None = None, code: int = 0) -> str:
    """Runs the command; returns what it printed, errors included."""
    done = processes.run(
        GLMTUNE,
        *arguments,
        input=text,
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture
def call_glmtune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The same within this process, which has imported everything already: for what a process of its own has shown."""
    monkeypatch.setenv("COLUMNS", "100")
    logger = logging.getLogger("glmtune")  # as it was, afterwards: the command takes it away from pytest
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "handlers", [*logger.handlers])

    def call(*arguments: str, text: str = "", code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["glmtune", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = "".join(capsys.readouterr())
        assert (ended.value.code or 0) == code, printed
        return printed

    return call


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    """A run that was interrupted by Ctrl-C and then resumed, for some steps more than it had."""
    folder = workplace / "run"
    command = [GLMTUNE, "train", *SETTINGS, f"train.output_dir={folder}"]
    # However late Ctrl-C comes, the run is still on its way.
    with processes.started(*command, "train.max_steps=100000", stderr=subprocess.PIPE) as process:
        printed = processes.read_until(process.stderr, "step 2/")
        process.send_signal(signal.SIGINT)
        printed += process.communicate(timeout=processes.HANG_S)[1].decode()
    assert process.returncode == 130, printed
    assert "train.resume_from_checkpoint=true" in printed
    assert "Traceback" not in printed
    interrupted_at = _num_steps(folder)
    assert interrupted_at >= 2
    assert not (folder / "all_results.json").exists()
    run_glmtune(*command[1:], f"train.max_steps={interrupted_at + 6}", "train.resume_from_checkpoint=true")
    assert _num_steps(folder) == interrupted_at + 6
    return folder


def _num_steps(run: Path) -> int:
    lines = (run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line)["step"] for line in lines)


def test_run_folder(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "trainer_state.json",
        "trainer_log.jsonl",
        "training_loss.png",
        "all_results.json",
        "glmtune.json",
        f"checkpoint-{_num_steps(run)}",
    }
    assert expected <= names
    losses = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    by_step = {entry["step"]: entry["loss"] for entry in losses if "loss" in entry}
    assert list(by_step) == list(range(1, _num_steps(run) + 1))
    assert sum(list(by_step.values())[-4:]) < sum(list(by_step.values())[:4])


def test_interrupted_equals_uninterrupted(run: Path, workplace: Path, call_glmtune: Callable[..., str]) -> None:
    folder = workplace / "straight"
    call_glmtune("train", *SETTINGS, f"train.output_dir={folder}", f"train.max_steps={_num_steps(run)}")
    resumed, straight = (
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"] for path in (run, folder)
    )
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in (resumed, straight)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_second_run_is_not_overwritten(run: Path, call_glmtune: Callable[..., str]) -> None:
    before = (run / "adapter_model.safetensors").read_bytes()
    printed = call_glmtune("train", *SETTINGS, f"train.output_dir={run}", code=1)
    assert "train.output_dir" in printed
    assert (run / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("part", ["run", "checkpoint"])
def test_chat(run: Path, part: str, call_glmtune: Callable[..., str]) -> None:
    folder = run if part == "run" else run / f"checkpoint-{_num_steps(run)}"
    printed = call_glmtune("chat", str(folder), text="你是谁？\n/system 你是一只猫\n/reset\n/nonsense\n你好\n/exit\n")
    assert printed.count("GLM>") == 2
    assert "你是一只猫" in printed
    assert "/nonsense" in printed


def test_generate_is_ordered_and_resumable(run: Path, workplace: Path, call_glmtune: Callable[..., str]) -> None:
    questions, replies = workplace / "questions.json", workplace / "replies.jsonl"
    rows = [{"instruction": f"{number} 加 1 等于几？", "input": ""} for number in range(11)]
    questions.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    command = ["generate", str(run), "--input", str(questions), "--output", str(replies), "--batch-size", "4"]
    call_glmtune(*command, "max_new_tokens=8")
    whole = replies.read_text(encoding="utf-8")
    lines = whole.splitlines()
    assert [json.loads(line)["instruction"] for line in lines] == [row["instruction"] for row in rows]
    replies.write_text("\n".join(lines[:5]) + "\n" + lines[5][:7], encoding="utf-8")
    call_glmtune(*command, "max_new_tokens=8")
    assert replies.read_text(encoding="utf-8") == whole


def test_merged_folder_loads_with_plain_transformers(
    run: Path, workplace: Path, call_glmtune: Callable[..., str]
) -> None:
    merged = workplace / "merged"
    call_glmtune("merge", str(run), "--output", str(merged))
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model, _ = glmtune.load(run, dtype="float32")
    inputs = tokenizer.build_chat_input("你是谁？")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, atol=0.1, rtol=0.0)
    printed = call_glmtune("chat", str(merged), text="你好\n/exit\n")
    assert "GLM>" in printed


def test_mistakes_are_one_clear_message(workplace: Path, call_glmtune: Callable[..., str]) -> None:
    assert "did you mean train.learning_rate" in call_glmtune("train", "train.learning_rat=1", code=1)
    assert "nowhere.json" in call_glmtune("train", "data.path=nowhere.json", code=1)
    questions = ["--input", "nowhere.json", "--output", str(workplace / "none.jsonl")]
    assert "nowhere.json" in call_glmtune("generate", "no-such-run", *questions, code=1)  # before a model is loaded
    assert "no-such-run" in call_glmtune("chat", "./no-such-run", code=1)
    broken = workplace / "broken.json"
    broken.write_text('[{"instruction": "a", "input": ""}, {"instruction": "", "output": "c"}]', encoding="utf-8")
    printed = call_glmtune("data", "check", str(broken), code=1)
    assert "row 1" in printed
    assert "row 2" in printed


def test_help_imports_nothing_heavy() -> None:
    printed = run_glmtune("--help")
    assert all(command in printed for command in ("train", "chat", "generate", "merge", "data", "demo", "env"))
    probe = "import sys, glmtune.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert processes.run(sys.executable, "-c", probe).returncode == 0, "the command line imports torch for its help"


def test_a_run_says_what_it_uses_and_how_it_ended(workplace: Path, call_glmtune: Callable[..., str]) -> None:
    data, folder = workplace / "mine.json", workplace / "my run"
    rows = [{"instruction": f"问题{number}？", "output": f"回答{number}。"} for number in range(10)]
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    settings = [f"data.path={data}", "data.eval_fraction=0.1", "prompt.system=你是一只猫", f"train.output_dir={folder}"]
    settings += ["train.max_steps=2", "train.eval_steps=1", "train.early_stopping_patience=1", "train.save_steps=1"]
    printed = call_glmtune("train", *changed(SETTINGS, *settings))
    for said in (
        "only for trying things out; to train ChatGLM3-6B, add model.path=FOLDER",
        "mine.json: instruction/output",
        "for training: 9 samples; for evaluation: 1 sample\n",
        "prompt: chatglm3; system prompt: 你是一只猫",
        "settings: 2 steps of up to 8 samples, learning rate 0.002, LoRA r=8 alpha=32 on query_key_value, float32",
        "trained: 2 steps in 0:00:",
        "the run folder holds the best adapter, that of step ",
        f"loss curve: {folder / 'training_loss.png'}",
        f"  glmtune chat '{folder}'",
        f"  glmtune generate '{folder}' --input questions.json --output replies.jsonl",
        f"  glmtune merge '{folder}' --output '{folder}-merged'",
    ):
        assert said in printed
    assert "instruction and input are joined" not in printed  # no row has both
    assert "System prompt: 你是一只猫" in call_glmtune("chat", str(folder), text="/exit\n")


def test_the_list_is_printed_by_topic(call_glmtune: Callable[..., str]) -> None:
    text = call_glmtune("train", "--keys")
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    values = {line[0]: line[1] for line in lines}
    assert values["train.save_total_limit"] == "2"
    assert values["model.path"] == "null"
    assert values["data.join"] == "\\n"
    assert values["train.learning_rate"] == "0.0001"
    assert values["lora.init_lora_weights"] == "true"
    assert text.index("Base model\n") < text.index("Evaluation and early stopping\n") < text.index("may be set too")


def test_plan(call_glmtune: Callable[..., str]) -> None:
    """For a card that is not here; a plan that does not fit is an error."""
    text = call_glmtune("plan", "--gpu-gib", "24")
    assert "weights" in text
    assert "model.quantize=none" in text
    assert "12 steps" in call_glmtune("plan", "train.max_steps=12")
    assert "RTX 4090: 24 GiB" in call_glmtune("plan", "--gpu", "4090")
    assert "did you mean" in call_glmtune("plan", "--gpu", "4091", code=1)
    assert "12 TFLOP/s" in call_glmtune("plan", "--gpu-gib", "2", "--tflops", "12")
    text = call_glmtune("plan", "--gpu-gib", "0.61", code=1)
    assert "does not fit" in text
    assert "smallest card" in text
    for wrong in (["--gpu-gib", "0.5"], ["--gpu-gib", "-3"], ["--tflops", "0"]):
        assert f"{wrong[0]}: expected a number above" in call_glmtune("plan", *wrong, code=1)
