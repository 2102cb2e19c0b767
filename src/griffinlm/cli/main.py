"""The command `griffin`: imports the file of the command that is asked for, and tells every fault in one line."""

import errno
import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from griffinlm.cli.output import (
    discard_output,
    force_utf8,
    is_out_of_memory,
    one_line,
    print_error,
    print_json,
    quiet_libraries,
)
from griffinlm.errors import GriffinError

COMMANDS = (
    "generate",
    "chat",
    "serve",
    "pull",
    "info",
    "convert",
    "quantize",
    "recursive",
    "exits",
    "export",
    "train",
    "estimate",
    "evaluate",
    "bench",
)
"""Each is a function of its own name in the file of its own name; one with commands of its own is a Typer."""

USER_FAULT, INTERRUPTED, NOBODY_READS = 2, 130, 141
PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}


class StrictCommand(TyperCommand):
    """Refuses an option given twice, of which the last would win silently; tells faults as JSON too under `--json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        order: list[Any] = self.make_parser(ctx).parse_args(list(args))[2]
        for parameter, times in Counter(order).items():
            if times > 1 and not parameter.multiple:
                raise typer.BadParameter(f"it is given {times} times", ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GriffinError as error:
            if ctx.params.get("as_json"):
                # A word of the command line may be no UTF-8, which JSON must be.
                hint = None if error.hint is None else one_line(error.hint)
                faults = [one_line(fault) for fault in getattr(error, "faults", [])]
                print_json({"error": one_line(str(error)), "hint": hint, "faults": faults})
            raise


class Commands(TyperGroup):
    """The commands, each imported when it is named or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(importlib.import_module(f"griffinlm.cli.{cmd_name}"), cmd_name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(**PLAIN)
            single.command(cmd_name, cls=StrictCommand)(found)
            found = single
        return typer.main.get_command(found)


app = typer.Typer(cls=Commands, **PLAIN)


def _print_version(wanted: bool) -> None:
    if wanted:
        from griffinlm import __version__

        print(f"griffin {__version__}")
        raise typer.Exit


@app.callback()
def griffin(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Language models whose memory does not grow."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; gives the exit status.

    Returns:
        0; 2 for a fault of the user's, told in one `error:` line and at most one `hint:` line; 130 when interrupted;
        141 when whoever read the output went away.
    """
    force_utf8()
    with quiet_libraries():
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            return NOBODY_READS
        except typer.TyperException as error:
            path = getattr(getattr(error, "ctx", None), "command_path", "griffin")
            print_error(_fault_of_value(error) or error.format_message(), f"{path} --help tells what is allowed")
        except GriffinError as error:
            print_error(str(error), error.hint)
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename}: "
            if error.errno == errno.ENOSPC and not where:
                # Those who write files name them.
                where = "standard output: "
            print_error(f"{where}{error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print_error("there is not enough memory")
        finally:
            discard_output()
    return USER_FAULT


def _fault_of_value(error: Exception) -> str | None:
    """Of an option that could not be read: its name, the value found and what is allowed; None for other faults."""
    found = getattr(error.__cause__, "errors", None)
    parameter = getattr(error, "param", None)
    if found is None or parameter is None:
        return None
    first = found()[0]
    allowed = first["msg"].partition(",")[0].replace("Input should be", "it must be")
    return f"{'/'.join(parameter.opts)} is {first['input']!r}; {allowed}"


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("griffin", arguments) as context:
            command.invoke(context)
    except typer.Exit as exit:
        sys.stdout.flush()
        return exit.exit_code
    sys.stdout.flush()
    return 0
