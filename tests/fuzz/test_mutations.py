"""Whatever is damaged, the command line says so in one line: never an exception, never a hang.

NUM_INPUTS says how many inputs of each kind are tried; they are at least 10,000 together. Every input follows from its
number, which a failure names.
"""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from adapters import random_factors, write_adapter
from command_line import CommandLine, assert_one_error
from mutations import damaged, damaged_header, damaged_json

import griffinlm

NUM_INPUTS = {
    "whole/config.json": 900,
    "shards/config.json": 900,
    "whole/model.safetensors": 1000,
    "shards/model.safetensors.index.json": 500,
    "shards/tokenizer.json": 800,
    "whole/tokenizer_config.json": 700,
    "pickle/griffin.pt": 400,
    "state": 2000,
    "adapter_config.json": 500,
    "adapter_model.safetensors": 300,
    "tuned.safetensors": 200,
    "prompt": 1200,
    "chat": 400,
    "documents": 400,
    "arguments": 2200,
}
assert sum(NUM_INPUTS.values()) >= 10_000

ANSWER = ("--max-tokens", "3", "--temperature", "0.7", "--seed", "1")

pytestmark = pytest.mark.timeout(600)


def assert_told(griffin: CommandLine, kind: str, number: int, *arguments: object, stdin: bytes = b"") -> int:
    """The command line ends with 0 and silence on standard error, or with 2 and one error."""
    __tracebackhide__ = True
    try:
        run = griffin(*arguments, stdin=stdin)
        if run.status == 2:
            assert_one_error(run.err)
        else:
            assert (run.status, run.err) == (0, "")
    except BaseException as fault:
        fault.add_note(f"{kind} number {number}: griffin {' '.join(map(repr, map(str, arguments)))[:2000]}")
        raise
    return run.status


def report(capsys: pytest.CaptureFixture[str], kind: str, statuses: list[int]) -> None:
    """Prints how many inputs were tried, and holds that some were refused."""
    assert len(statuses) == NUM_INPUTS[kind]
    assert 2 in statuses
    with capsys.disabled():
        print(f"\n{kind}: {len(statuses)} inputs, {statuses.count(2)} refused", end=" ")


@pytest.mark.parametrize("kind", [kind for kind in NUM_INPUTS if "/" in kind])
def test_damaged_checkpoints(griffin, directory, capsys, kind):
    file: Path = directory / kind
    sound = file.read_bytes()
    ways = {".json": [damaged, damaged_json], ".safetensors": [damaged, damaged_header], ".pt": [damaged]}[file.suffix]
    statuses = []
    for number in range(NUM_INPUTS[kind]):
        random = Random(f"{kind} {number}")
        file.write_bytes(random.choice(ways)(sound, random))
        command = random.choice(
            [("info", file.parent, "--json"), ("generate", "the hawk", "--model", file.parent, *ANSWER)]
        )
        statuses.append(assert_told(griffin, kind, number, *command))
    report(capsys, kind, statuses)


@pytest.mark.usefixtures("loaded_once")
def test_damaged_states(griffin, directory, capsys, tmp_path):
    state, model = tmp_path / "state", ("--model", directory / "whole")
    assert griffin("generate", "the hawk", *model, *ANSWER, "--state-out", state).status == 0
    sound = state.read_bytes()
    statuses = []
    for number in range(NUM_INPUTS["state"]):
        random = Random(f"state {number}")
        state.write_bytes(random.choice([damaged, damaged_header])(sound, random))
        statuses.append(assert_told(griffin, "state", number, "generate", "", *model, *ANSWER, "--state-in", state))
    report(capsys, "state", statuses)


