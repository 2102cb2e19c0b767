"""How well an answer does what a request for eyas-it asks, by rule: what reward models of its size only guess at."""

from typing import Any

import sacrebleu
from text_rules import missing_words, sentences

CHRF = sacrebleu.CHRF()
BALANCED_CHRF = sacrebleu.CHRF(beta=1)


def merit(row: dict[str, Any], answer: str, chrf: sacrebleu.CHRF = CHRF) -> float:
    """From 0 to 1.

    Half for the share of the asked words that are used and half for the asked number of sentences, where a row has
    `words` and `num_sentences`; chrF against its `reference` otherwise.
    """
    if "reference" in row:
        return chrf.sentence_score(answer, [row["reference"]]).score / 100
    used = 1.0 - len(missing_words(row["words"], answer)) / len(row["words"])
    return used * 0.5 + 0.5 * (len(sentences(answer)) == row["num_sentences"])


def reward(row: dict[str, Any], answer: str) -> float:
    """Merit to learn from: chrF weighs recall four times as much as precision, which a policy takes as pay for length.

    Here both weigh the same.
    """
    return merit(row, answer, BALANCED_CHRF)
