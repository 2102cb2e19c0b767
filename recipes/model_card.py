"""Measures a trained model on the held-out text and writes its card: figures, data, licences, ten uncut samples.

python recipes/model_card.py DATA MODEL --tokens-seen N
"""

import argparse
import hashlib
import json
import lzma
import time
from collections.abc import Sequence
from pathlib import Path

from corpus import PRETRAIN_SOURCES, documents

import griffinlm
from griffinlm.evaluate.bits_per_byte import evaluate_documents

PROMPTS = (
    "Once upon a time",
    "One day, a little girl named Lily",
    "The old man lived in a small house by the sea.",
    "Tom and his dog went to the park.",
    "In the deep forest there was",
    "The history of the city",
    "It was a cold winter evening, and",
    "Water is",
    "The queen looked at the young prince and said,",
    "Anna wanted to learn how to swim.",
)
SAMPLE_TOKENS = 200
TEMPERATURE, TOP_P = 0.8, 0.95
NUM_SEEDS = 5

ORIGINS = {
    "wiki_simple": "English Wikipedia of May 2015 (plain-prose articles), CC BY-SA 3.0, authors at https://en.wikipedia.org/?curid=<id>; from github jason-feng/wikiVisual 1c0fac92, text/A[A-D]",
    "books": "novels of 1726 to 1928, public domain; from github birmingham-ccr/corpora ae1e53df (CLiC) and computationalstylistics/100_english_novels 143e6018",
    "children_books": "children's books before 1931, public domain; from github birmingham-ccr/corpora ae1e53df (CLiC, ChiLit)",
    "fairytale_stories": "FairytaleQA, tales in the public domain, data set Apache-2.0; github uci-soe/FairytaleQAData a24ddc17",
    "storybooks": "StoryWeaver (Pratham Books) and African Storybook (Saide), stories under CC BY 3.0 or 4.0; github global-asp/pb-source 9ea530df and global-asp/asp-source 99e02236",
    "tinystories": "TinyStories, Ronen Eldan and Yuanzhi Li, CDLA-Sharing-1.0, https://huggingface.co/datasets/roneneldan/TinyStories; beginnings of its training files from github gusjengis/toy-RNN e4c7ff8b and mines-opt-ml/decoding-gpt 79274e31, of its first validation file, which is held out, from github yuninxia/moe-routing-bench bb9bb0bd; cut into stories, quotation marks repaired",
}


def held_out(data: Path) -> dict[str, list[str]]:
    """Held-out texts by source."""
    return {source: list(documents(data, source, held_out=True)) for source in PRETRAIN_SOURCES}


def digest(texts: Sequence[str]) -> str:
    """sha256 of the texts in UTF-8, each followed by a newline."""
    total = hashlib.sha256()
    for text in texts:
        total.update(text.encode() + b"\n")
    return total.hexdigest()


def repeated_fourgrams(text: str) -> float:
    """Share of a text's four-word runs that have stood in it before."""
    words = text.split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def samples(model: griffinlm.LanguageModel, seed: int) -> list[str]:
    """A text from every prompt, the prompt in front."""
    answers = model.generate(
        PROMPTS,
        max_tokens=SAMPLE_TOKENS,
        min_tokens=SAMPLE_TOKENS,
        seed=seed,
        temperature=TEMPERATURE,
        top_p=TOP_P,
    )
    return [prompt + answer.text for prompt, answer in zip(PROMPTS, answers, strict=True)]


def figures(model: griffinlm.LanguageModel, texts: dict[str, list[str]]) -> dict:
    sources = {}
    for source, rows in texts.items():
        result = evaluate_documents(model, rows, len(rows))
        sources[source] = {
            "bits_per_byte": round(result.bits_per_byte, 4),
            "documents": len(rows),
            "bytes": result.num_bytes,
            "tokens": result.num_tokens,
            "sha256": digest(rows),
        }
    mix = "\n".join(text for rows in texts.values() for text in rows).encode()
    packed = lzma.compress(mix, preset=9 | lzma.PRESET_EXTREME)
    bits = sum(values["bits_per_byte"] * values["bytes"] for values in sources.values())
    num_bytes = sum(values["bytes"] for values in sources.values())
    written = [text for seed in range(NUM_SEEDS) for text in samples(model, seed)]
    return {
        "sources": sources,
        "mix_bits_per_byte": round(bits / num_bytes, 4),
        "mix_xz_bits_per_byte": round(8 * len(packed) / len(mix), 4),
        "repeated_fourgrams": round(sum(map(repeated_fourgrams, written)) / len(written), 4),
        "samples": written[: len(PROMPTS)],
    }


