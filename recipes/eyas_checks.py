r"""Checks what tuned models do with held-out requests, side by side: exact rules, chrF, bits per byte of the answers.

    python recipes/eyas_checks.py HELD_OUT base=eyas sft=work/eyas_sft/model --data DATA \
        --log work/eyas_sft/log.jsonl --out benchmarks/results

HELD_OUT is the folder of that name that recipes/eyas_sft_data.py writes; with DATA held-out plain text is scored too.
Answers are greedy, so that the same weights give the same figures. A share has its 95% interval (Wilson's). Each model
is written down when its figures are there; those that the last record has already, on as many requests, stay in it.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import sacrebleu
from corpus import documents
from eyas_prompts import answers_to_prompts
from rich.progress import track
from text_rules import missing_words, normalised, sentences, stands_in

import griffinlm
from griffinlm.evaluate.bits_per_byte import evaluate_documents
from griffinlm.evaluate.record import header, write
from griffinlm.train.data.conversations import encode_conversation
from griffinlm.train.data.token_file import IGNORED

NAME = "eyas_checks"
ROWS_AT_ONCE = 16
MAX_TOKENS = {"stories": 300, "sentences": 60, "tales": 60, "names": 20, "articles": 60, "translation": 60}
TEXT_SOURCES, MOST_CHARACTERS, MOST_DOCUMENTS = ("tinystories", "wiki_simple", "books"), 4000, 100
Z = 1.959964


def interval(num_right: int, num_all: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    share, square = num_right / num_all, Z * Z / num_all
    centre = (share + square / 2) / (1 + square)
    half = Z * math.sqrt(share * (1 - share) / num_all + square / (4 * num_all)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def share(found: Sequence[bool]) -> dict:
    """How many of some checks passed."""
    if not found:
        return {"num": 0}
    low, high = interval(sum(found), len(found))
    return {"share": round(sum(found) / len(found), 4), "low": round(low, 4), "high": round(high, 4), "num": len(found)}


def read_requests(held_out: Path) -> dict[str, list[dict]]:
    """Requests by task."""
    files = sorted(held_out.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"{held_out} holds no requests; recipes/eyas_sft_data.py writes them")
    return {file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files}


def answers(model: griffinlm.LanguageModel, requests: Sequence[dict], max_tokens: int) -> list[griffinlm.Generation]:
    """The greedy answer to the first turn of every request, many side by side."""
    prompts = [model.tokenizer.encode_chat(request["messages"][:1]) for request in requests]
    found = []
    for start in track(range(0, len(prompts), ROWS_AT_ONCE), description="answers"):
        found += model.generate(prompts[start : start + ROWS_AT_ONCE], max_tokens=max_tokens, temperature=0.0)
    return found


def answer_bits(model: griffinlm.LanguageModel, requests: Sequence[dict]) -> dict:
    """Bits per byte of the assistant's turns, the end of each included, given all before them."""
    bits, num_bytes = 0.0, 0
    for request in requests:
        example = encode_conversation(model.tokenizer, request["messages"])
        scores = model.score(example.tokens)
        bits -= sum(s for s, label in zip(scores, example.labels[1:], strict=True) if label != IGNORED) / math.log(2)
        turns = (m["content"].strip() for m in request["messages"] if m["role"] == "assistant")
        num_bytes += sum(len(turn.encode()) for turn in turns)
    return {"bits_per_byte": round(float(bits) / num_bytes, 4), "bytes": num_bytes, "conversations": len(requests)}


def check_stories(requests: Sequence[dict], texts: Sequence[str]) -> dict:
    """Asked words used (all of a request, and each), the asked name, and the asked length."""
    checks = [request["check"] for request in requests]
    pairs = list(zip(checks, texts, strict=True))
    return {
        "all_words_used": share([not missing_words(c["words"], text) for c, text in pairs if c["words"]]),
        "words_used": share([not missing_words([word], text) for c, text in pairs for word in c["words"]]),
        "name_occurs": share([not missing_words([c["name"]], text) for c, text in pairs if c["name"]]),
        "at_most_obeyed": share(
            [len(sentences(text)) <= c["at_most_sentences"] for c, text in pairs if c["at_most_sentences"]]
        ),
        "length_obeyed": share([len(sentences(text)) == c["num_sentences"] for c, text in pairs if c["num_sentences"]]),
        "all_obeyed": share([obeys(c, text) for c, text in pairs]),
        "mean_words": round(sum(len(text.split()) for text in texts) / len(texts), 1),
        "repeated_fourgrams": round(sum(map(repeated_fourgrams, texts)) / len(texts), 4),
    }


def obeys(check: dict, text: str) -> bool:
    """Whether a story has everything that was asked of it."""
    length = len(sentences(text))
    return (
        not missing_words([*check["words"], *filter(None, [check["name"]])], text)
        and (check["at_most_sentences"] is None or length <= check["at_most_sentences"])
        and (check["num_sentences"] is None or length == check["num_sentences"])
    )


