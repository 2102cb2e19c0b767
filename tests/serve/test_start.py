"""How a server is started, and what it refuses to start with."""

import socket
import stat

import pytest
from adapters import random_factors, write_adapter

import griffinlm
from griffinlm.cli.main import main
from griffinlm.serve.errors import ServeError
from griffinlm.serve.keys import ApiKeys, state_key
from griffinlm.serve.settings import Settings, parse_bytes
from serve.server_process import ServerProcess, server_errors
from serve.test_responses import said

KEYS = "keys"
"""A file of the test's directory."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "::"], "--api-key-file"),
        (["--port", "70000"], "port is 70000"),
        (["--memory-budget", "much"], "memory-budget is 'much'"),
        (["--memory-budget", "1kB"], "the budget for states is 1000 bytes"),
        (["--api-key-file", "none"], "none, the file of API keys, cannot be read"),
        (["--state-key-file", "none"], "none, the file of state key, cannot be read"),
        (["--adapter", "x"], "NAME=DIR"),
        (["--adapter", "x=none"], "there is no adapter"),
        (["--model", "none"], "there is no model"),
        (["--host", "a..b", "--api-key-file", KEYS], "cannot listen on a..b"),
        (["--max-per-key", "0"], "most_per_key is 0"),
        (["--capacity", "100"], "takes none"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / KEYS).write_text("long-enough\n")
    assert main(["serve", "--port", "0", *arguments] if "--port" not in arguments else ["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_port_that_is_taken_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GiB", 8 << 30), ("500 MB", 500_000_000), ("1.5kib", 1536), ("12345", 12345), ("0.5TB", 5 * 10**11)],
)
def test_sizes_as_people_write_them(text, expected):
    assert parse_bytes("size", text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 GiB 2", "1e9", "8XB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ServeError, match="size is"):
        parse_bytes("size", text)


@pytest.mark.parametrize(
    "content", ["", "# none\n", "short", "two words here", "same-key-1\nsame-key-1", "schlüssel-ä"]
)
def test_files_that_hold_no_keys_are_refused(tmp_path, content):
    (tmp_path / "keys").write_text(content, encoding="utf-8")
    with pytest.raises(ServeError):
        ApiKeys.from_file(tmp_path / "keys")


def test_every_key_is_a_tenant_of_its_own_that_does_not_tell_the_key():
    keys = ApiKeys(["key-number-1", "key-number-2"])
    tenants = [keys.tenant(f"Bearer key-number-{number}") for number in (1, 2)]
    assert len(set(tenants)) == 2
    assert all("key" not in tenant for tenant in tenants)
    assert keys.tenant("Bearer key-number-3") is None
    assert keys.tenant("key-number-1") is None


def test_the_state_key_is_made_once_for_its_owner_alone(tmp_path):
    key = state_key(None, tmp_path)
    assert state_key(None, tmp_path) == key
    (made,) = tmp_path.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ServeError, match="at least 32"):
        state_key(tmp_path / "short", None)


def test_hosts_that_others_reach_need_keys(tmp_path):
    (tmp_path / "keys").write_text("long-enough")
    assert Settings(host="0.0.0.0", api_key_file=tmp_path / "keys").host == "0.0.0.0"
    for host in ("127.0.0.1", "localhost", "::1"):
        Settings(host=host)


def test_a_time_in_which_no_answer_could_begin_is_refused():
    with pytest.raises(ServeError, match="request_timeout_seconds is 0; it must be above 0"):
        Settings(request_timeout_seconds=0.0)


def test_a_budget_above_the_memory_there_is_said():
    process = ServerProcess("--memory-budget", "8000TiB")
    with process.client() as client:
        assert client.get("/ready").status_code == 200
    assert process.stop() == 0
    (said,) = [line for line in process.logs if line["message"] == "budget above memory"]
    assert said["budget_bytes"] == 8000 << 40 > said["available_bytes"]


@pytest.fixture(scope="module")
def adapted(tiny_model_directory, tmp_path_factory):
    base = griffinlm.load(tiny_model_directory, threads=1)
    path = tmp_path_factory.mktemp("adapters") / "sharp"
    write_adapter(path, base.config, random_factors(base.config, 0, size=0.2))
    process = ServerProcess("--adapter", f"sharp={path}", model=tiny_model_directory)
    yield process, griffinlm.load(tiny_model_directory, threads=1, adapters={"sharp": path})
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def test_an_adapter_is_asked_for_behind_the_models_name(adapted, tiny_model_directory):
    process, model = adapted
    name = tiny_model_directory.name
    with process.client() as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == [name, f"{name}:sharp"]
        texts = []
        for asked, adapter in ((name, None), (f"{name}:sharp", "sharp"), (name, None)):
            body = {"model": asked, "prompt": "the hawk", "max_tokens": 12, "temperature": 0}
            texts.append(client.post("/v1/completions", json=body).json()["choices"][0]["text"])
            assert texts[-1] == model.with_adapter(adapter).generate("the hawk", max_tokens=12, temperature=0).text
        assert texts[0] == texts[2] != texts[1]
        first = client.post("/v1/responses", json={"model": name, "input": "the hawk", "max_output_tokens": 4}).json()
        question = {"input": "and?", "max_output_tokens": 8, "temperature": 0, "model": f"{name}:sharp"}
        by_id = client.post("/v1/responses", json={**question, "previous_response_id": first["id"]}).json()
        messages = [*said("the hawk", first["output"][0]["content"][0]["text"], "and?")]
        whole = client.post("/v1/responses", json={**question, "input": messages}).json()
        assert by_id["output"][0]["content"] == whole["output"][0]["content"]
        data = client.get(f"/v1/states/{by_id['id']}/download").content
        assert client.post("/v1/states/upload", content=data).status_code == 200


def test_a_model_with_global_attention_is_served_within_its_capacity(tiny_gemma_directory):
    process = ServerProcess("--capacity", "64", model=tiny_gemma_directory)
    name = tiny_gemma_directory.name
    with process.client() as client:
        body = {"model": name, "input": "the hawk", "max_output_tokens": 6, "temperature": 0}
        first = client.post("/v1/responses", json=body).json()
        second = client.post("/v1/responses", json={**body, "previous_response_id": first["id"]}).json()
        assert second["output"], second
        too_long = client.post("/v1/responses", json={**body, "max_output_tokens": 65})
        assert too_long.status_code == 400
        assert "the capacity is 64" in too_long.json()["error"]["message"]
        response = client.post("/v1/embeddings", json={"model": name, "input": "x"})
        assert response.status_code == 400
    assert process.stop() == 0
    assert server_errors(process.logs) == []
