"""What eyas-it learns: requests made by rule from documents, each with an answer and with what a check needs to know.

A request is a row `{"task", "messages", "check"}`. The same document gives the same requests every time.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from text_rules import sentences, stands_in, words

Row = dict

NUM_COMMON_WORDS = 150
MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
DATE = rf"(?:\d{{1,2}} (?:{MONTH})|(?:{MONTH}) \d{{1,2}},) \d{{3,4}}"
LIFE = re.compile(rf"(?:born )?(?P<birth>{DATE})(?:[^\u2013-]{{0,40}}[\u2013-] ?(?P<death>{DATE}))?")
LEAD = re.compile(
    r"(?P<subject>[^.]{2,80}?)(?: ?\((?P<life>[^()]{0,120})\))? (?P<verb>is|was|are|were) "
    r"(?P<what>(?:a|an|the|one of) [^.]{10,120})\.(?= |$)"
)
NAMED = re.compile(r"\ban? (?:[a-z]+,? ){0,3}?(?P<who>[a-z]+) (?:named|called) (?P<name>[A-Z][a-z]+)\b")
PLAIN_SENTENCE = re.compile(r"[A-Z][^\"\u201c\n]{20,120}[.!?]")
SENTENCES_OF_A_STORY = 4
FRENCH = "Translate into French: "


def row(task: str, request: str, answer: str, **check: object) -> Row:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"task": task, "messages": messages, "check": check}


def common_words(texts: Iterable[str]) -> set[str]:
    """The most frequent words of some texts; a request asks for none of them."""
    counts = Counter(word for text in texts for word in words(text))
    return {word for word, _ in counts.most_common(NUM_COMMON_WORDS)}


class Stories:
    """Requests for stories: words that must be used, a name that must occur, a length that must be kept."""

    def __init__(self, common: set[str]) -> None:
        self.common = common

    def requests(self, story: str) -> Iterator[Row]:
        """Three from a story: by words, by length as well where it is short, and for its beginning alone."""
        draw = random.Random(story)
        found = sentences(story)
        yield self._request(draw, story)
        at_most = len(found) + draw.randrange(3)
        yield self._request(draw, story, at_most=at_most if at_most <= 15 else None)
        num_first = draw.randint(2, 6)
        if num_first < len(found):
            yield self._request(draw, " ".join(found[:num_first]), num_sentences=num_first)

    def sentence_requests(self, story: str) -> Iterator[Row]:
        """Single sentences by words that they must use, which is learned on them sooner than on whole stories."""
        draw = random.Random(f"sentences {story}")
        plain = [sentence for sentence in sentences(story) if PLAIN_SENTENCE.fullmatch(sentence)]
        for sentence in draw.sample(plain, min(len(plain), SENTENCES_OF_A_STORY)):
            choice = sorted({word for word in words(sentence) if len(word) > 3 and word not in self.common})
            asked = draw.sample(choice, min(len(choice), draw.randint(1, 2)))
            if asked:
                request = f"Write a sentence that uses the words: {', '.join(asked)}."
                yield row(
                    "sentences", request, sentence, words=asked, name=None, at_most_sentences=None, num_sentences=1
                )

    def _request(
        self, draw: random.Random, story: str, at_most: int | None = None, num_sentences: int | None = None
    ) -> Row:
        names = _names(story)
        name = draw.choice(names) if names and draw.random() < 0.4 else None
        taken = set(map(str.lower, names))
        choice = sorted({w for w in words(story) if len(w) > 3 and w not in self.common and w not in taken})
        asked = draw.sample(choice, min(len(choice), draw.randint(1, 3)))
        what = "a short story"
        if num_sentences is not None:
            what = "the beginning of a story"
        parts = [f"Write {what}"]
        if name is not None:
            parts.append(f" about {name}")
        if num_sentences is not None:
            parts.append(f" in {num_sentences} sentences")
        elif at_most is not None:
            parts.append(f" in at most {at_most} sentences")
        if asked:
            parts.append(f" that uses the words: {', '.join(asked)}")
        return row(
            "stories",
            "".join(parts) + ".",
            story,
            words=asked,
            name=name,
            at_most_sentences=at_most,
            num_sentences=num_sentences,
        )


def _names(story: str) -> list[str]:
    """Words with a capital inside a sentence, twice or more, that never stand without one."""
    inside = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", story))
    return sorted(name for name, count in inside.items() if count > 1 and name.lower() not in story.split())


def question(passage: str, asked: str, answer: str, task: str) -> Row:
    """A question whose answer stands in the passage."""
    return row(task, f"{passage}\n\nQuestion: {asked}", answer, passage=passage, references=[answer])


def tale_question(messages: Sequence[dict[str, str]]) -> Row | None:
    """A question of FairytaleQA with the sentences around its answer; None where the tale has it in other words."""
    passage, _, asked = messages[0]["content"].rpartition("\n\nQuestion: ")
    answer = messages[1]["content"]
    found = sentences(passage)
    draw = random.Random("\n".join(m["content"] for m in messages))
    num_around = draw.randint(2, 5)
    places = [i for i in range(len(found)) if stands_in(answer, found[i])]
    if not places:
        return None
    place = draw.choice(places)
    start = max(0, min(place - draw.randrange(num_around), len(found) - num_around))
    return question(" ".join(found[start : start + num_around]), asked, answer, "tales")


def name_questions(story: str) -> Iterator[Row]:
    """Who is called what, asked of the beginning of a story."""
    draw = random.Random(story)
    passage = " ".join(sentences(story)[: draw.randint(2, 5)])
    for match in NAMED.finditer(passage):
        yield question(passage, f"What is the {match['who']} called?", match["name"], "names")


def article_questions(title: str, text: str) -> Iterator[Row]:
    """What an article is about, and when its person was born and died, asked of its first sentences."""
    text = text.replace("\xa0", " ").partition("\n")[0]
    title = re.sub(r" \([^()]*\)$", "", title)
    lead = LEAD.match(text)
    if lead is None or title.lower() not in lead["subject"].lower():
        return
    draw = random.Random(text)
    passage = lead[0]
    for sentence in sentences(text[lead.end() :])[: draw.randrange(3)]:
        if len(passage) + len(sentence) < 450:
            passage = f"{passage} {sentence}"
    life = LIFE.search(lead["life"] or "")
    yield question(passage, f"{'Who' if life else 'What'} {lead['verb']} {title}?", lead["what"], "articles")
    if life:
        yield question(passage, f"When was {title} born?", life["birth"], "articles")
        if life["death"]:
            yield question(passage, f"When did {title} die?", life["death"], "articles")


def opening(messages: Sequence[dict[str, str]], most_messages: int, most_characters: int) -> list[dict[str, str]]:
    """The first messages of a conversation up to an assistant's, of at most so many characters in all; may be empty."""
    kept, num_characters = 0, 0
    for index, message in enumerate(messages[:most_messages]):
        num_characters += len(message["content"])
        if num_characters > most_characters:
            break
        if message["role"] == "assistant":
            kept = index + 1
    return [*messages[:kept]]


def translation(english: str, french: Sequence[str]) -> Row:
    """A sentence to translate, answered by the first of its translations."""
    return row("translation", FRENCH + english, french[0], source=english, references=[*french])
