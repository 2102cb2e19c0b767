"""Trains eyas' tokenizer: byte-level BPE with Gemma's turn tokens and chat template.

python recipes/train_tokenizer.py DATA OUT      # DATA holds pretrain/ and sft/, OUT becomes a tokenizer directory
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from corpus import PRETRAIN_SOURCES, conversations, documents
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from griffinlm.text.chat import GEMMA_TEMPLATE

CONTROL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
"""Ids 0 to 5, in this order."""

SAMPLE_MEGABYTES = {
    "wiki_simple": 12,
    "books": 6,
    "children_books": 6,
    "tinystories": 4,
    "fairytale_stories": 3,
    "storybooks": 1,
}
"""How much of each source the merges are learned from: simple modern English weighs more than its share of bytes."""

CHAT_MEGABYTES = 4


def sample(data: Path) -> Iterator[str]:
    """Training documents up to the bytes that each source may give."""
    for source in PRETRAIN_SOURCES:
        yield from _up_to(documents(data, source, held_out=False), SAMPLE_MEGABYTES[source])
    spoken = ("\n".join(message["content"] for message in messages) for messages in conversations(data))
    yield from _up_to(spoken, CHAT_MEGABYTES)


def _up_to(texts: Iterator[str], megabytes: int) -> Iterator[str]:
    left = megabytes * 1_000_000
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def write_tokenizer(texts: Iterable[str], out: Path, vocab_size: int) -> None:
    """Learns merges from texts and writes a tokenizer directory."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        # Without it transformers takes Gemma's own class for a converted model and cuts text in another way.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "chat_template": GEMMA_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab-size", type=int, default=8192)
    arguments = parser.parse_args()
    write_tokenizer(sample(arguments.data), arguments.out, arguments.vocab_size)


if __name__ == "__main__":
    main()
