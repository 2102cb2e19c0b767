"""The harness hears from a model what LanguageModel itself says of a text with BOS in front; nothing is fetched."""

import math
import socket

import numpy as np
import pytest
from task_files import NUM_ROWS, made_rows, write_rows
from tolerances import TOLERANCES

import griffinlm
from griffinlm.evaluate.tasks import TASKS, TaskError
from griffinlm.text import TokenizerError

pytest.importorskip("lm_eval", exc_type=ImportError)

from lm_eval.api.instance import Instance

from griffinlm.evaluate.harness import HarnessModel, evaluate_tasks, generation_options

TEXTS = ["the hawk", "they hunt over the hill and do not grow", "é€😀", "x" * 300]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(request, tiny_model_directory):
    return griffinlm.load(tiny_model_directory, engine=request.param)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("tasks"), made_rows())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("nothing may be fetched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, argument, 0) for argument in arguments]


def score_alone(model, context: str, continuation: str) -> tuple[float, bool]:
    """log p(continuation | BOS, context), and whether it is what the model writes at temperature 0."""
    encode, bos_id = model.tokenizer.encode, model.tokenizer.bos_id
    whole, start = encode(context + continuation), [bos_id, *encode(context)]
    assert [bos_id, *whole][: len(start)] == start, "the texts of these tests are cut at the end of the context"
    answer = whole[len(start) - 1 :]
    written = model.generate(start, max_tokens=len(answer), temperature=0).token_ids
    return float(model.score([bos_id, *whole])[len(start) - 1 :].sum()), written == answer


def near(value: float, num_tokens: int = 30):
    """As near as sums of so many log-probabilities of the two engines are."""
    return pytest.approx(value, abs=2 * num_tokens * TOLERANCES["model", "float32", "onnx"])


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_loglikelihood_is_that_of_the_text_alone_after_bos(model, batch_rows):
    pairs = [(context, f" {ending}") for context in TEXTS[:2] for ending in ("griffin", "hill and hawk")]
    found = HarnessModel(model, batch_rows).loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    for (total, is_greedy), pair in zip(found, pairs, strict=True):
        expected, expected_greedy = score_alone(model, *pair)
        assert total == near(expected)
        assert is_greedy == expected_greedy


def test_a_continuation_of_nothing_stands_after_bos(model):
    found = HarnessModel(model).loglikelihood(instances("loglikelihood", ("", TEXTS[1])), disable_tqdm=True)
    assert found[0][0] == near(float(model.score(TEXTS[1]).sum()))


def test_what_the_model_would_write_to_its_last_token_is_greedy(model):
    encode = model.tokenizer.encode
    start = [model.tokenizer.bos_id, *encode(TEXTS[1])]
    written = model.generate(start, max_tokens=4, temperature=0).token_ids
    beginning = [*written[:-1], (written[-1] + 1) % model.config.vocab_size]
    found = HarnessModel(model)._loglikelihood_tokens([(("", ""), start, written), (("", ""), start, beginning)])
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_rolling_loglikelihood_is_the_score_of_whole_documents(model):
    texts = [*TEXTS, "the hawk and the griffin " * 120, ""]
    found = HarnessModel(model).loglikelihood_rolling(instances("loglikelihood_rolling", *((text,) for text in texts)))
    assert found == [float(model.score(text).sum()) for text in texts]


@pytest.mark.parametrize("batch_rows", [1, 2, 8])
def test_generated_texts_are_those_of_each_prompt_alone(model, batch_rows):
    options = [{"until": ["an", "e"], "max_gen_toks": 9}, {"until": [], "max_gen_toks": 5, "do_sample": False}]
    asked = [(text, options[i % 2]) for i, text in enumerate(TEXTS)]
    found = HarnessModel(model, batch_rows).generate_until(instances("generate_until", *asked))
    for text, (prompt, given) in zip(found, asked, strict=True):
        stop, num_tokens = given["until"], given["max_gen_toks"]
        assert text == model.generate(prompt, stop=stop, max_tokens=num_tokens, temperature=0).text


def test_options_of_generation_are_ours():
    assert generation_options({"until": "x", "temperature": 0.0}) == {
        "stop": ["x"],
        "max_tokens": 256,
        "temperature": 0,
    }
    sampled = generation_options({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4})
    assert (sampled["temperature"], sampled["top_p"], sampled["top_k"]) == (0.5, 0.9, 4)
    with pytest.raises(TaskError, match="generation with 'num_beams'"):
        generation_options({"num_beams": 2})


def by_hand(model, name: str) -> dict[str, float]:
    """Metrics of a task by scoring each whole text alone."""
    rows = made_rows()[TASKS[name].file or name]
    if name == "lambada_openai":
        scores = [score_alone(model, row["context"], f" {row['continuation']}") for row in rows]
        perplexity = math.exp(-np.mean([total for total, _ in scores]))
        return {"perplexity": perplexity, "acc": np.mean([is_greedy for _, is_greedy in scores])}
    if name == "winogrande":
        best = [
            np.argmax([score_alone(model, context, f" {row['continuation']}")[0] for context in row["context_options"]])
            for row in rows
        ]
        return {"acc": np.mean([choice == row["gold"] for choice, row in zip(best, rows, strict=True)])}
    hits, hits_by_length = [], []
    for row in rows:
        query, choices = row["query"].removeprefix("Passage: "), row["choices"]
        if name.startswith("mmlu") and row["split"] == "dev":
            continue
        if name == "mmlu":
            question = query.removeprefix("Question: ").removesuffix("\nAnswer:")
            listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices, strict=True))
            subject = "The following are multiple choice questions (with answers) about high hills.\n\n"
            query, choices = f"{subject}{question}\n{listed}Answer:", list("ABCD")
        totals = np.array([score_alone(model, query, f" {choice}")[0] for choice in choices])
        hits.append(totals.argmax() == row["gold"])
        hits_by_length.append((totals / [len(choice) for choice in choices]).argmax() == row["gold"])
    found = {"acc": np.mean(hits), "acc_norm": np.mean(hits_by_length)}
    return {metric: found[metric] for metric in TASKS[name].metrics}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [name for name in TASKS if name != "gsm8k_test"])
