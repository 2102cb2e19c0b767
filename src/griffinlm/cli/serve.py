"""griffin serve: a model behind OpenAI's HTTP interface, and a chat page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli import options as o
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.serve.settings import Settings

StateUrl = Annotated[
    str | None,
    typer.Option(
        "--state-url", metavar="URL", help="Share conversations with other machines through an object store (fsspec)."
    ),
]
OnRay = Annotated[
    bool, typer.Option("--ray", help="Replicas on Ray Serve: limits, threads and memory are those of each.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="ADDRESS", help="A cluster that runs: auto or HOST:PORT; else one of this machine."
    ),
]
Replicas = Annotated[
    str | None,
    typer.Option("--replicas", metavar="N[-M]", help="How many; from N to M by the requests that are open. 1."),
]
RequestsPerReplica = Annotated[
    float | None,
    typer.Option("--requests-per-replica", metavar="N", help="Open ones that the number of replicas aims at. 16."),
]


def serve(
    model: o.Model = "eyas-it",
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="0 takes a free one.")] = 8000,
    memory_budget: Annotated[
        str,
        typer.Option(
            "--memory-budget",
            metavar="SIZE",
            help="Memory for all states together, such as 8GiB; without --state-dir, an eighth is for what was said.",
        ),
    ] = "2GiB",
    disk_budget: Annotated[
        str,
        typer.Option(
            "--disk-budget",
            metavar="SIZE",
            help="Most that kept states may take in DIR; what was said has up to 1GiB besides.",
        ),
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
    state_url: StateUrl = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=DIR", help="An adapter, asked for as MODEL:NAME; may be repeated."),
    ] = None,
    engine: o.Engine = "auto",
    weights: o.Weights = None,
    window_dtype: o.WindowType = None,
    device: o.Device = "cpu",
    early_exit: o.EarlyExit = False,
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
    on_ray: OnRay = False,
    ray_address: RayAddress = None,
    replicas: Replicas = None,
    requests_per_replica: RequestsPerReplica = None,
) -> None:
    """Serve a model: OpenAI's routes under /v1, a chat page at /.

    Without API keys only this machine may ask. SIGTERM ends it when the answers on their way are done.

    With --ray every replica is a process with the model in it, and any of them goes on with any conversation kept in
    the state directory. A replica has one thread if --threads does not say more.
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
        state_url=state_url,
        capacity=capacity,
        most_waiting=most_waiting,
        most_per_key=most_per_key,
        request_timeout_seconds=request_timeout,
        drain_seconds=drain_seconds,
    )
    loading = {
        "path_or_name": model,
        "engine": engine,
        "device": device,
        "weights": weights,
        "window_dtype": window_dtype,
        "adapters": _adapters(adapter or []),
        "early_exit": early_exit,
    }
    name, ray_options = Path(model).name, (ray_address, replicas, requests_per_replica)
    if on_ray:
        _serve_on_ray(loading, name, settings, threads, *ray_options)
    elif any(option is not None for option in ray_options):
        raise GriffinError("--ray-address, --replicas and --requests-per-replica are options of --ray")
    else:
        run(load(**loading, threads=threads), name, settings)


def _serve_on_ray(
    loading: dict[str, Any],
    name: str,
    settings: "Settings",
    threads: int | None,
    address: str | None,
    replicas: str | None,
    requests_per_replica: float | None,
) -> None:
    try:
        from griffinlm.serve.ray_serve import Cluster, parse_replicas, serve_on_ray
    except ModuleNotFoundError as error:
        raise GriffinError("Ray Serve is not installed", hint="pip install 'griffinlm[ray]'") from error
    least, most = parse_replicas(replicas or "1")
    cluster = Cluster(
        address=address,
        least_replicas=least,
        most_replicas=most,
        threads=threads or 1,
        **({} if requests_per_replica is None else {"requests_per_replica": requests_per_replica}),
    )
    serve_on_ray(loading, name, settings, cluster)


def _adapters(given: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, is_pair, path = text.partition("=")
        if not (name and is_pair and path) or name in found:
            raise GriffinError(f"adapter is {text!r}; it must be NAME=DIR, every name once")
        found[name] = Path(path)
    return found
