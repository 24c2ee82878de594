"""Without these, two GPUs could learn something else than one does, or leave a torn checkpoint."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import glmtune
import processes
from glmtune.config import embedded_data
from glmtune.errors import TrainingError
from settings import changed

SETTINGS = [
    "train.use_cpu=true",
    "train.max_steps=4",
    "train.logging_steps=1",
    "train.save_steps=100",
    "train.optim=sgd",  # Adam would make much of the last bits of gradients near zero
    "train.learning_rate=1",
    "lora.lora_dropout=0",
]


EXAMPLES = Path(__file__).parents[2] / "examples"
GLMTUNE = str(Path(sys.executable).with_name("glmtune"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]


def logged(folder: Path) -> tuple[list[tuple[float, float]], list[float]]:
    """Losses and gradient norms of a run, and its evaluation losses."""
    entries = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return (
        [(entry["loss"], entry["grad_norm"]) for entry in entries if "loss" in entry],
        [entry["eval_loss"] for entry in entries if "eval_loss" in entry],
    )


def asked(folder: Path) -> list[tuple[int, str]]:
    """The steps and questions of the answers in training."""
    rows = [json.loads(line) for line in (folder / "eval_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["prompt"]) for row in rows]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    # Five samples of very different lengths: shares of three and two, batches of two and one.
    rows = [{"instruction": f"{number}?", "output": "不" * (1 + 9 * number)} for number in range(5)]
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(rows), encoding="utf-8")
    evaluating = (f"data.eval_path={held_out}", "train.eval_steps=2", "train.per_device_eval_batch_size=2")
    evaluating += ("train.eval_generate=3",)  # two questions for one process, one for the other
    # Two accumulated batches of two on each process, in several forward passes, against eight at once.
    spread = ("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2")
    at_once = ("train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1")
    shared = (*SETTINGS, *evaluating, "model.path=null", f"data.path={embedded_data()}")
    settings = (*shared, *spread, "train.max_tokens_per_device=60", f"train.output_dir={tmp_path / 'two'}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where torchrun is
    done = processes.run(EXAMPLES / "two-gpus.sh", *settings, env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Done") == 1  # said once, however many processes there are
    glmtune.train(EXAMPLES / "chatglm3-6b.yaml", *shared, *at_once, f"train.output_dir={tmp_path / 'one'}")
    (two, two_evaluated), (one, one_evaluated) = logged(tmp_path / "two"), logged(tmp_path / "one")
    assert (len(one), len(one_evaluated)) == (4, 2)
    for pair, expected in zip(two, one, strict=True):
        assert pair == pytest.approx(expected, rel=1e-4)
    assert two_evaluated == pytest.approx(one_evaluated, rel=1e-4)
    assert (
        asked(tmp_path / "two") == asked(tmp_path / "one") == [(step, f"{n}?") for step in (0, 2, 4) for n in range(3)]
    )


def test_what_stops_one_process_is_said_in_a_sentence_and_the_other_ends_with_one_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [*TORCHRUN, GLMTUNE, "train", *SETTINGS, f"train.output_dir={tmp_path / 'file'}"]
    done = processes.run(*command)
    assert done.returncode == 1
    assert f"train.output_dir: {tmp_path / 'file'}: a part of the path is a file" in done.stderr
    assert "[rank1]: Traceback" not in done.stderr  # torchrun itself prints one


def test_two_nodes_that_share_a_disk_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        nodes = []
        for rank in range(2):
            launcher = ["--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
            command = [sys.executable, "-m", "torch.distributed.run", *launcher, f"--master_port={port}", "--no-python"]
            command += [
                GLMTUNE,
                "train",
                *changed(SETTINGS, "train.save_steps=2", f"train.output_dir={tmp_path / 'run'}"),
            ]
            node = processes.started(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            nodes.append(stack.enter_context(node))
        for node in nodes:
            output, _ = node.communicate(timeout=processes.HANG_S)
            assert node.returncode == 0, output.decode()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    files = {path.name for path in (tmp_path / "run" / "checkpoint-4").iterdir()}
    assert {"adapter_model.safetensors", "checksums.json", "rng_state_0.pth", "rng_state_1.pth"} <= files
    again = (f"train.output_dir={tmp_path / 'run'}", "train.resume_from_checkpoint=true", "train.max_steps=6")
    with pytest.raises(TrainingError, match="it began with 2 processes, and continues with 1"):
        glmtune.train(None, *changed(SETTINGS, *again))
