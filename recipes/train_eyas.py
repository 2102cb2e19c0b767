r"""Trains the bundled model: packed documents, Muon and AdamW, a stable stage, an anneal. Resumes if cut off.

    python recipes/train_eyas.py DATA WORK --stable-steps 2000 --anneal-steps 750

DATA holds pretrain/ and sft/, WORK the tokenizer (recipes/train_tokenizer.py); token files, checkpoint.pt, log.jsonl
and at the end the model directory WORK/eyas are written there. Where the token files and held_out.json lie there
already, DATA is not read.

A model on a GPU that is lent for some minutes at a time, on a machine that only files get to.
Here: a run of no steps writes the token files, which come to 100 MB in parts that travel one by one.

    python recipes/train_eyas.py DATA WORK --stable-steps 0 --anneal-steps 0
    mkdir parts; (cd WORK; tar -cJ tokenizer held_out.json *.uint16) | split -b 24M - parts/part.

There, with torch, triton, tokenizers, safetensors, ml_dtypes and rich: the second command again goes on where it ended.

    mkdir -p WORK; cat parts/part.* | tar -xJ -C WORK
    PYTHONPATH=src python recipes/train_eyas.py none WORK --width 320 --num-layers 8 --device cuda --batch-rows 64 \
        --minutes 8 --stable-steps 8000 --anneal-steps 1500 --compile
    tar -C WORK -c eyas log.jsonl | split -b 15M - WORK/out.

--architecture trains Hawk or the multi-query transformer with as many parameters, to compare with.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corpus import PRETRAIN_SOURCES, conversations, documents
from rich.progress import track
from tokenizers import Tokenizer

from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.checkpoint.store import SHARD_BYTES
from griffinlm.config import ModelConfig
from griffinlm.model import Griffin
from griffinlm.model.state import to_array
from griffinlm.presets import GRIFFIN_PATTERN, HAWK_PATTERN, TRANSFORMER_PATTERN, bfloat16_sqrt
from griffinlm.train.objective import Objective

SEQUENCE_TOKENS = 1024
SEED = 0
LOSS_CHUNK_TOKENS = 2048
WARM_UP_STEPS = 100
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05

ARCHITECTURES = {"griffin": GRIFFIN_PATTERN, "hawk": HAWK_PATTERN, "transformer": TRANSFORMER_PATTERN}
ROLES = {"user": "user", "assistant": "model"}

STABLE_MIX = {
    "wiki_simple": 0.42,
    "books": 0.24,
    "children_books": 0.12,
    "fairytale_stories": 0.03,
    "storybooks": 0.04,
    "tinystories": 0.15,
}
ANNEAL_MIX = {
    "wiki_simple": 0.18,
    "books": 0.10,
    "children_books": 0.06,
    "fairytale_stories": 0.08,
    "storybooks": 0.08,
    "tinystories": 0.30,
    "chat": 0.20,
}


def token_file(data: Path, work: Path, source: str, tokenizer: Tokenizer) -> np.ndarray:
    """All training documents of a source as one uint16 array, each between <bos> and <eos>."""
    path = work / f"{source}.uint16"
    if not path.exists():
        bos, eos = id_of(tokenizer, "<bos>"), id_of(tokenizer, "<eos>")
        texts = chat_texts(data) if source == "chat" else documents(data, source, held_out=False)
        with open(path.with_suffix(".part"), "wb") as out:
            batch: list[str] = []
            for text in track(texts, description=f"tokens of {source}"):
                batch.append(text)
                if sum(map(len, batch)) > 4_000_000:
                    _write_documents(out, tokenizer, batch, bos, eos)
                    batch = []
            _write_documents(out, tokenizer, batch, bos, eos)
        path.with_suffix(".part").rename(path)
    return np.memmap(path, np.uint16, "r")


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a control token, which every tokenizer of ours has."""
    found = tokenizer.token_to_id(token)
    assert found is not None, f"the tokenizer has no {token}"
    return found


def _write_documents(out, tokenizer: Tokenizer, texts: list[str], bos: int, eos: int) -> None:
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        np.array([bos, *encoding.ids, eos], np.uint16).tofile(out)


def chat_texts(data: Path) -> Iterator[str]:
    """Conversations in Gemma's form."""
    for messages in conversations(data):
        yield "".join(
            f"<start_of_turn>{ROLES[message['role']]}\n{message['content'].strip()}<end_of_turn>\n"
            for message in messages
        )


