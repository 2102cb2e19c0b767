"""griffin chat: one line a turn."""

import signal
from typing import Any

import pytest
from rich.cells import cell_len

import griffinlm
from griffinlm.cli import chat as chat_module
from griffinlm.cli.chat_session import COMMANDS
from griffinlm.cli.chat_tree import in_short
from griffinlm.cli.main import main
from griffinlm.cli.output import readable_bytes
from griffinlm.conversation import Conversation, Turn
from griffinlm.state import attention_bytes_per_token

OPTIONS = ("--max-tokens", "9", "--temperature", "0")


@pytest.fixture
def chat(griffin, tiny_model_directory):
    def run(stdin: bytes, *arguments: object):
        return griffin("chat", "--model", tiny_model_directory, *OPTIONS, *arguments, stdin=stdin)

    return run


def test_answers_to_piped_lines_are_those_of_the_conversation(chat, tiny_model_directory):
    conversation = Conversation(griffinlm.load(tiny_model_directory), max_tokens=9, temperature=0)
    expected = "".join("".join(conversation.say(line)) + "\n" for line in ("the hawk", "grün"))
    assert chat("the hawk\n\n  \ngrün".encode()) == (0, expected, "")


@pytest.mark.parametrize(
    ("option", "loaded"), [("--early-exit", {"early_exit": True}), ("--speculate=2", {"num_guesses": 2})]
)
def test_tokens_that_leave_early_or_were_guessed_are_those_of_the_conversation(griffin, option, loaded):
    conversation = Conversation(griffinlm.load("eyas-recursive", **loaded), max_tokens=9, temperature=0)
    expected = "".join(conversation.say("the hawk")) + "\n"
    run = griffin("chat", "--model", "eyas-recursive", *OPTIONS, option, stdin=b"the hawk")
    assert run == (0, expected, "")


def test_exit_ends_the_conversation(chat):
    assert chat(b"the hawk\n/exit\nthe hill\n") == chat(b"the hawk\n")
    assert chat(b" /exit \n") == chat(b"") == (0, "", "")


def test_commands_go_back_and_grow_branches(chat, tiny_model_directory):
    conversation = Conversation(griffinlm.load(tiny_model_directory), max_tokens=9, temperature=0)
    expected = ["".join(conversation.say(text)) for text in ("the hawk", "grow")]
    conversation.go_to(1)
    expected.append("".join(conversation.say("the hill")))
    run = chat(b"the hawk\ngrow\n/rewind\nthe hill\n/fork 0\n/rewind x\n")
    assert run.status == 2
    assert run.err.splitlines()[0] == "error: /rewind x: 'x' is no whole number"
    first, second, third = expected
    places = "behind turn 1: the hawk → ", "at the beginning"
    assert run.out.startswith(f"{first}\n{second}\n{places[0]}")
    assert run.out.endswith(f"\n{third}\n{places[1]}\n")


@pytest.mark.parametrize("line", [b"/rewind " + b"9" * 5000, b"/fork " + b"9" * 5000, b"/save a\0b", b"/load a\0b"])
def test_numbers_without_end_and_names_with_zero_bytes_are_one_line(chat, line):
    run = chat(b"the hawk\n" + line + b"\n")
    assert run.status == 2
    assert len(run.err.splitlines()) == 1
    assert run.err.startswith("error: ")


def test_the_tree_has_a_line_a_turn_and_a_mark_where_the_conversation_is(chat):
    assert chat(b"/tree\n").out == "there are no turns yet\n"
    run = chat(b"one\ntwo\n/rewind\nthree\nfour\n/fork 2\nfive\n/tree\n")
    lines = run.out.splitlines()[-5:]
    drawn = ["    1 one →", "    2 ├─ two →", "*   5 │  five →", "    3 └─ three →", "    4    four →"]
    assert [line[: len(start)] for line, start in zip(lines, drawn, strict=True)] == drawn


