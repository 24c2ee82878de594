"""Turns a full golden folder into the small form that the repository holds, and back.

    python tests/golden/trim.py FOLDER_WITH_THE_FULL_GOLDEN_FOLDERS

A full folder is a base folder of the official layout with two adapters and `expected.safetensors` in it; `trim` says
what of it is kept.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

DATA = Path(__file__).parent / "data"
MODELS = ("chatglm3-tiny", "chatglm2-tiny")
ADAPTERS = ("adapter_init", "adapter_final")
COMMON_FILES = ("tokenizer.model", "tokenizer_config.json", "tokenizer_cases.json")
EMBEDDING = "transformer.embedding.word_embeddings.weight"
LOGIT_STRIDE = 84  # of 4,032 columns 48 stay

Arrays = dict[str, np.ndarray]


def trim(source: Path, target: Path) -> None:
    """Writes the small form of a full folder: one file of numbers beside the configurations.

    Kept are all weights but the embedding's rows that no expected value depends on, of logits every 84th column, and
    all else that is expected.
    """
    target.mkdir(parents=True, exist_ok=True)
    weights, expected = load_file(source / "model.safetensors"), load_file(source / "expected.safetensors")
    rows = np.unique(np.concatenate([ids.ravel() for name, ids in expected.items() if name.endswith("_ids")]))
    weights[EMBEDDING] = weights[EMBEDDING][rows]
    columns = np.arange(0, weights["transformer.output_layer.weight"].shape[0], LOGIT_STRIDE)
    for name, values in expected.items():
        if name.endswith("logits"):
            expected[name] = values[..., columns]
    expected["logit_columns"] = columns
    numbers = {"embedding_rows": rows}
    numbers |= {f"model/{name}": values for name, values in weights.items()}
    numbers |= {f"expected/{name}": values for name, values in expected.items()}
    for adapter in ADAPTERS:
        lora = load_file(source / adapter / "adapter_model.safetensors")
        numbers |= {f"{adapter}/{name}": values for name, values in lora.items()}
    np.savez_compressed(target / "numbers.npz", **{name: _to_bytes(v) for name, v in numbers.items()})
    shutil.copyfile(source / "config.json", target / "config.json")
    shutil.copyfile(source / ADAPTERS[0] / "adapter_config.json", target / "adapter_config.json")


def expand(trimmed: Path, target: Path) -> None:
    """Writes the full folder that a trimmed one stands for.

    Rows of the embedding that were not kept are random numbers of the same spread, so that the folder is a base like
    any other.
    """
    target.mkdir(parents=True)
    with np.load(trimmed / "numbers.npz") as file:
        numbers = {name: _from_bytes(file[name]) for name in file.files}
    weights = _part(numbers, "model")
    num_rows, hidden_size = weights["transformer.output_layer.weight"].shape
    embedding = np.random.default_rng(0).normal(0, weights[EMBEDDING].std(), (num_rows, hidden_size))
    embedding[numbers["embedding_rows"]] = weights[EMBEDDING]
    weights[EMBEDDING] = embedding.astype(np.float32)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    save_file(_part(numbers, "expected"), target / "expected.safetensors")
    shutil.copyfile(trimmed / "config.json", target / "config.json")
    for adapter in ADAPTERS:
        (target / adapter).mkdir()
        save_file(_part(numbers, adapter), target / adapter / "adapter_model.safetensors", {"format": "pt"})
        shutil.copyfile(trimmed / "adapter_config.json", target / adapter / "adapter_config.json")
    for name in COMMON_FILES:
        shutil.copyfile(trimmed.parent / name, target / name)


def _part(numbers: Arrays, part: str) -> Arrays:
    return {name.removeprefix(f"{part}/"): values for name, values in numbers.items() if name.startswith(f"{part}/")}


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Of fp32 numbers all first bytes, then all second ones and so on: random weights compress better so."""
    if values.dtype != np.float32:
        return values
    return np.moveaxis(np.ascontiguousarray(values)[..., None].view(np.uint8), -1, 0)


def _from_bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.uint8:
        return values
    return np.ascontiguousarray(np.moveaxis(values, 0, -1)).view(np.float32)[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the golden cases that the repository holds.")
    parser.add_argument("source", type=Path, help=f"a folder with the full folders {', '.join(MODELS)} in it")
    source = parser.parse_args().source
    for model in MODELS:
        trim(source / model, DATA / model)
    for name in COMMON_FILES:
        contents = {(source / model / name).read_bytes() for model in MODELS}
        if len(contents) > 1:
            raise SystemExit(f"{name} differs between the models, and the repository holds one for all")
        (DATA / name).write_bytes(contents.pop())
    print(f"{sum(file.stat().st_size for file in DATA.rglob('*.*')):,} bytes in {DATA}")


if __name__ == "__main__":
    main()