def repeated_fourgrams(text: str) -> float:
    """Share of a text's four-word runs that have stood in it before."""
    found = text.split()
    runs = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def check_questions(requests: Sequence[dict], texts: Sequence[str]) -> dict:
    """Whether the answer stands in the passage, and whether it is the reference, up to capitals and marks."""
    pairs = [(request["check"], text) for request, text in zip(requests, texts, strict=True)]
    return {
        "in_passage": share([stands_in(text, check["passage"]) for check, text in pairs]),
        "equal": share([normalised(text) in map(normalised, check["references"]) for check, text in pairs]),
    }


def check_translations(requests: Sequence[dict], texts: Sequence[str]) -> dict:
    """ChrF against all references with its bootstrap interval, that of copying the English, and exact translations."""
    most = max(len(request["check"]["references"]) for request in requests)
    references = [
        [(check["references"] + check["references"][:1] * most)[i] for check in (r["check"] for r in requests)]
        for i in range(most)
    ]
    sources = [request["check"]["source"] for request in requests]
    metric = sacrebleu.CHRF(references=references)
    found = metric.corpus_score([*texts], None, n_bootstrap=1000)
    copied = sacrebleu.CHRF().corpus_score(sources, references)
    return {
        "chrf": round(float(found.score), 2),
        "chrf_interval": round(float(getattr(found, "_ci", 0.0)), 2),
        "chrf_of_copying": round(float(copied.score), 2),
        "equal": share([text.strip() in r["check"]["references"] for text, r in zip(texts, requests, strict=True)]),
    }


CHECKS: dict[str, Callable[[Sequence[dict], Sequence[str]], dict]] = {
    "stories": check_stories,
    "sentences": check_stories,
    "tales": check_questions,
    "names": check_questions,
    "articles": check_questions,
    "translation": check_translations,
}


def text_bits(model: griffinlm.LanguageModel, data: Path) -> dict:
    """Bits per byte of held-out documents by source: what tuning has made of the reading."""
    found = {}
    for source in TEXT_SOURCES:
        texts = [text[:MOST_CHARACTERS] for text in documents(data, source, held_out=True)][:MOST_DOCUMENTS]
        result = evaluate_documents(model, texts, len(texts))
        found[source] = {"bits_per_byte": round(result.bits_per_byte, 4), "bytes": result.num_bytes}
    return found


def check_model(model: griffinlm.LanguageModel, requests: dict[str, list[dict]]) -> dict:
    """All figures of a model, by task."""
    figures = {}
    for task, of_task in requests.items():
        figures[task] = answer_bits(model, of_task)
        if task in CHECKS:
            found = answers(model, of_task, MAX_TOKENS[task])
            figures[task] |= CHECKS[task](of_task, [answer.text.strip() for answer in found])
            figures[task]["ended"] = share([answer.finish_reason == "stop" for answer in found])
    return figures


def shown(figure: object) -> str:
    if isinstance(figure, dict):
        return f"{figure['share']:.1%} ({figure['low']:.0%}-{figure['high']:.0%})" if figure["num"] else "-"
    return str(figure)


def print_figures(models: dict[str, dict]) -> None:
    """A table of all figures, a column a model."""
    print("|", " | ".join(["task", "figure", *models]), "|")
    print("|", " | ".join(["---"] * (len(models) + 2)), "|")
    first = next(iter(models.values()))["tasks"]
    for task, figures in first.items():
        for name in figures:
            print("|", " | ".join([task, name, *(shown(m["tasks"][task][name]) for m in models.values())]), "|")


def losses_of(log: Path) -> list[list[float]]:
    """Steps and training losses of a run."""
    entries = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [[entry["step"], round(entry["loss"], 4)] for entry in entries if "loss" in entry]


def earlier_record(directory: Path, requests: dict[str, int]) -> dict:
    """The last record on as many requests, or an empty one."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in directory.glob(f"*-{NAME}.json")]
    fitting = [record for record in found if record["requests"] == requests]
    return max(fitting, key=lambda record: record["date"], default={"models": {}, "losses": []})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", type=Path, help="plain text to score")
    parser.add_argument("--log", type=Path, help="log.jsonl of the tuning, whose losses go into the record")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--most", type=int, help="requests of a task, for a quick look")
    arguments = parser.parse_args()
    requests = {task: rows[: arguments.most] for task, rows in read_requests(arguments.held_out).items()}
    num_requests = {task: len(rows) for task, rows in requests.items()}
    earlier = earlier_record(arguments.out or Path(), num_requests)
    losses = earlier["losses"] if arguments.log is None else losses_of(arguments.log)
    told = ["HELD_OUT", *arguments.models]
    told += [] if arguments.data is None else ["--data", "DATA"]
    told += [] if arguments.most is None else ["--most", str(arguments.most)]
    record = {**header("recipes/eyas_checks.py", told), "requests": num_requests, "losses": losses}
    record["models"] = earlier["models"]
    for given in arguments.models:
        name, equals, source = given.partition("=")
        if not equals:
            parser.error(f"{given} must be NAME=MODEL")
        model = griffinlm.load(source)
        record["models"][name] = {"tasks": check_model(model, requests), "prompts": answers_to_prompts(model)}
        if arguments.data is not None:
            record["models"][name]["text"] = text_bits(model, arguments.data)
        if arguments.out is not None:
            write(record, NAME, arguments.out)
    print_figures(record["models"])


if __name__ == "__main__":
    main()