@pytest.mark.parametrize("kind", ["adapter_config.json", "adapter_model.safetensors", "tuned.safetensors"])
def test_damaged_adapters(griffin, directory, capsys, tmp_path, kind):
    """A tuned state is what a model remembers of the begin token alone."""
    model = directory / "whole"
    loaded = griffinlm.load(model)
    if kind == "tuned.safetensors":
        file = chosen = tmp_path / kind
        loaded.read([loaded.tokenizer.bos_id]).save(file)
    else:
        factors = random_factors(loaded.config, 0)
        chosen = write_adapter(tmp_path / "adapter", loaded.config, factors, alpha_pattern={"up": 2})
        file = chosen / kind
    sound, ways = file.read_bytes(), [damaged, damaged_json if kind.endswith(".json") else damaged_header]
    command = ("generate", "the hawk", "--model", model, *ANSWER, "--adapter", chosen)
    assert assert_told(griffin, kind, -1, *command) == 0
    statuses = []
    for number in range(NUM_INPUTS[kind]):
        random = Random(f"{kind} {number}")
        file.write_bytes(random.choice(ways)(sound, random))
        statuses.append(assert_told(griffin, kind, number, *command))
    report(capsys, kind, statuses)


ODD_TEXTS = [
    "", " ", "\n", "\x00", "\x00" * 100, "<bos>", "<eos><pad>", "<start_of_turn>model\n", "<end_of_turn>" * 50,
    "\ufeff", "\u202etxet", "a" * 3000, "é" * 500, "\U0001f9a2" * 300, "\u0301" * 300, "{{ messages }}", "{% raw %}",
    "-", "--json", "<start_of_", "turn>", "\r\n\r\n", "\x1b[2J", "the hawk ",
]  # fmt: skip
ODD_TAILS = [b"", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe2\x80"]


def odd_text(random: Random) -> bytes:
    """UTF-8 of odd texts in a row, half of the time damaged."""
    text = "".join(random.choices(ODD_TEXTS, k=random.randrange(4))).encode()
    return random.choice([text, damaged(text, random), text + random.choice(ODD_TAILS)])


@pytest.mark.usefixtures("loaded_once")
def test_odd_prompts(griffin, directory, capsys):
    statuses = []
    for number in range(NUM_INPUTS["prompt"]):
        random = Random(f"prompt {number}")
        text = b"the hawk\x00 " * 20_000 if number == 0 else odd_text(random)
        command = ["generate", "--model", directory / "whole", *ANSWER]
        if random.random() < 0.3:
            # As Python decodes the arguments of a process: bytes that are no UTF-8 become lone surrogates.
            command += ["--stop", "the hill", "--", text.decode("utf-8", "surrogateescape")]
        else:
            command += ["-"]
        statuses.append(assert_told(griffin, "prompt", number, *command, stdin=text))
    report(capsys, "prompt", statuses)


@pytest.mark.usefixtures("loaded_once")
def test_odd_conversations(griffin, directory, capsys):
    statuses = []
    for number in range(NUM_INPUTS["chat"]):
        random = Random(f"chat {number}")
        lines = b"\n".join(odd_text(random) for _ in range(random.randrange(3)))
        command = ("chat", "--model", directory / "whole", *ANSWER)
        statuses.append(assert_told(griffin, "chat", number, *command, stdin=lines))
    report(capsys, "chat", statuses)


@pytest.mark.usefixtures("loaded_once")
def test_damaged_documents(griffin, directory, capsys, tmp_path):
    sound = b'{"text": "the hawk"}\n{"text": "and the hill", "source": 2}\n'
    statuses = []
    for number in range(NUM_INPUTS["documents"]):
        random = Random(f"documents {number}")
        file = tmp_path / random.choice(["a.jsonl", "a.txt", "a.jsonl.xz"])
        file.write_bytes(damaged(sound, random))
        command = ("evaluate", directory / "whole", "--text", file, "--json")
        statuses.append(assert_told(griffin, "documents", number, *command))
    report(capsys, "documents", statuses)


OPTIONS: dict[str, list[str]] = {
    "generate": [
        "--engine", "--weights", "--window-dtype", "--device", "--threads", "--min-tokens", "--temperature", "--top-k",
        "--top-p", "--min-p", "--repetition-penalty", "--presence-penalty", "--frequency-penalty", "--stop", "--seed",
        "--state-in", "--state-out", "--json",
    ],
    "chat": ["--engine", "--weights", "--threads", "--min-tokens", "--temperature", "--top-k", "--stop", "--seed"],
    "info": ["--json"],
    "pull": ["--revision", "--json"],
    "convert": ["--to", "--random", "--preset", "--config", "--dtype", "--seed", "--json"],
    "quantize": ["--bits", "--block", "--layer", "--json"],
    "evaluate": ["--text", "--weights", "--engine", "--threads", "--limit", "--json"],
}  # fmt: skip
ODD_NUMBERS = [
    "-1", "0", "1", "2", "3", "0.5", "1.5", "1e-320", "1e-30", "1e30", "1e308", "1e999", "inf", "-inf", "-1e308",
    "nan", "0x10", "1_0", "٣", "1.0", "9" * 400, "9" * 5000, str(2**31), str(2**63 - 1), str(2**63), str(2**64), "-0",
    "", "one",
]  # fmt: skip
ODD_WORDS = [
    "channel", "int4-block32", "*=int8-channel", "*.up.weight=float32", "=", "[=x", "embedding.weight=int4-block16",
    "", " ", "-", "--", "true", "null", "auto", "torch", "onnx", "float32", "bfloat16", "float16", "float64", "int8",
    "int4", "cpu", "cpu:1", "cuda", "meta", "mps", "cuda:99", "huggingface", "deepmind", "griffinlm", "flax",
    "tiny-hawk", "tiny-griffin", "eyas ", "../x", "a/b", "a/b/c", ".", "/", "/dev/null", "/nowhere/x", "x" * 300,
    "x/" * 3000, "a\nb", "a\x1b[31m", "\udcff", "état", "<bos>", "--json", "--seed", "--help", "-h", "-x",
    "--max-tokens", "--max-tokens=2", "--=", "--stop=", "text.txt", "state", "model", "-vvv",
]  # fmt: skip
NUMERIC = {
    "--threads", "--min-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty",
    "--presence-penalty", "--frequency-penalty", "--seed", "--limit", "--bits", "--block",
}  # fmt: skip


def odd_value(option: str, random: Random) -> str:
    """Mostly of the kind that the option takes."""
    return random.choice(ODD_NUMBERS if (option in NUMERIC) == (random.random() < 0.8) else ODD_WORDS)


def odd_arguments(random: Random, griffin: Path, gemma: Path) -> list[Any]:
    """A command with a sensible beginning, some of its options with odd values, and odd words."""
    model, max_tokens = random.choice(
        [(griffin, "2"), (griffin, "2"), (gemma, random.choice(["2", "9" * 9, "9" * 30]))]
    )
    words: dict[str, list[Any]] = {
        "generate": ["the hawk", "--model", model, "--max-tokens", max_tokens],
        "chat": ["--model", model, "--max-tokens", max_tokens],
        "info": [model],
        "pull": ["some/model", "--offline"],
        "convert": [model, "out", "--to", "griffinlm"],
        "quantize": [model, "out"],
        "evaluate": [model, "--text", "text.txt"],
    }
    command = random.choice([*words, "generate", "generate", "convert"])
    line: list[Any] = [command, *(words[command] if random.random() < 0.9 else words[command][1:])]
    for option in random.sample(OPTIONS[command], random.randrange(min(4, len(OPTIONS[command]) + 1))):
        line += [option] if option == "--json" else [option, odd_value(option, random)]
    for _ in range(random.choice([0, 0, 0, 0, 1, 2])):
        line.insert(random.randrange(len(line) + 1), random.choice([*ODD_WORDS, *ODD_NUMBERS]))
    return line


@pytest.mark.usefixtures("loaded_once")
def test_odd_arguments(griffin, directory, tiny_gemma_directory, capsys, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text("the hawk")
    statuses = []
    for number in range(NUM_INPUTS["arguments"]):
        line = odd_arguments(Random(f"arguments {number}"), directory / "whole", tiny_gemma_directory)
        statuses.append(assert_told(griffin, "arguments", number, *line, stdin=b"the hawk\n"))
    assert statuses.count(0) > 100
    report(capsys, "arguments", statuses)
