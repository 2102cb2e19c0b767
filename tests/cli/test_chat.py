"""griffin chat: one line a turn."""

import pytest

import griffinlm
from griffinlm.cli import chat as chat_module
from griffinlm.cli.main import main
from griffinlm.conversation import Conversation

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


def test_exit_ends_the_conversation(chat):
    assert chat(b"the hawk\n/exit\nthe hill\n") == chat(b"the hawk\n")
    assert chat(b" /exit \n") == chat(b"") == (0, "", "")


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


def test_ctrl_c_cuts_an_answer_short_on_a_terminal_and_the_conversation_goes_on(
    monkeypatch, capsys, tiny_model_directory
):
    monkeypatch.setattr(Conversation, "say", interrupted)
    lines = iter(["the hawk", "the hill"])

    def typed(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(chat_module, "is_typed", lambda: True)
    assert main(["chat", "--model", str(tiny_model_directory)]) == 0
    assert capsys.readouterr().out == "half\nhalf\n\n"