class Mixture:
    """Batches drawn from token files by weight; the batch of a step is a function of the step alone.

    That a document ends is learned, that the next one begins is not.
    """

    def __init__(self, files: dict[str, np.ndarray], weights: dict[str, float], bos: int, num_rows: int) -> None:
        self.num_rows = num_rows
        self.files = [files[source] for source in weights]
        self.shares = np.array(list(weights.values())) / sum(weights.values())
        self.bos = bos

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, positions and labels, [rows, tokens] each; -100 is no label."""
        random = np.random.default_rng([SEED, step])
        rows = np.empty((self.num_rows, SEQUENCE_TOKENS + 1), np.int64)
        for row, source in zip(rows, random.choice(len(self.files), self.num_rows, p=self.shares), strict=True):
            tokens = self.files[source]
            start = random.integers(0, len(tokens) - SEQUENCE_TOKENS - 1)
            row[:] = tokens[start : start + SEQUENCE_TOKENS + 1]
        tokens = rows[:, :-1]
        index = np.broadcast_to(np.arange(SEQUENCE_TOKENS), tokens.shape)
        started = np.maximum.accumulate(np.where(tokens == self.bos, index, 0), axis=1)
        labels = np.where(rows[:, 1:] == self.bos, -100, rows[:, 1:])
        return torch.from_numpy(tokens.copy()), torch.from_numpy(index - started), torch.from_numpy(labels)


def learning_rate_factor(step: int, stable_steps: int, anneal_steps: int) -> float:
    """Warm-up, then constant, then down to zero as 1 - sqrt of the anneal's share done."""
    if step < stable_steps:
        return min(1.0, (step + 1) / WARM_UP_STEPS)
    return 1.0 - math.sqrt((step - stable_steps) / anneal_steps)


