"""What reward models and policies of eyas came to, on rows that nothing was trained on.

    python recipes/eyas_alignment_checks.py rewards PAIRS first=work/eyas_reward/model second=... --out DIR
    python recipes/eyas_alignment_checks.py policies PAIRS first=... second=... sft=... rloo=... dpo=... --out DIR

PAIRS is the folder of recipes/eyas_preferences.py. `rewards` gives the accuracy on held-out pairs by kind, beside what
an answer's length alone would tell. `policies` samples answers to held-out requests from every policy and gives their
mean rewards, KL(policy || first policy), lengths, repetitions and exact checks.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sacrebleu
from eyas_checks import share
from text_rules import missing_words, sentences

import griffinlm
from griffinlm.evaluate.record import header, write
from griffinlm.generation.job import End
from griffinlm.train.alignment.judge import repeated_runs
from griffinlm.train.alignment.reward_model import RewardModel
from griffinlm.train.alignment.rollouts import Rollouts
from griffinlm.train.alignment.rows import parse_pair, parse_prompt

LONGEST_PAIR_TOKENS = 320
NUM_ANSWERS = 2
MAX_ANSWER_TOKENS = 64
PROMPTS_AT_ONCE = 32
Z = 1.959964


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def longer_is_better(row: dict) -> bool:
    return len(row["chosen"]) > len(row["rejected"])


def direction(rows: Sequence[dict]) -> bool:
    """Whether the longer answer is more often the better one."""
    differing = [row for row in rows if len(row["chosen"]) != len(row["rejected"])]
    return sum(map(longer_is_better, differing)) * 2 >= len(differing)


def check_lengths(training: Sequence[dict], held_out: Sequence[dict]) -> dict[str, dict]:
    """The accuracy of the best rule by length, of all pairs and of each kind; equal lengths are right half the time.

    `length` is one rule for all pairs, `length, kind known` has a rule of its own for each kind.
    """
    kinds = sorted({row["kind"] for row in held_out})
    by_kind = {kind: direction([row for row in training if row["kind"] == kind]) for kind in kinds}
    of_all = direction(training)
    found = {}
    for name, rules in (("length", dict.fromkeys(kinds, of_all)), ("length, kind known", by_kind)):
        right = [
            (index % 2 == 0)
            if len(row["chosen"]) == len(row["rejected"])
            else longer_is_better(row) == rules[row["kind"]]
            for index, row in enumerate(held_out)
        ]
        found[name] = by_kinds(held_out, right)
    return found


def by_kinds(rows: Sequence[dict], right: Sequence[bool]) -> dict:
    """Shares of all rows and of each kind."""
    kinds = sorted({row["kind"] for row in rows})
    of_kinds = {k: share([r for row, r in zip(rows, right, strict=True) if row["kind"] == k]) for k in kinds}
    return {"all": share(list(right)), **of_kinds}


def check_rewards(pairs: Path, models: dict[str, Path], most: int | None) -> dict:
    """Accuracies on held-out pairs."""
    judges = {name: RewardModel(path) for name, path in models.items()}
    tokenizer = next(iter(judges.values())).tokenizer
    held_out = [(row, parse_pair(row, tokenizer)[1]) for row in read(pairs / "held_out.jsonl")[:most]]
    held_out = [(row, pair) for row, pair in held_out if pair.num_tokens <= LONGEST_PAIR_TOKENS]
    rows = [row for row, _ in held_out]
    found = check_lengths([*read(pairs / "first.jsonl"), *read(pairs / "second.jsonl")], rows)
    for name, judge in judges.items():
        chosen = judge.score([pair.prompt + pair.chosen for _, pair in held_out])
        rejected = judge.score([pair.prompt + pair.rejected for _, pair in held_out])
        found[name] = by_kinds(rows, [c > r for c, r in zip(chosen, rejected, strict=True)])
    return found


def sample(model: griffinlm.LanguageModel, prompts: Sequence[list[int]]) -> list[End]:
    """`NUM_ANSWERS` to each prompt, at temperature 1."""
    rollouts, found = Rollouts(model, MAX_ANSWER_TOKENS, 1.0), []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        groups = rollouts.ends(prompts[start : start + PROMPTS_AT_ONCE], NUM_ANSWERS, f"checks {start}")
        found += [answer for group in groups for answer in group]
    return found


def answer_score(model: griffinlm.LanguageModel, prompt: list[int], answer: list[int]) -> float:
    """log p(answer | prompt)."""
    return float(model.score(prompt + answer)[len(prompt) - 1 :].sum())


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of answers, and half the 95% interval of the mean, taken over prompts."""
    found = np.asarray(values, np.float64)
    groups = found.reshape(-1, NUM_ANSWERS).mean(axis=1)
    half = Z * groups.std(ddof=1) / np.sqrt(len(groups))
    return {"mean": round(found.mean(), 4), "sd": round(found.std(ddof=1), 4), "half_interval": round(half, 4)}


