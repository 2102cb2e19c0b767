"""The fixed requests that show what every stage of eyas makes of each task, and its uncut answers."""

from collections.abc import Mapping, Sequence

import griffinlm

PROMPTS = (
    "Write a short story that uses the words: garden, rabbit, rain.",
    "Write a short story about Lily that uses the words: boat, lake.",
    "Write a short story in at most 6 sentences that uses the words: moon, owl.",
    "Write the beginning of a story about Tom in 3 sentences that uses the words: bicycle.",
    "The old fisherman lived with his daughter Mara in a small hut by the sea. Every morning he took his boat out, "
    "and every evening he came back with silver fish.\n\nQuestion: Where did the fisherman live?",
    "The old fisherman lived with his daughter Mara in a small hut by the sea. Every morning he took his boat out, "
    "and every evening he came back with silver fish.\n\nQuestion: What did he come back with?",
    "One day, a little girl named Anna saw a brown dog called Rex in the park.\n\nQuestion: What is the dog called?",
    "Marie Curie (7 November 1867 \u2013 4 July 1934) was a Polish and French physicist and chemist who worked on "
    "radioactivity.\n\nQuestion: When was Marie Curie born?",
    "I am hungry and want to find a place to eat.",
    "Can you play a song for me?",
    "Translate into French: I am very tired today.",
    "Translate into French: My brother has two dogs and a cat.",
    "Translate into French: Where is the train station?",
)
MAX_TOKENS = 400


def answers_to_prompts(model: griffinlm.LanguageModel) -> list[str]:
    """The greedy answer to each prompt, up to its end or MAX_TOKENS."""
    ids = [model.tokenizer.encode_chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    return [found.text.strip() for found in model.generate(ids, max_tokens=MAX_TOKENS, temperature=0.0)]


def side_by_side(answers: Mapping[str, Sequence[str]]) -> str:
    """Markdown: every prompt with the answer of each model, by the model's name."""
    parts = []
    for index, prompt in enumerate(PROMPTS):
        parts.append(f"**{index + 1}.** {_quoted(prompt)}\n")
        parts += [f"- *{name}*: {_quoted(of_model[index]) or '(nothing)'}" for name, of_model in answers.items()]
        parts.append("")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    return text.replace("\n", "<br>\n  ")
