"""What holds for every command: help without torch, one error line, quiet libraries, UTF-8 in every locale."""

import errno
import json
import logging
import os
import shlex
import subprocess
import sys
import warnings

import pytest
from command_line import assert_one_error

from griffinlm import GriffinError, __version__
from griffinlm.cli import info, pull
from griffinlm.cli.main import COMMANDS
from griffinlm.cli.output import print_json

GRIFFIN = [sys.executable, "-c", "import sys; from griffinlm.cli.main import main; sys.exit(main())"]


def test_help_lists_every_command_with_one_whole_line(griffin):
    run = griffin("--help")
    assert (run.status, run.err) == (0, "")
    listed = {line.split()[0]: line for line in run.out.partition("Commands:\n")[2].splitlines()}
    assert tuple(listed) == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(griffin, command):
    run = griffin(command, "--help")
    assert (run.status, run.err) == (0, "")
    assert run.out.startswith(f"Usage: griffin {command} ")


def test_version(griffin):
    assert griffin("--version") == (0, f"griffin {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "command"),
        (("fly",), "fly"),
        (("--fly",), "--fly"),
        (("generate",), "PROMPT"),
        (("generate", "a", "b"), "b"),
        (("generate", "a", "--fly"), "--fly"),
        (("generate", "a", "--seed"), "--seed"),
        (("generate", "a", "--seed", "many"), "--seed"),
        (("generate", "a", "--temperature", "warm"), "--temperature"),
        (("generate", "a", "--seed", "1", "--seed", "1"), "--seed"),
        (("generate", "a", "--json", "--json"), "--json"),
        (("generate", "a", "--seed=1", "--seed", "2"), "--seed"),
        (("info",), "MODEL"),
        (("evaluate", "eyas"), "--text"),
        (("evaluate", "eyas", "--text", "a.txt", "--limit", "0"), "--limit"),
    ],
)
def test_usage_errors_name_what_is_wrong(griffin, arguments, named):
    assert named in griffin.fails(*arguments)


def test_an_option_that_may_be_repeated_is_no_error(griffin):
    assert "there is no model" in griffin.fails("generate", "a", "--stop", "x", "--stop", "y", "--model", "nowhere")


def test_an_error_is_told_as_json_too_where_json_is_asked_for(griffin):
    run = griffin("info", "nowhere", "--json")
    assert run.status == 2
    assert_one_error(run.err)
    assert run.json.keys() == {"error", "hint", "faults"}
    assert run.err.startswith(f"error: {run.json['error']}\nhint: ")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (GriffinError("two\nlines \x1b[31m", hint="a\thint"), "error: two lines \\x1b[31m\nhint: a hint\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: standard output: No space left on device\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a\udc80b"), "error: a\\udc80b: No such file\n"),
        (OSError("cut off"), "error: cut off\n"),
        (MemoryError(), "error: there is not enough memory\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), "error: there is not enough memory\n"),
    ],
)
def test_faults_of_the_user_and_the_machine_are_one_line(griffin, monkeypatch, fault, told):
    def fail(name: str) -> None:
        raise fault

    monkeypatch.setattr(info, "_open", fail)
    assert griffin("info", "eyas") == (2, "", told)


@pytest.mark.parametrize(("fault", "status"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_interrupts_and_closed_pipes_are_quiet(griffin, monkeypatch, fault, status):
    def fail(name: str) -> None:
        raise fault

    monkeypatch.setattr(info, "_open", fail)
    assert griffin("info", "eyas") == (status, "", "")


def test_a_fault_of_ours_is_not_hidden(griffin, monkeypatch):
    monkeypatch.setattr(info, "_open", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        griffin("info", "eyas")


def test_warnings_and_logs_of_libraries_are_held_back_and_come_back_after(griffin, monkeypatch):
    def noisy(*arguments: object, **options: object) -> str:
        warnings.warn("mind the gap", stacklevel=1)
        logging.getLogger("somewhere").error("something")
        return "path"

    monkeypatch.setattr("griffinlm.checkpoint.pull", noisy)
    assert pull.pull.__module__ == "griffinlm.cli.pull"
    assert griffin("pull", "some/where") == (0, "path\n", "")
    assert logging.root.manager.disable == 0
    with pytest.warns(UserWarning, match="mind the gap"):
        noisy()


def test_help_and_info_need_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from griffinlm.cli.main import main\n"
        "assert main(['--help']) == main(['generate', '--help']) == main(['info', 'recurrentgemma-2b']) == 0"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_output_is_utf8_in_a_locale_that_has_no_such_characters(tmp_path):
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    run = subprocess.run([*GRIFFIN, "info", "大鹰"], capture_output=True, env=environment)
    assert run.returncode == 2
    assert "大鹰" in run.stderr.decode("utf-8") or "\\u" in run.stderr.decode("ascii")
    assert_one_error(run.stderr.decode("utf-8"))


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    with subprocess.Popen([*GRIFFIN, "info", "eyas"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_under_standard_output_is_one_error():
    with open("/dev/full", "wb") as full:
        run = subprocess.run([*GRIFFIN, "info", "eyas"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["info tiny-griffin >&-", "info nothing 2>&-", "generate - <&-", "chat <&-"])
def test_closed_standard_streams_are_no_traceback(tiny_model_directory, command):
    """As a shell closes them; what cannot be written is dropped."""
    command = command.replace("<&-", f"--model {shlex.quote(str(tiny_model_directory))} <&-")
    done = subprocess.run(["sh", "-c", f"{shlex.join(GRIFFIN)} {command}"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


def test_numbers_that_json_lacks_are_null(capsys):
    print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": -float("inf")}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None},
    }


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (("--max-tokens", "abc"), "--max-tokens is 'abc'; it must be a valid integer"),
        (("-n", "0"), "-n/--num-answers is '0'; it must be greater than or equal to 1"),
        (("--temperature", "hot"), "--temperature is 'hot'; it must be a valid number"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_option(griffin, given, fault):
    assert griffin.fails("generate", "x", *given) == f"error: {fault}"