def test_metrics_of_a_task_are_those_computed_by_hand(model, directory, name):
    found = evaluate_tasks(model, [name], directory)
    expected = by_hand(model, name)
    num_documents = NUM_ROWS - 1 if name.startswith("mmlu") else NUM_ROWS
    assert {figure.metric: figure.value for figure in found} == pytest.approx(expected, rel=1e-3)
    assert {(figure.task, figure.documents) for figure in found} == {(name, num_documents)}
    for figure in found:
        if figure.metric != "perplexity":
            p = figure.value
            assert figure.standard_error == pytest.approx(math.sqrt(p * (1 - p) / (num_documents - 1)))


def test_perplexity_has_the_standard_error_of_its_mean_logarithm(model, directory):
    rows = made_rows()["lambada_openai"]
    totals = [score_alone(model, row["context"], f" {row['continuation']}")[0] for row in rows]
    found = next(f for f in evaluate_tasks(model, ["lambada_openai"], directory) if f.metric == "perplexity")
    error = np.std(totals, ddof=1) / math.sqrt(len(totals))
    assert found.standard_error == pytest.approx(math.exp(-np.mean(totals)) * error, rel=1e-3)


def test_solved_questions_stand_before_a_question_and_answers_are_read_out_of_the_text(
    tiny_model_directory, directory, monkeypatch
):
    model, prompts = griffinlm.load(tiny_model_directory), []

    def answer(self, requests, disable_tqdm=False):
        prompts.extend(request.args[0] for request in requests)
        numbers = [text.rsplit("Question: ", 1)[1].split("?")[0].rsplit(" ", 1)[1] for text in prompts]
        # The first is right, the second has the number in another form, the third is wrong.
        return [f" so\n#### {numbers[0]}", f" it is {numbers[1]}", *[" none"] * (len(prompts) - 2)]

    monkeypatch.setattr(HarnessModel, "generate_until", answer)
    found = {figure.metric: figure.value for figure in evaluate_tasks(model, ["gsm8k_test"], directory)}
    assert found == {"exact_match,strict-match": 1 / NUM_ROWS, "exact_match,flexible-extract": 2 / NUM_ROWS}
    for prompt, row in zip(prompts, made_rows()["gsm8k_test"], strict=True):
        solved, question = prompt.rsplit("\n\n", 1)
        assert question == f"Question: {row['question']}\nAnswer:"
        assert solved.count("Question: ") == solved.count("#### ") == 5
        assert row["question"] not in solved


@pytest.mark.usefixtures("no_network")
def test_written_answers_come_from_the_model(tiny_model_directory, directory):
    found = evaluate_tasks(griffinlm.load(tiny_model_directory), ["gsm8k_test"], directory, limit=2)
    assert [(figure.metric, figure.documents) for figure in found] == [
        ("exact_match,strict-match", 2),
        ("exact_match,flexible-extract", 2),
    ]


def test_several_tasks_are_each_as_alone_whatever_the_batch(model, directory):
    names = ["winogrande", "arc_easy", "lambada_openai"]
    together = evaluate_tasks(model, names, directory, limit=5, batch_rows=3)
    alone = [figure for name in names for figure in evaluate_tasks(model, [name], directory, limit=5, batch_rows=1)]
    assert [(f.task, f.metric, f.documents) for f in together] == [(f.task, f.metric, f.documents) for f in alone]
    assert [f.value for f in together] == pytest.approx([f.value for f in alone], rel=1e-3)


def test_one_document_has_no_standard_error(tiny_model_directory, directory):
    found = evaluate_tasks(griffinlm.load(tiny_model_directory), ["copa"], directory, limit=1)
    assert [(figure.standard_error, figure.documents) for figure in found] == [(None, 1)]


def test_a_model_without_tokenizer_is_refused(tiny_model_without_tokenizer, directory):
    with pytest.raises(TokenizerError, match="no tokenizer"):
        evaluate_tasks(griffinlm.load(tiny_model_without_tokenizer), ["copa"], directory)