def check_policy(
    model: griffinlm.LanguageModel, base: griffinlm.LanguageModel, judges: dict[str, RewardModel], rows: Sequence[dict]
) -> dict:
    """Figures of a policy's answers to held-out requests of one kind."""
    tokenizer = model.tokenizer
    prompts = [parse_prompt(row, tokenizer)[1].tokens for row in rows]
    answers = sample(model, prompts)
    asked = [(row, prompt) for row, prompt in zip(rows, prompts, strict=True) for _ in range(NUM_ANSWERS)]
    documents = [(prompt, answer.token_ids) for (_, prompt), answer in zip(asked, answers, strict=True)]
    texts = [answer.text.strip() for answer in answers]
    kl = [answer_score(model, *one) - answer_score(base, *one) for one in documents] if model is not base else [0.0]
    num_tokens = sum(len(answer) for _, answer in documents)
    figures = {
        **{
            f"reward {n}": spread(j.score([prompt + answer for prompt, answer in documents])) for n, j in judges.items()
        },
        "kl of an answer": round(float(np.mean(kl)), 4),
        "kl of a token": round(float(np.sum(kl)) / num_tokens, 4),
        "tokens": spread([len(answer) for _, answer in documents]),
        "ended": share([answer.finish_reason == "stop" for answer in answers]),
        "repeated runs of 4 tokens": round(float(np.mean([repeated_runs(answer) for _, answer in documents])), 4),
        "different answers": round(len(set(texts)) / len(texts), 4),
    }
    if "words" in rows[0]:
        pairs = [(row, text) for (row, _), text in zip(asked, texts, strict=True)]
        figures["asked words used"] = share([not missing_words(row["words"], text) for row, text in pairs])
        figures["asked number of sentences"] = share([len(sentences(t)) == row["num_sentences"] for row, t in pairs])
    else:
        references = [row["reference"] for row, _ in asked]
        figures["chrF"] = round(sacrebleu.corpus_chrf(texts, [references]).score, 2)
    figures["first answers"] = [[row["prompt"], texts[index * NUM_ANSWERS]] for index, row in enumerate(rows[:6])]
    return figures


def check_policies(pairs: Path, judges: dict[str, Path], policies: dict[str, Path], most: int | None) -> dict:
    """Figures of every policy, by kind of request; the first policy is what the others began from."""
    prompts = read(pairs / "held_out_prompts.jsonl")
    models = {name: griffinlm.load(path) for name, path in policies.items()}
    base = next(iter(models.values()))
    loaded = {name: RewardModel(path) for name, path in judges.items()}
    kinds = sorted({row["kind"] for row in prompts})
    rows = {kind: [row for row in prompts if row["kind"] == kind][:most] for kind in kinds}
    return {n: {k: check_policy(m, base, loaded, of_kind) for k, of_kind in rows.items()} for n, m in models.items()}