def optimizers(model: Griffin) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the layers, AdamW on the rest; no decay on RG-LRU, norms and biases."""
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if n.startswith("layers.") and p.ndim == 2 and "conv" not in n]
    gates = [p for n, p in named.items() if p.ndim == 3]
    chosen = {id(p) for p in matrices + gates}
    others = [p for n, p in named.items() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(gates + others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def held_out_bits_per_byte(model: Griffin, tokenizer: Tokenizer, texts: list[str], device: str) -> float:
    bos, bits, num_bytes = id_of(tokenizer, "<bos>"), 0.0, 0
    for text in texts:
        tokens = [bos, *tokenizer.encode(text, add_special_tokens=False).ids][: 4 * SEQUENCE_TOKENS]
        ids = torch.tensor([tokens], device=device)
        # Eager: every length would be compiled anew.
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16), torch.compiler.set_stance("force_eager"):
            logits, _ = model(ids[:, :-1])
        nats = torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum")
        bits += nats.item() / math.log(2)
        num_bytes += len(tokenizer.decode(ids[0, 1:].tolist()).encode())
    return bits / num_bytes


def save(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


def export(model: Griffin, work: Path, shard_bytes: int) -> None:
    """The model directory, weights in bfloat16, with tokenizer."""
    tensors = ((name, to_array(parameter.to(torch.bfloat16))) for name, parameter in model.named_parameters())
    write_checkpoint(
        model.config,
        tensors,
        work / "eyas",
        "griffinlm",
        tokenizer_directory=work / "tokenizer",
        shard_bytes=shard_bytes,
    )


def configuration(preset: str, width: int | None, num_layers: int | None) -> ModelConfig:
    """A preset, or a model of its kind in another size: heads of 64, an MLP of three widths."""
    found = ModelConfig.preset(preset)
    if width is not None:
        assert found.recurrent is not None
        assert found.attention is not None
        found = replace(
            found,
            width=width,
            mlp_hidden=3 * width,
            recurrent=replace(found.recurrent, width=width),
            attention=replace(found.attention, num_heads=width // found.attention.head_size),
            embedding_scale=bfloat16_sqrt(width),
        )
    return found if num_layers is None else replace(found, num_layers=num_layers)


def with_architecture(found: ModelConfig, architecture: str) -> ModelConfig:
    """The same with other blocks; the width of its MLP makes up for their parameters, to a multiple of 8.

    The transformer's attention is global.
    """
    if architecture == "griffin":
        return found
    assert found.attention is not None
    config = replace(
        found,
        block_pattern=ARCHITECTURES[architecture],
        recurrent=found.recurrent if architecture == "hawk" else None,
        attention=replace(found.attention, window_tokens=None) if architecture == "transformer" else None,
    )
    sizes = (replace(config, mlp_hidden=mlp_hidden) for mlp_hidden in range(8, 2 * found.mlp_hidden, 8))
    return min(sizes, key=lambda size: abs(size.num_parameters - found.num_parameters))


def arguments_of_run() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--preset", default="eyas")
    parser.add_argument("--width", type=int, help="instead of the preset's; a multiple of 64")
    parser.add_argument("--num-layers", type=int, help="instead of the preset's")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="griffin")
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop with a checkpoint after so long")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="most of a file of weights")
    parser.add_argument("--stable-steps", type=int, required=True)
    parser.add_argument("--anneal-steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="compile the blocks, for --device cuda")
    arguments = parser.parse_args()
    if arguments.compile and arguments.device == "cpu":
        parser.error("--compile is for --device cuda; blocks are fast on a CPU as they are, and take long to compile")
    return arguments


def held_out_texts(data: Path, work: Path) -> dict[str, list[str]]:
    """Some texts that are scored during training; kept in WORK."""
    path = work / "held_out.json"
    if not path.exists():
        stories = list(documents(data, "tinystories", held_out=True))[:50]
        articles = [text[:4000] for text in documents(data, "wiki_simple", held_out=True)][:20]
        path.write_text(json.dumps({"tinystories": stories, "wiki_simple": articles}), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def initial_model(config: ModelConfig, device: str) -> Griffin:
    model = Griffin(config).to(device)
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, values in initial_tensors(config, SEED):
            named[name].copy_(torch.from_numpy(values))
    return model


def main() -> None:
    arguments = arguments_of_run()
    device, work = arguments.device, arguments.work
    began, end = time.monotonic(), time.monotonic() + 60 * arguments.minutes
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    bos = id_of(tokenizer, "<bos>")
    files = {s: token_file(arguments.data, work, s, tokenizer) for s in (*PRETRAIN_SOURCES, "chat")}
    stable, anneal = (Mixture(files, mix, bos, arguments.batch_rows) for mix in (STABLE_MIX, ANNEAL_MIX))
    held_out = held_out_texts(arguments.data, work)
    config = configuration(arguments.preset, arguments.width, arguments.num_layers)
    model = initial_model(with_architecture(config, arguments.architecture), device)
    steppers = optimizers(model)
    rates = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    first, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(kept["model"])
        for stepper, content in zip(steppers, kept["optimizers"], strict=True):
            stepper.load_state_dict(content)
        first = kept["step"]
    objective = Objective(model, LOSS_CHUNK_TOKENS)
    if arguments.compile:
        for layer in model.layers:
            layer.compile()

    total, losses = arguments.stable_steps + arguments.anneal_steps, []
    for step in track(range(first, total), description="training"):
        factor = learning_rate_factor(step, arguments.stable_steps, arguments.anneal_steps)
        for stepper, values in zip(steppers, rates, strict=True):
            for group, value in zip(stepper.param_groups, values, strict=True):
                group["lr"] = value * factor
        mixture = stable if step < arguments.stable_steps else anneal
        tokens, positions, labels = (tensor.to(device) for tensor in mixture.batch(step))
        with torch.autocast(device, torch.bfloat16):
            loss = objective(tokens, positions, labels, (labels >= 0).sum())["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        losses.append(loss.detach())
        done = step + 1
        if done % 20 == 0:
            mean = torch.stack(losses).mean().item()
            entry = {"step": done, "loss": mean, "seconds": round(time.monotonic() - began, 1)}
            losses = []
            if done % 500 == 0:
                entry |= {s: held_out_bits_per_byte(model, tokenizer, t, device) for s, t in held_out.items()}
            with open(work / "log.jsonl", "a", encoding="utf-8") as log:
                print(json.dumps(entry), file=log)
        is_over = time.monotonic() > end
        if done % arguments.save_every == 0 or done == total or is_over:
            content = [stepper.state_dict() for stepper in steppers]
            save(checkpoint, {"model": model.state_dict(), "optimizers": content, "step": done})
        if is_over and done < total:
            print(f"stopped after {done} of {total} steps; the same command goes on")
            return
    export(model, work, arguments.shard_bytes)


if __name__ == "__main__":
    main()
