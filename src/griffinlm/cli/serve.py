"""griffin serve: a model behind OpenAI's HTTP interface, and a chat page."""

from pathlib import Path
from typing import Annotated

import typer

from griffinlm.cli import options as o
from griffinlm.errors import GriffinError


def serve(
    model: o.Model = "eyas",
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="0 takes a free one.")] = 8000,
    memory_budget: Annotated[
        str, typer.Option("--memory-budget", metavar="SIZE", help="Memory for all states together, such as 8GiB.")
    ] = "2GiB",
    disk_budget: Annotated[
        str, typer.Option("--disk-budget", metavar="SIZE", help="Most that the state directory may hold.")
    ] = "16GiB",
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="One key a line; each is a tenant that sees its own only."),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", metavar="DIR", help="Keep states and responses here, beyond the process."),
    ] = None,
    state_key_file: Annotated[
        Path | None,
        typer.Option("--state-key-file", metavar="FILE", help="Signs states that leave; made in DIR if not given."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=DIR", help="An adapter, asked for as MODEL:NAME; may be repeated."),
    ] = None,
    engine: o.Engine = "auto",
    weights: o.Weights = None,
    window_dtype: o.WindowType = None,
    device: o.Device = "cpu",
    capacity: o.Capacity = None,
    most_waiting: Annotated[
        int, typer.Option("--max-waiting", metavar="N", help="Answers that may wait for their turn.")
    ] = 64,
    most_per_key: Annotated[
        int | None, typer.Option("--max-per-key", metavar="N", help="Answers that one API key may have open.")
    ] = None,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", metavar="SECONDS", help="Most that an answer may take.")
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option("--drain-seconds", metavar="SECONDS", help="For answers that run when told to end.")
    ] = 30.0,
    threads: o.Threads = None,
) -> None:
    """Serve a model: OpenAI's routes under /v1, a chat page at /.

    Without API keys only this machine may ask. SIGTERM ends it when the answers on their way are done.
    """
    try:
        from griffinlm.serve.run import serve as run
        from griffinlm.serve.settings import Settings, parse_bytes
    except ModuleNotFoundError as error:
        raise GriffinError("the server is not installed", hint="pip install 'griffinlm[serve]'") from error
    from griffinlm.loading import load

    settings = Settings(
        host=host,
        port=port,
        memory_budget_bytes=parse_bytes("memory-budget", memory_budget),
        disk_budget_bytes=parse_bytes("disk-budget", disk_budget),
        api_key_file=api_key_file,
        state_directory=state_dir,
        state_key_file=state_key_file,
        capacity=capacity,
        most_waiting=most_waiting,
        most_per_key=most_per_key,
        request_timeout_seconds=request_timeout,
        drain_seconds=drain_seconds,
    )
    loaded = load(
        model,
        engine=engine,
        device=device,
        weights=weights,
        window_dtype=window_dtype,
        threads=threads,
        adapters=_adapters(adapter or []),
    )
    run(loaded, Path(model).name, settings)


def _adapters(given: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, is_pair, path = text.partition("=")
        if not (name and is_pair and path) or name in found:
            raise GriffinError(f"adapter is {text!r}; it must be NAME=DIR, every name once")
        found[name] = Path(path)
    return found
