"""griffin info: what a model is made of, and what it remembers in how many bytes."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json, print_table, readable_bytes

if TYPE_CHECKING:
    from griffinlm.checkpoint import Checkpoint, Quantization
    from griffinlm.checkpoint.exits import Exits
    from griffinlm.config import ModelConfig

CONTEXT_LENGTHS = (2_048, 8_192, 32_768, 131_072)
TRANSFORMER = "gemma-2b"
"""The preset that states are compared with."""
LEAST_COMPARED_PARAMETERS = 500_000_000
"""Of a model beside which its cache says something."""
STATE_TYPES = {
    "float32": ("float32", "float32"),
    "float16 window": ("float16", "float32"),
    "int8 window": ("int8", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
}
"""Of window and activations, by name: what engines keep a state in. The recurrence is float32 in all."""

BITS_OF_A_WEIGHT = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
BLOCK_NAMES = {"recurrent": "recurrent", "local_attention": "local attention", "global_attention": "global attention"}


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|PRESET", help="As in `griffin generate --model`, or a preset.")
    ],
    as_json: AsJson = False,
) -> None:
    """Tell how large a model or preset is, and its state.

    A state has the bytes that it takes in float32, as models run where nothing else is asked for; with a smaller
    window; and in bfloat16, where it stands beside the key and value cache of Gemma-2B if the model is of such a size.
    Weights are counted without the scales of quantization.
    """
    config, checkpoint = _open(model)
    facts: dict[str, Any] = {"model": model, **_facts(config)}
    if checkpoint is not None:
        facts["checkpoint"] = _checkpoint_facts(checkpoint)
    if as_json:
        print_json(facts)
        return
    print_table(None, _rows(facts))
    if config.num_parameters < LEAST_COMPARED_PARAMETERS:
        return
    print()
    name = "cache" if config.needs_capacity else "state"
    print_table(["tokens", f"{name} of {model}", "cache of Gemma-2B", "ratio"], _context_rows(facts["contexts"]))


def _open(name: str) -> tuple["ModelConfig", "Checkpoint | None"]:
    """A model that is here, or else a preset of that name."""
    from griffinlm.checkpoint import open_checkpoint
    from griffinlm.loading import LoadError, find_model
    from griffinlm.presets import PRESETS

    try:
        path = find_model(name)
    except LoadError as error:
        if name not in PRESETS:
            hint = "; or ".join(filter(None, [error.hint, f"a preset: {', '.join(PRESETS)}"]))
            raise LoadError(str(error), hint) from error
        return PRESETS[name], None
    checkpoint = open_checkpoint(path)
    return checkpoint.config, checkpoint


def _facts(config: "ModelConfig") -> dict[str, Any]:
    from griffinlm.presets import PRESETS

    total = config.num_parameters
    contexts = []
    for num_tokens in CONTEXT_LENGTHS:
        own, transformer = (half_precision_bytes(one, num_tokens) for one in (config, PRESETS[TRANSFORMER]))
        contexts.append(
            {"tokens": num_tokens, "state_bytes": own, "gemma_2b_bytes": transformer, "ratio": transformer / own}
        )
    return {
        "parameters": {"total": total, "not_embedding": total - config.num_embedding_parameters},
        "layers": dict(Counter(config.block_kinds)),
        "recursion": recursion_facts(config),
        "state_bytes": None if config.needs_capacity else state_sizes(config),
        "contexts": contexts,
        "weight_bytes": {name: total * bits // 8 for name, bits in BITS_OF_A_WEIGHT.items()},
        "config": config.to_dict(),
    }


def recursion_facts(config: "ModelConfig") -> dict[str, Any] | None:
    """How the layers loop; None where they do not."""
    if config.recursion is None:
        return None
    return {
        "loops": config.recursion.num_loops,
        "shared_layers": config.num_shared_layers,
        "own_layers": config.num_layers - config.num_looped_layers,
        "tie": config.recursion.tie,
        "rank": config.recursion.rank,
        "skips": config.recursion.skips,
    }


def state_sizes(config: "ModelConfig") -> dict[str, int]:
    """Bytes of a sequence's state of fixed size in each of `STATE_TYPES`."""
    from griffinlm.state import state_bytes

    return {name: state_bytes(config, None, *types) for name, types in STATE_TYPES.items()}


