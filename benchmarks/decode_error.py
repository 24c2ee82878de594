"""How far are the engine's bf16 logits from fp32, at ChatGLM3-6B's shape, beside those of the model's own forward pass?

Random weights, 64 greedy replies of 64 tokens; all three compute the log-probabilities of the same tokens. A tie is
broken where the engine's likeliest token is not that of fp32.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from rows import append_row
from torch import Tensor
from workload import random_model

from glmtune.inference.engine.engine import Engine
from glmtune.inference.engine.request import Request, Sampling

NUM_PROMPTS, NUM_PROMPT, NUM_NEW, NUM_TOP = 64, 64, 64, 20
RESULTS = Path(__file__).parent / "results" / "decode_error.csv"


@torch.no_grad()
def log_probabilities(model: Any, token_ids: list[int]) -> Tensor:
    """Those after each token of the reply, [NUM_NEW, V] fp32."""
    ids = torch.tensor([token_ids[:-1]], device="cuda")
    result: Tensor = model(input_ids=ids).logits[0, NUM_PROMPT - 1 :].float().log_softmax(-1)
    return result


def main() -> None:
    """Compares, and appends a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="a CSV file, to which a row is appended")
    parser.add_argument("--commit", required=True)
    arguments = parser.parse_args()
    model = random_model("cuda").eval()
    exact = random_model("cuda").eval().float()
    prompts = torch.randint(100, 60000, (NUM_PROMPTS, NUM_PROMPT)).tolist()
    sampling = Sampling(max_new_tokens=NUM_NEW, num_logprobs=NUM_TOP)
    found: dict[Any, list[Any]] = {}
    engine = Engine(model, None, max_rows=NUM_PROMPTS, num_blocks=1024)
    for event in engine.run([Request(prompt, sampling) for prompt in prompts]):
        found.setdefault(event.request, []).extend(event.logprobs)
    errors, of_model, num_broken, num_broken_by_model = [], [], 0, 0
    for running, steps in found.items():
        expected, eager = (log_probabilities(one, running.token_ids) for one in (exact, model))
        top_ids = torch.tensor([step.top_ids for step in steps], device="cuda")
        top = torch.tensor([step.top for step in steps], device="cuda")
        errors.append(top - expected.gather(1, top_ids))
        of_model.append((eager - expected).gather(1, top_ids))
        num_broken += int((top_ids[:, 0] != expected.argmax(-1)).sum())
        num_broken_by_model += int((eager.argmax(-1) != expected.argmax(-1)).sum())
    row = {
        "tokens": NUM_PROMPTS * NUM_NEW,
        "rms_error": f"{torch.cat(errors).square().mean().sqrt().item():.3e}",
        "rms_error_of_forward": f"{torch.cat(of_model).square().mean().sqrt().item():.3e}",
        "ties_broken": num_broken,
        "ties_broken_by_forward": num_broken_by_model,
    }
    gpu = torch.cuda.get_device_name()
    append_row(arguments.output, row, arguments.commit, gpu=gpu, transformers=transformers.__version__)


if __name__ == "__main__":
    main()
