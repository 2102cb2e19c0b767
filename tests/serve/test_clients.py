"""Programs of others, unmodified."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

QUESTION = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def sdk(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


class Weather(pydantic.BaseModel):
    is_sunny: bool
    wind: int = pydantic.Field(ge=0, le=9)


class TestOpenAI:
    def test_chat_and_its_stream(self, sdk):
        question = [{"role": "user", "content": "Where is the cat?"}]  # the answer ends before its limit
        options = {"model": "eyas", "messages": question, "temperature": 0, "max_completion_tokens": 20}
        whole = sdk.chat.completions.create(**options)
        stream = sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
        parts = list(stream)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == whole.choices[0].message.content
        assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
        with sdk.chat.completions.stream(**options) as events:
            assert events.get_final_completion().choices[0].message.content == text

    def test_structured_output(self, sdk):
        parsed = sdk.chat.completions.parse(
            model="eyas", messages=QUESTION, response_format=Weather, temperature=0, max_tokens=60
        )
        assert isinstance(parsed.choices[0].message.parsed, Weather)
        response = sdk.responses.parse(
            model="eyas", input="The weather?", text_format=Weather, temperature=0, max_output_tokens=60
        )
        assert isinstance(response.output_parsed, Weather)

    def test_completions_and_their_stream(self, sdk):
        options = {"model": "eyas", "prompt": "Once", "max_tokens": 8, "temperature": 0}
        whole = sdk.completions.create(**options, logprobs=1, echo=True)
        assert len(whole.choices[0].logprobs.tokens) >= 8
        text = "".join(part.choices[0].text for part in sdk.completions.create(**options, stream=True))
        assert whole.choices[0].text == f"Once{text}"

    def test_responses_and_their_stream(self, sdk):
        first = sdk.responses.create(model="eyas", input="Hello", max_output_tokens=10, temperature=0)
        assert sdk.responses.retrieve(first.id).output_text == first.output_text
        with sdk.responses.stream(
            model="eyas",
            input="And?",
            previous_response_id=first.id,
            max_output_tokens=80,
            temperature=0,
            text_format=Weather,
        ) as events:
            deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            whole = events.get_final_response()
        assert whole.output_text == deltas
        assert isinstance(whole.output_parsed, Weather)
        sdk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(first.id)

    def test_input_items_page_by_page_and_the_refusal_to_cancel(self, sdk):
        first = sdk.responses.create(model="eyas", input="Hello", max_output_tokens=4)
        second = sdk.responses.create(model="eyas", input="And?", previous_response_id=first.id, max_output_tokens=4)
        items = list(sdk.responses.input_items.list(second.id, limit=1, include=["message.output_text.logprobs"]))
        assert [item.type for item in items] == ["message"] * 3
        assert [item.content[0].text for item in items] == ["And?", first.output_text, "Hello"]
        assert items[1].id == first.output[0].id
        assert sdk.responses.retrieve(first.id, include=["message.output_text.logprobs"]).id == first.id
        with pytest.raises(openai.BadRequestError, match="background"):
            sdk.responses.cancel(second.id)

    def test_embeddings_models_and_pages(self, sdk):
        vectors = sdk.embeddings.create(model="eyas", input=["a hawk", "a griffin"]).data
        assert len(vectors[0].embedding) == len(vectors[1].embedding) > 8
        assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1, abs=1e-4)
        assert [model.id for model in sdk.models.list()] == ["eyas"]
        assert sdk.models.retrieve("eyas").id == "eyas"

    def test_faults_are_its_exceptions_with_their_fields(self, sdk):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.chat.completions.create(model="eyas", messages=QUESTION, temperature=-2)
        assert caught.value.param == "temperature"
        assert caught.value.request_id.startswith("req_")
        with pytest.raises(openai.NotFoundError):
            sdk.chat.completions.create(model="other", messages=QUESTION)

    def test_many_at_once_are_each_alone(self, sdk):
        def ask(seed):
            answer = sdk.chat.completions.create(model="eyas", messages=QUESTION, seed=seed, max_tokens=10)
            return answer.choices[0].message.content

        seeds = list(range(12))
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(ask, seeds))
        assert together == [ask(seed) for seed in seeds]


def test_langchain(server):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="eyas", temperature=0, max_tokens=15, max_retries=0
    )
    whole = chat.invoke("Tell me a story.")
    assert whole.usage_metadata["output_tokens"] > 1
    assert "".join(chunk.content for chunk in chat.stream("Tell me a story.")) == whole.content
    structured = chat.model_copy(update={"max_tokens": 80}).with_structured_output(Weather, method="json_schema")
    assert isinstance(structured.invoke("The weather?"), Weather)
    responding = langchain.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="eyas", temperature=0, use_responses_api=True, max_retries=0
    )
    assert responding.invoke("Tell me a story.", max_tokens=15).text == whole.text
    vectors = langchain.OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model="eyas", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(["a", "b"])) == 2


def test_the_llm_command(server, tmp_path):
    pytest.importorskip("llm")
    table = [{"model_id": "here", "model_name": "eyas", "api_base": f"{server.url}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(table))  # JSON is YAML
    for arguments in (["--no-stream"], ["-c"]):
        run = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "here", *arguments, "-o", "max_tokens", "12", "Tell me a story."],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip()