def half_precision_bytes(config: "ModelConfig", num_tokens: int) -> int:
    """Bytes of one sequence's state in 16 bit; with global attention, of one that has room for `num_tokens`."""
    from griffinlm.state import state_bytes

    return state_bytes(config, num_tokens if config.needs_capacity else None, "bfloat16", "bfloat16")


def _checkpoint_facts(checkpoint: "Checkpoint") -> dict[str, Any]:
    from griffinlm.checkpoint.exits import read_exits
    from griffinlm.text import Tokenizer

    directory = checkpoint.tokenizer_directory
    tokenizer = None if directory is None else Tokenizer.from_directory(directory)
    exits = read_exits(checkpoint.path, checkpoint.config)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "types": list(checkpoint.types),
        "bytes": checkpoint.num_bytes,
        "quantization": None if checkpoint.quantization is None else _quantization_facts(checkpoint.quantization),
        "exits": None if exits is None else exits_facts(exits),
        "digest": checkpoint.digest(),
        "tokenizer": None if tokenizer is None else {"vocab_size": tokenizer.vocab_size, "digest": tokenizer.digest},
    }


def exits_facts(exits: "Exits") -> dict[str, Any]:
    """What --json tells of a model's exits."""
    loops = zip(exits.thresholds, exits.shares, strict=True)
    return {
        "quality": exits.quality,
        "tokens": exits.num_tokens,
        # None is a loop that no token leaves.
        "loops": [{"threshold": t if t <= 1 else None, "share": share} for t, share in loops],
    }


def _quantization_facts(quantization: "Quantization") -> dict[str, Any]:
    return {
        "recipe": quantization.recipe.to_dict(),
        "method": quantization.method,
        "source_digest": quantization.source_digest,
    }


def _rows(facts: dict[str, Any]) -> list[Sequence[str]]:
    parameters, sizes = facts["parameters"], facts["state_bytes"]
    rows = [
        ("model", facts["model"]),
        ("parameters", f"{parameters['total']:,} ({parameters['not_embedding']:,} without the embedding)"),
        ("layers", ", ".join(f"{count} {BLOCK_NAMES[kind]}" for kind, count in facts["layers"].items())),
        *(_state_rows(sizes) if sizes else [("state", "grows with the sequence")]),
        ("weights", ", ".join(f"{readable_bytes(count)} {name}" for name, count in facts["weight_bytes"].items())),
    ]
    if facts["recursion"]:
        rows.insert(3, ("recursion", recursion_row(facts["recursion"])))
    if "checkpoint" in facts:
        found = facts["checkpoint"]
        tokenizer = found["tokenizer"]
        if found["exits"]:
            rows.insert(4, ("exits", _exits_row(found["exits"])))
        rows += [
            ("path", found["path"]),
            ("format", f"{found['format']}, {', '.join(found['types'])}, {found['bytes']:,} bytes"),
            ("tokenizer", "none" if tokenizer is None else f"{tokenizer['vocab_size']:,} tokens"),
            ("digest", found["digest"]),
        ]
    return rows


def _state_rows(sizes: dict[str, int]) -> list[tuple[str, str]]:
    (name, size), *others = sizes.items()
    smaller = ", ".join(f"{size:,} {name}" for name, size in others)
    return [("state", f"{size:,} bytes a sequence in {name}, whatever its length"), ("smaller", smaller)]


def recursion_row(found: dict[str, Any]) -> str:
    """What `recursion_facts` found, in a line."""
    tied = "matrices" if found["tie"] == "matrices" else "all parameters"
    skipping = ", which skip a token that has left" if found["skips"] else ""
    return (
        f"{found['loops']} loops through {found['shared_layers']} layers that share {tied}, rank {found['rank']}"
        f"{skipping}; {found['own_layers']} layers of their own"
    )


def _exits_row(found: dict[str, Any]) -> str:
    loops = [
        f"behind loop {number} "
        + ("none leaves" if loop["threshold"] is None else f"from {loop['threshold']:.4f} on ({loop['share']:.1%})")
        for number, loop in enumerate(found["loops"], 1)
    ]
    return f"{', '.join(loops)}, {found['quality']:.0%} right, by {found['tokens']:,} tokens"


def _context_rows(contexts: list[dict[str, Any]]) -> list[Sequence[str]]:
    return [
        (f"{c['tokens']:,}", f"{c['state_bytes']:,}", f"{c['gemma_2b_bytes']:,}", f"{c['ratio']:.1f}x")
        for c in contexts
    ]