def together(found: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Each policy beside the first over all kinds alike: rewards in deviations of the first's, lengths as a ratio."""
    base, *others = found
    names = [name for name in next(iter(found[base].values())) if name.startswith("reward ")]
    figures = {}
    for policy in others:
        changes = {name: _change(found[base], found[policy], name) for name in names}
        lengths = [_mean(found[one], "tokens") for one in (base, policy)]
        figures[policy] = {**changes, "tokens": round(lengths[1] / lengths[0], 4)}
    return figures


def _change(base: dict[str, dict], policy: dict[str, dict], reward: str) -> float:
    """Of a mean reward, in standard deviations of the base's answers of all kinds."""
    mean = _mean(base, reward)
    squares = [of_kind[reward]["sd"] ** 2 + (of_kind[reward]["mean"] - mean) ** 2 for of_kind in base.values()]
    return round((_mean(policy, reward) - mean) / float(np.sqrt(np.mean(squares))), 4)


def _mean(policy: dict[str, dict], name: str) -> float:
    return float(np.mean([of_kind[name]["mean"] for of_kind in policy.values()]))


def print_table(columns: dict[str, dict]) -> None:
    """Figures as Markdown, a column a model."""
    print("|", " | ".join(["", *columns]), "|")
    print("|", " | ".join(["---"] * (len(columns) + 1)), "|")
    for name in next(iter(columns.values())):
        if name != "first answers":
            print("|", " | ".join([name, *(shown(column[name]) for column in columns.values())]), "|")


def shown(figure: dict | float) -> str:
    if not isinstance(figure, dict):
        return str(figure)
    if "share" in figure:
        return f"{figure['share']:.1%} ({figure['low']:.1%}-{figure['high']:.1%})"
    return f"{figure['mean']:.2f} ± {figure['half_interval']:.2f} (sd {figure['sd']:.2f})"


CURVES = {
    "reward": "rewards/reward/mean",
    "watched reward": "rewards/second/mean",
    "rule": "rewards/asked/mean",
    "kl of a token": "kl",
    "entropy": "entropy",
    "tokens": "completions/mean_length",
    "ended": "answers/ended",
    "repeated runs": "answers/repeated_runs",
}


def curves(log: Path) -> dict[str, list[float]]:
    """What a run of griffin train rloo logged, by step."""
    steps = [entry for entry in read(log) if "kl" in entry]
    return {name: [round(entry[key], 4) for entry in steps] for name, key in CURVES.items() if key in steps[0]}


def named(given: Sequence[str]) -> dict[str, Path]:
    return {name: Path(path) for name, _, path in (one.partition("=") for one in given)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rewards", "policies"))
    parser.add_argument("pairs", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="reward models, the first two for `policies`")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--log", type=Path, help="log.jsonl of the policy's run, for the picture")
    parser.add_argument("--most", type=int, help="pairs, or requests of a kind, for a quick look")
    arguments = parser.parse_args()
    models = named(arguments.models)
    if arguments.what == "rewards":
        found = check_rewards(arguments.pairs, models, arguments.most)
        print_table(found)
    else:
        judges = dict(list(models.items())[:2])
        policies = {name: path for name, path in models.items() if name not in judges}
        found = check_policies(arguments.pairs, judges, policies, arguments.most)
        for kind in next(iter(found.values())):
            print(f"\n{kind}\n")
            print_table({name: figures[kind] for name, figures in found.items()})
        print("\nall kinds alike, beside the first policy\n")
        print_table(together(found))
    if arguments.out is not None:
        told = [arguments.what, "PAIRS", *arguments.models]
        told += [] if arguments.most is None else ["--most", str(arguments.most)]
        record = {**header("recipes/eyas_alignment_checks.py", told), "figures": found}
        if arguments.what == "policies":
            record["together"] = together(found)
        if arguments.log is not None:
            record["curves"] = curves(arguments.log)
        write(record, f"eyas_{arguments.what}", arguments.out)


if __name__ == "__main__":
    main()