@pytest.mark.parametrize(("question", "answer"), [("日本語" * 30, "答え" * 30), ("the hawk" * 9, "鷹"), ("鷹", "yes")])
def test_a_turn_in_short_keeps_to_its_columns_in_every_script(question, answer):
    turn = Turn(1, None, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    for width in range(20, 90):
        assert cell_len(in_short(turn, width)) <= width


def test_a_saved_conversation_goes_on_as_if_uninterrupted(chat, tmp_path):
    path = str(tmp_path / "a conversation").encode()
    whole = chat(b"the hawk\nand the hill\n").out
    assert chat(b"the hawk\n/save " + path + b"\n").out.endswith(f"saved to {path.decode()}\n")
    run = chat(b"/load " + path + b"\nand the hill\n")
    assert run.out.startswith(f"loaded from {path.decode()}, behind turn 1: the hawk")
    assert run.out.splitlines()[1:] == whole.splitlines()[len(whole.splitlines()) - len(run.out.splitlines()) + 1 :]


def test_stats_tell_what_is_kept_and_what_attention_would_keep(chat, tiny_model_directory):
    model = griffinlm.load(tiny_model_directory)
    conversation = Conversation(model, max_tokens=9, temperature=0)
    list(conversation.say("the hawk"))
    run = chat(b"the hawk\n/stats\n")
    told = {line[:17].strip(): line[17:] for line in run.out.splitlines()[-6:]}
    assert (told["tokens"], told["turns"]) == (str(conversation.num_tokens), "1")
    assert told["state"] == readable_bytes(model.new_state().nbytes)
    growing = conversation.num_tokens * attention_bytes_per_token(model.config, "float32")
    assert told["with attention"].startswith(f"{readable_bytes(growing)} at this length")
    assert told["states kept"] == f"1, together {readable_bytes(conversation.kept_bytes)}"
    assert told["last answer"].endswith(" tokens/s")


def test_a_transformers_cache_is_the_state_that_global_attention_grows(tiny_gemma_directory):
    model = griffinlm.load(tiny_gemma_directory)
    sizes = [model.new_state(capacity=capacity).nbytes for capacity in (10, 11)]
    assert sizes[1] - sizes[0] == attention_bytes_per_token(model.config, "float32")


def test_help_names_every_command(chat):
    out = chat(b"/help\n").out
    assert [line.split()[0] for line in out.splitlines()] == [f"/{name}" for name in COMMANDS]


def test_two_slashes_begin_a_message_with_one(chat, tiny_model_directory):
    conversation = Conversation(griffinlm.load(tiny_model_directory), max_tokens=9, temperature=0)
    assert chat(b"//help\n").out == "".join(conversation.say("/help")) + "\n"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/sing", "unknown command /sing"),
        ("/", "unknown command /"),
        ("/save", "/save is used as: /save FILE"),
        ("/fork", "/fork is used as: /fork TURN"),
        ("/fork 9", "there is no turn 9"),
        ("/fork -1", "'-1' is no whole number"),
        ("/tree now", "/tree is used as: /tree"),
        ("/rewind", "1 turns cannot be taken back"),
        ("/load nowhere", "nowhere"),
        ("/save no/where", "no/where"),
    ],
)
def test_faults_end_a_piped_conversation(griffin, tiny_model_directory, monkeypatch, tmp_path, line, named):
    monkeypatch.chdir(tmp_path)
    assert named in griffin.fails("chat", "--model", tiny_model_directory, stdin=f"{line}\nhello\n".encode())


def test_a_line_that_is_no_utf8_is_refused_with_its_place(griffin, tiny_model_directory):
    error = griffin.fails("chat", "--model", tiny_model_directory, stdin=b"\na\xe4\n")
    assert "line 2" in error
    assert "offset 1" in error


def test_a_model_without_tokenizer_cannot_chat(griffin, tiny_model_without_tokenizer):
    assert "no tokenizer" in griffin.fails("chat", "--model", tiny_model_without_tokenizer, stdin=b"hello\n")


def test_options_out_of_range_are_refused(griffin, tiny_model_directory):
    assert "top_p is 2" in griffin.fails("chat", "--model", tiny_model_directory, "--top-p", "2", stdin=b"hello\n")


def interrupted(self: Conversation, text: str):
    """An answer that is cut by Ctrl-C."""
    yield "half"
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_piped_conversation(chat, monkeypatch):
    monkeypatch.setattr(Conversation, "say", interrupted)
    assert chat(b"the hawk\nthe hill\n") == (130, "half", "")


@pytest.fixture
def terminal(monkeypatch, capsys, tiny_model_directory):
    """Lines typed by a person, an exception among them raised; gives what is shown."""

    def run(*lines: str | type[BaseException]) -> str:
        waiting = iter([*lines, EOFError])

        def typed(prompt: str) -> str:
            line = next(waiting)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", typed)
        monkeypatch.setattr(chat_module, "is_typed", lambda: True)
        assert main(["chat", "--model", str(tiny_model_directory), *OPTIONS]) == 0
        return "".join(capsys.readouterr())

    return run


def test_ctrl_c_cuts_an_answer_short_on_a_terminal_and_the_conversation_goes_on(monkeypatch, terminal):
    monkeypatch.setattr(Conversation, "say", interrupted)
    assert terminal("the hawk", "the hill") == "half\nhalf\n\n"


def test_ctrl_c_is_not_heard_again_while_what_it_cut_is_kept(monkeypatch, terminal):
    def say(self: Conversation, text: str):
        try:
            yield "half"
        finally:
            signal.raise_signal(signal.SIGINT)

    def shown(text: str = "", **options: Any) -> None:
        print(text, **options)
        if text == "half":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Conversation, "say", say)
    monkeypatch.setattr(chat_module, "print", shown, raising=False)
    before = signal.getsignal(signal.SIGINT)
    assert terminal("the hawk", "the hill") == "half\nhalf\n\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_an_empty_line_is_no_end(monkeypatch, terminal):
    assert terminal(KeyboardInterrupt, "/tree") == "\nthere are no turns yet\n\n"


def test_an_interrupted_answer_is_kept_as_far_as_it_came(monkeypatch, terminal):
    say = Conversation.say

    def cut(self: Conversation, text: str):
        pieces = say(self, text)
        try:
            yield next(pieces)
            raise KeyboardInterrupt
        finally:
            pieces.close()

    monkeypatch.setattr(Conversation, "say", cut)
    shown = terminal("the hawk", "/tree")
    assert shown.splitlines()[-2].startswith("*   1 the hawk → ")


def test_faults_on_a_terminal_are_told_and_the_conversation_goes_on(terminal):
    assert "error: unknown command /sing" in terminal("/sing", "/tree")
    assert "there are no turns yet" in terminal("/sing", "/tree")


def test_a_terminal_gets_no_character_that_it_would_obey(monkeypatch, terminal):
    monkeypatch.setattr(Conversation, "say", lambda self, text: (piece for piece in ["a\x1b[2J", "\n\tb"]))
    assert terminal("the hawk") == "a\\x1b[2J\n\tb\n\n"
