"""Measures a recursive model at each of its exits beside the model that it was made from, and writes its card."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from model_card import ORIGINS, digest

import griffinlm
from griffinlm.checkpoint.exits import Exits, read_exits
from griffinlm.model.engine import TorchEngine
from griffinlm.model.exits import ProbeRule, recorded_exits
from griffinlm.model.passage import read_with_skips

PIECE_TOKENS, DOCUMENTS = 1024, 40
"""Of a source are read so many documents, of each so many tokens at most."""

Losses = dict[str, torch.Tensor]
"""By way of reading, nats of every token but the first."""


def losses(model: griffinlm.LanguageModel, ids: Sequence[int], exits: Exits | None) -> tuple[Losses, int, int]:
    """What a text costs at full depth, and of a model with exits behind the first loop alone and with tokens leaving.

    Returns:
        The nats; of how many tokens the first loop's best next token is that of full depth; how many left.
    """
    assert isinstance(model.engine, TorchEngine)
    griffin, tokens = model.engine.model, torch.tensor([ids])
    with torch.inference_mode():
        if exits is None:
            logits, _ = griffin(tokens)
            assert logits is not None
            return {"full depth": nats(logits, tokens)}, 0, 0
        rule, positions = ProbeRule(griffin, exits), torch.arange(len(ids))[None]
        x = griffin.embedding(tokens) * griffin.config.embedding_scale
        layers = list(griffin.layers)
        full = read_with_skips(griffin.config, layers, x, positions, lambda x, _: torch.zeros(x.shape[:2]) > 0)

        def leaves(x: torch.Tensor, loop: int) -> torch.Tensor:
            flat = x.flatten(0, 1)
            return rule(flat, torch.full((len(flat),), loop)).view(x.shape[:2])

        skipping = read_with_skips(griffin.config, layers, x, positions, leaves)
        found = {
            "full depth": nats(griffin.logits(full.x), tokens),
            "behind the first loop": nats(griffin.logits(full.behind[0]), tokens),
            "with tokens leaving": nats(griffin.logits(skipping.x), tokens),
        }
        is_right = recorded_exits(griffin, tokens).is_right
        return found, int(is_right[:, 0].sum()), int((skipping.depth < len(full.behind)).sum())


def nats(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """-log p of every token but the first."""
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:], reduction="none")


def measured(model: griffinlm.LanguageModel, exits: Exits | None, texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Bits per byte by source and way of reading; over all, the shares of equal best tokens and of those that left."""
    found, num_tokens, num_right, num_left = {}, 0, 0, 0
    for source, rows in texts.items():
        sums, num_bytes = {}, 0
        for text in rows:
            ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)[: PIECE_TOKENS - 1]]
            own, right, left = losses(model, ids, exits)
            for way, values in own.items():
                sums[way] = sums.get(way, 0.0) + values.sum().item()
            num_bytes += len(model.tokenizer.decode(ids).encode("utf-8"))
            num_tokens, num_right, num_left = num_tokens + len(ids), num_right + right, num_left + left
        found[source] = {way: round(value / math.log(2) / num_bytes, 4) for way, value in sums.items()}
    shares = {"equal_best": round(num_right / num_tokens, 4), "left": round(num_left / num_tokens, 4)}
    return {"bits_per_byte": found, "tokens": num_tokens, **({} if exits is None else shares)}


def write_card(
    directory: Path, models: Mapping[str, Path], held_out: Mapping[str, list[str]], tokens_seen: int, command: str
) -> None:
    """figures.json and README.md of a recursive model; `models` are the one that it was made from, and it."""
    texts = {source: rows[::2][:DOCUMENTS] for source, rows in held_out.items()}
    figures: dict[str, Any] = {"texts": {s: {"documents": len(t), "sha256": digest(t)} for s, t in texts.items()}}
    for name, path in models.items():
        model = griffinlm.load(path, engine="torch")
        figures[name] = measured(model, read_exits(path, model.config), texts)
    model = griffinlm.load(directory)
    (directory / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(card(model, models, figures, tokens_seen, command), encoding="utf-8")


def card(
    model: griffinlm.LanguageModel, models: Mapping[str, Path], figures: dict[str, Any], tokens_seen: int, command: str
) -> str:
    """The model card."""
    base, name = models
    exits = read_exits(models[name], model.config)
    assert exits is not None
    recursion = model.config.recursion
    assert recursion is not None
    ways = ("full depth", "behind the first loop", "with tokens leaving")
    lines = []
    for source, own in figures[name]["bits_per_byte"].items():
        cells = [figures[base]["bits_per_byte"][source]["full depth"], *(own[way] for way in ways)]
        lines.append(
            f"| {source} | {figures['texts'][source]['documents']} | " + " | ".join(map("{:.3f}".format, cells))
        )
    table = " |\n".join(lines)
    origins = "\n".join(f"- **{source}**: {origin}." for source, origin in ORIGINS.items())
    return f"""# {name}

{base} with half of its layers: a pass goes {recursion.num_loops} times through {model.config.num_shared_layers} layers, whose matrices the loops share, each with
terms of rank {recursion.rank} of its own. Made to try what recursive models can do: tokens may leave behind the first loop, which
deeper loops then never read, and the first loop can guess tokens that the whole model checks. English only; it knows
nothing, and is for trying the software.

| | |
| --- | --- |
| parameters | {model.config.num_parameters:,} ({model.config.num_parameters - model.config.num_embedding_parameters:,} without embedding), int8 |
| state | {model.new_state().nbytes:,} bytes a conversation in float32, at any length |
| vocabulary | that of {base} |
| made by | `griffin recursive`: mean of the layers, differences by SVD; then {tokens_seen:,} tokens with {base} as teacher and a loss behind each loop: {command}, {time.strftime("%Y-%m-%d")} |
| exits | `exits.safetensors`: a head of {exits.weights.size} hidden numbers behind the first loop; threshold {exits.thresholds[0]:.3f}, found for {exits.quality:.0%} equal best tokens |

## Held-out bits per byte

| source | documents | {base} | {" | ".join(ways)} |
| --- | ---: | ---: | ---: | ---: | ---: |
{table} |

Up to {PIECE_TOKENS:,} tokens of every second held-out document; the small head and its threshold were found on the others.
The first loop's best next token is that of full depth for {figures[name]["equal_best"]:.1%} of the tokens; by the threshold {figures[name]["left"]:.1%}
of them leave behind the first loop. Digests of the texts stand in `figures.json`.

## Data

{origins}
- Also conversations, as in the card of {base}, which says more about licences. The weights are released under Apache-2.0.
"""
