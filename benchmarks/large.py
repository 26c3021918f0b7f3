"""A model of a real size on this machine's GPU: `python -m benchmarks.large`.

Single layers are multiplied dense and by the kernels for 2:4, by the number of tokens.

Then a LLaVA of random weights (what it answers means nothing) is written to a folder, and goes the
way of every checkpoint: `ressa run` prunes both towers 2:4 with Wanda and repairs them, `ressa
export` writes the model, `ressa verify` counts its zeros. Last the export answers with dense
products and with the kernels for 2:4, in turns: a prefill of pictures and questions in batches of
several sizes, and one token more.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import linear
from torch.sparse import to_sparse_semi_structured
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from ressa.catalog import MODELS
from ressa.export import to_semi_structured

# Of the vision tower and of the language model: width, inner width, blocks, heads.
SHAPES = {
    "least": ((64, 256, 2, 4), (64, 128, 2, 4)),
    "1b": ((1024, 4096, 24, 16), (2048, 5632, 22, 32)),  # CLIP ViT-L/14-336, TinyLlama 1.1B
    "7b": ((1024, 4096, 24, 16), (4096, 11008, 32, 32)),  # LLaVA-1.5-7B
}
LAYERS = ((1024, 4096), (2048, 5632), (4096, 4096), (11008, 4096), (4096, 11008))
TOKENS = (1, 16, 128, 1024, 4096, 16384)
ROUNDS = 15
_RESSA = "from ressa.cli import main; main()"
SWEEP = """
ressa: 1
name: large
model: {{id: {folder}, dtype: {dtype}}}
space: {{vision_sparsity: "2:4", language_sparsity: "2:4"}}
search: {{trials: 1}}
prune: {{calibration: {{samples: 128}}}}
repair:
  steps: {steps}
  batch_size: 32
  warmup_steps: 1
  dtype: {dtype}
  gradient_checkpointing: {again}
