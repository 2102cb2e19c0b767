"""Writes the card of a tuned eyas from the record of its checks: figures, data, licences, uncut answers side by side.

python recipes/eyas_it_card.py RECORD MODEL --shown rlhf
"""

import argparse
import json
from pathlib import Path

from eyas_prompts import side_by_side

import griffinlm

FIGURES = {
    "stories": ("all_words_used", "name_occurs", "at_most_obeyed", "length_obeyed", "all_obeyed"),
    "sentences": ("all_words_used", "length_obeyed"),
    "tales": ("in_passage", "equal"),
    "names": ("in_passage", "equal"),
    "articles": ("in_passage", "equal"),
    "translation": ("equal",),
}
MEANINGS = {
    "all_words_used": "every asked word is used, in just that form",
    "name_occurs": "the asked name occurs",
    "at_most_obeyed": "no more sentences than asked for",
    "length_obeyed": "just as many sentences as asked for",
    "all_obeyed": "all that was asked at once",
    "in_passage": "the answer stands in the passage",
    "equal": "the answer is the reference",
}

DATA = """- **TinyStories** (stories on request, names asked of their beginnings): Ronen Eldan and Yuanzhi Li,
  CDLA-Sharing-1.0.
- **FairytaleQA** (questions about tales): data set Apache-2.0, tales in the public domain.
- **Wikipedia** of May 2015 (questions made by rule from first sentences): CC BY-SA 3.0, its authors at
  `https://en.wikipedia.org/?curid=<id>`.
- **Schema-Guided Dialogue** (task dialogues): Google, CC BY-SA 4.0.
- **Topical-Chat**: Amazon, CDLA-Sharing-1.0. **dolly_hhrlhf**: CC BY-SA 3.0. **StoryWeaver** (Pratham Books) and
  **African Storybook** (Saide): CC BY 3.0 or 4.0.
- **Tatoeba** (English to French): https://tatoeba.org, CC BY 2.0 FR, its contributors.
- **HH-RLHF** (helpful replies that people compared, for the reward model): Copyright (c) 2022 Anthropic, MIT."""


def percent(figure: dict) -> str:
    if not figure["num"]:
        return ""
    return f"{figure['share']:.1%} ({figure['low']:.0%} to {figure['high']:.0%}) of {figure['num']}"


def table(models: dict[str, dict]) -> str:
    """All figures, a column a model."""
    lines = [f"| task | figure | {' | '.join(models)} |", f"| --- | --- |{' --- |' * len(models)}"]

    def add(task: str, meaning: str, values: list[str]) -> None:
        lines.append(f"| {task} | {meaning} | {' | '.join(values)} |")

    tasks = [model["tasks"] for model in models.values()]
    for task, names in FIGURES.items():
        for name in names:
            add(task, MEANINGS[name], [percent(of_model[task][name]) for of_model in tasks])
    found = [of_model["translation"] for of_model in tasks]
    copied = f"chrF; copying the English has {found[-1]['chrf_of_copying']:.1f}"
    add("translation", copied, [f"{one['chrf']:.1f} (±{one['chrf_interval']:.1f})" for one in found])
    for task in tasks[0]:
        add(task, "bits per byte of the answers", [f"{of_model[task]['bits_per_byte']:.3f}" for of_model in tasks])
    for source in next(iter(models.values())).get("text", {}):
        values = [f"{model['text'][source]['bits_per_byte']:.3f}" for model in models.values()]
        add(f"{source}, plain text", "bits per byte", values)
    return "\n".join(lines)


def card(record: dict, name: str, shown: str, model: griffinlm.LanguageModel) -> str:
    config, models = model.config, record["models"]
    in_layers = config.num_parameters - config.num_embedding_parameters
    stages = {
        "sft": "`recipes/eyas_sft_data.py`, then `griffin train sft --config recipes/eyas_sft.toml`",
        "rlhf": "`recipes/eyas_sft_data.py`, `griffin train sft --config recipes/eyas_sft.toml`, then REINFORCE on a "
        "reward model and a rule: `recipes/eyas_preferences.py`, `griffin train reward --config "
        "recipes/eyas_reward.toml`, `griffin train rloo --config recipes/eyas_rloo.toml`",
    }
    return f"""# {name}

The small Griffin `eyas`, tuned to answer: stories on request, questions about a passage, talk about everyday tasks,
English to French. It comes with griffinlm, so that everything can be tried without a download. It was made on two cores
of a CPU: its stories hold together for some sentences, its French is a beginner's, and it knows nothing. Not for any
use but trying the software.

| | |
| --- | --- |
| parameters | {config.num_parameters:,} ({in_layers:,} without embedding), int8 |
| begins from | `eyas`, whose card tells what it was pretrained on |
| tuned by | {stages[shown]} |
| state | {model.new_state().nbytes:,} bytes a conversation in float32, at any length |
| vocabulary | {config.vocab_size:,}, byte-level BPE with Gemma's turn tokens and chat template |

## What it does with requests that it has not seen

Greedy answers; shares have their 95% intervals (Wilson's). Held out are requests made of documents that neither
pretraining nor tuning has seen: TinyStories' validation rows, and Wikipedia articles chosen by a hash of their text;
of tales, dialogues and sentences those that a hash of the passage, the first turn or the sentence chooses, of which
tuning has seen none. Pretraining has read most of these tales, and a tenth of the questions and dialogues, once.
`recipes/text_rules.py` has the rules.

    {record["command"]}

{table(models)}

## Data

{DATA}

The texts were shortened, cleaned and mixed, and requests were made from them by rule. The weights are released under
Apache-2.0; they were trained on text under the licences above, some of them share-alike, and whether weights are an
adaptation of such text is not settled.

## Fixed requests, uncut answers

Greedy. The tables' names: {", ".join(f"*{one}*" for one in models)}; this model is *{shown}*.

{side_by_side({one: model["prompts"] for one, model in models.items()})}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shown", required=True, help="which model of the record this one is")
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text(encoding="utf-8"))
    if arguments.shown not in record["models"]:
        parser.error(f"{arguments.record} has {', '.join(record['models'])}, not {arguments.shown}")
    text = card(record, arguments.model.resolve().name, arguments.shown, griffinlm.load(arguments.model))
    (arguments.model / "README.md").write_text(text, encoding="utf-8")
    figures = {name: model["tasks"] | {"text": model.get("text", {})} for name, model in record["models"].items()}
    (arguments.model / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