def card(model: griffinlm.LanguageModel, found: dict, tokens_seen: int) -> str:
    config = model.config
    saved = 1 - found["mix_bits_per_byte"] / found["mix_xz_bits_per_byte"]
    table = "\n".join(
        f"| {source} | {v['bits_per_byte']:.3f} | {v['documents']} | {v['bytes']:,} | `{v['sha256'][:16]}` |"
        for source, v in found["sources"].items()
    )
    origins = "\n".join(f"- **{source}**: {origin}." for source, origin in ORIGINS.items())
    listed = "\n\n".join(f"{i}. {_quoted(text)}" for i, text in enumerate(found["samples"], 1))
    return f"""# eyas

A young hawk: a small Griffin language model (recurrence and local attention) that comes with griffinlm, so that
everything can be tried without a download. English only. It was trained for three hours on one or two cores of a CPU:
it writes simple stories that hold together for some sentences, and knows nothing. Not for any use but trying the
software.

| | |
| --- | --- |
| parameters | {config.num_parameters:,} ({config.num_parameters - config.num_embedding_parameters:,} without embedding), bfloat16 |
| blocks | {", ".join(config.block_kinds)} |
| width, recurrent width, window | {config.width}, {config.recurrent.width if config.recurrent else 0}, {config.attention.window_tokens if config.attention else 0} tokens |
| state | {model.new_state().nbytes:,} bytes a conversation in float32, at any length |
| vocabulary | {config.vocab_size:,}, byte-level BPE with Gemma's turn tokens and chat template |
| tokens seen | {tokens_seen:,} |
| trained by | `recipes/train_tokenizer.py`, then `recipes/train_eyas.py DATA WORK --stable-steps 2000 --anneal-steps 750`; card and figures by `recipes/model_card.py`, {time.strftime("%Y-%m-%d")} |

## Held-out bits per byte

| source | bits per byte | documents | bytes | sha256 of the texts |
| --- | ---: | ---: | ---: | --- |
{table}
| all | {found["mix_bits_per_byte"]:.3f} | | | |

`xz -9e` needs {found["mix_xz_bits_per_byte"]:.3f} bits per byte on the same text in one piece; the model needs {saved:.0%} less.
Held out are TinyStories' validation rows and, of the other sources, the documents whose text has a sha256 that begins
below a share of its range: one hundredth, and 3%, 6% and 4% for children's books, fairy tales and storybooks, of which
there are few (`recipes/corpus.py`). The digest is of the texts in the order of the files, each followed by a newline; the
whole digests stand in `figures.json`. Weights were evaluated in float32.

Conversations that share a run of 13 words with a held-out document, TinyStories' stock phrases aside, were left out of
training. Of the documents themselves, one of the {found["sources"]["storybooks"]["documents"]} storybooks shares a third of its runs with others of its
series, and Wikipedia's articles quote each other (5% of them noticeably); the tokenizer was made from all sources and saw
some of the storybooks and tales.

## Data

{origins}
- For the last part of training also conversations: TinyStories on request, FairytaleQA, GSM8K (MIT, Copyright (c) 2021
  OpenAI), Schema-Guided Dialogue (Google, CC BY-SA 4.0), Topical-Chat (Amazon, CDLA-Sharing-1.0), dolly_hhrlhf (CC BY-SA
  3.0), and questions made from Wikipedia's first sentences (CC BY-SA 3.0).

The texts were shortened, cleaned and mixed. The weights are released under Apache-2.0; they were trained on text under
the licences above, some of them share-alike, and whether weights are an adaptation of such text is not settled.

## Ten samples, uncut

{SAMPLE_TOKENS} tokens each, temperature {TEMPERATURE}, top-p {TOP_P}, seed 0, the end token held back. Share of
repeated four-word runs in a sample, mean over {NUM_SEEDS} seeds of these prompts: {found["repeated_fourgrams"]:.1%}.

{listed}
"""


def _quoted(text: str) -> str:
    return text.replace("\n", "\n   ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens-seen", type=int, required=True)
    arguments = parser.parse_args()
    model = griffinlm.load(arguments.model)
    found = figures(model, held_out(arguments.data))
    (arguments.model / "README.md").write_text(card(model, found, arguments.tokens_seen), encoding="utf-8")
    figures_file = arguments.model / "figures.json"
    figures_file.write_text(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=2) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "samples"}, indent=2))


if __name__ == "__main__":
    main()