evaluate: [{{task: easy-vqa, split: validation, samples: 200}}]
baselines: []
resources: {{gpus_per_worker: {gpus}, cpus_per_worker: {cpus}}}
"""


def write_model(folder: Path, size: str) -> int:
    """Writes a LLaVA of random weights in bfloat16; returns how many there are."""
    (width, inner, blocks, heads), (hidden, wide, deep, many) = SHAPES[size]
    small = MODELS["pocket-llava"].folder
    picture, patch = (64, 8) if size == "least" else (336, 14)
    processor = AutoProcessor.from_pretrained(small)
    processor.patch_size = patch
    processor.image_processor.size = {"height": picture, "width": picture}
    vision = {"model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": inner}
    vision |= {"num_hidden_layers": blocks, "num_attention_heads": heads}
    vision |= {"image_size": picture, "patch_size": patch}
    text = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": wide}
    text |= {
        "num_hidden_layers": deep,
        "num_attention_heads": many,
        "vocab_size": 64 if size == "least" else 32000,
    }
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(_device()):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def sweep(folder: Path, size: str, steps: int) -> Path:
    """Prunes, repairs, exports and verifies; returns the export."""
    gpus = torch.cuda.device_count() and 1
    text = SWEEP.format(
        folder=folder / "dense",
        dtype="bfloat16" if gpus else "float32",  # processors of no more than AVX2 crawl with it
        steps=steps,
        gpus=gpus,
        cpus=2 if gpus else 1,
        again="true" if size == "7b" else "false",
    )
    (folder / "large.yaml").write_text(text)
    store, to = ["--store", str(folder / "results")], folder / "export"
    _ressa("run", str(folder / "large.yaml"), *store)
    found = _ressa("results", "large", *store, "-o", "json")
    (row,) = json.loads(found)
    print(json.dumps({name: value for name, value in row.items() if value is not None}, indent=1))
    _ressa("export", "large", row["trial"], "--to", str(to), *store)
    _ressa("verify", str(to))
    return to


def _ressa(*words: str) -> str:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _RESSA, *words], stdout=subprocess.PIPE, text=True)
    print(
        f"ressa {words[0]}: exit {done.returncode}, {time.perf_counter() - began:.1f} s", flush=True
    )
    done.check_returncode()
    return done.stdout


@torch.no_grad()
def answering(folder: Path, batches: Sequence[int], question: int = 32) -> Iterator[dict[str, Any]]:
    """Times an export that answers, dense and by the kernels for 2:4, in turns."""
    dense = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).to(_device())
    packed = deepcopy(dense)
    names = to_semi_structured(packed, folder)
    pixels = dense.config.vision_config.image_size
    tokens = (pixels // dense.config.vision_config.patch_size) ** 2 + 1
    print(f"{len(names)} matrices by the kernels for 2:4; a prompt has {tokens + question} tokens")
    for batch in batches:
        ids = torch.randint(5, 33, (batch, tokens + question), device=_device())
        ids[:, :tokens] = dense.config.image_token_index
        shown = torch.randn(batch, 3, pixels, pixels, device=_device(), dtype=torch.bfloat16)
        given = {"input_ids": ids, "pixel_values": shown}
        logits = [model(**given, logits_to_keep=1).logits for model in (dense, packed)]
        gap = (logits[0] - logits[1]).abs().max() / logits[0].abs().max()
        yield _row(
            {"what": "prefill", "batch": batch, "gap": f"{gap:.1e}"},
            *(partial(model, **given, logits_to_keep=1) for model in (dense, packed)),
        )
        past = [model(**given, logits_to_keep=1).past_key_values for model in (dense, packed)]
        length = past[0].get_seq_length()

        def more(which: int, past: Any = past, length: int = length, batch: int = batch) -> None:
            model = (dense, packed)[which]
            one = torch.full((batch, 1), 7, device=_device())
            model.model.language_model(input_ids=one, past_key_values=past[which], use_cache=True)
            past[which].crop(length)

        yield _row({"what": "one token", "batch": batch}, lambda: more(0), lambda: more(1))


@torch.no_grad()
def layers() -> Iterator[dict[str, Any]]:
    """Times single layers, called one by one and replayed from a CUDA graph."""
    for out, columns in LAYERS:
        weight = torch.randn(out, columns, device=_device(), dtype=torch.bfloat16)
        groups = weight.view(-1, 4)
        groups.scatter_(1, groups.abs().argsort(1)[:, :2], 0)
        packed = to_sparse_semi_structured(weight)
        for tokens in TOKENS:
            given = torch.randn(tokens, columns, device=_device(), dtype=torch.bfloat16)
            work = [partial(linear, given, matrix) for matrix in (weight, packed)]
            about = {"layer": f"{out}×{columns}", "tokens": tokens}
            yield _row({"what": "called", **about}, *work)
            yield _row({"what": "replayed", **about}, *map(_replayed, work))


def _replayed(work: Callable[[], object]) -> Callable[[], object]:
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        work()
    return graph.replay


def _row(about: dict[str, Any], dense: Callable[[], object], packed: Callable[[], object]) -> dict:
    seconds = {"dense": [], "packed": []}
    for work in (dense, packed):
        work()
    for _ in range(ROUNDS):
        for name, work in (("dense", dense), ("packed", packed)):
            seconds[name].append(_seconds(work))
    ours, theirs = (statistics.median(seconds[name]) for name in ("packed", "dense"))
    return {**about, "dense ms": theirs * 1e3, "2:4 ms": ours * 1e3, "times": theirs / ours}


def _seconds(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="1b")
    parser.add_argument("--steps", type=int, default=10, help="of repair")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--only", choices=["sweep", "layers"], help="leave the other out")
    parser.add_argument("--folder", type=Path, help="to work in and to keep; must be new")
    given = parser.parse_args()
    if given.only != "sweep":
        for row in layers():
            print(_text(row), flush=True)
    if given.only != "layers":
        with nullcontext(given.folder) if given.folder else TemporaryDirectory() as place:
            folder = Path(place)
            began = time.perf_counter()
            weights = write_model(folder / "dense", given.size)
            print(
                f"{weights:,} weights, written in {time.perf_counter() - began:.1f} s", flush=True
            )
            export = sweep(folder, given.size, given.steps)
            if torch.cuda.is_available():
                for row in answering(export, given.batches):
                    print(_text(row), flush=True)


def _text(row: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    )


if __name__ == "__main__":
    main()
