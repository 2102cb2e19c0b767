"""The same application on Ray Serve: replicas of it behind one address, as many as are asked for or needed."""

import os
import re
import signal
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from griffinlm.checkpoint import open_checkpoint
from griffinlm.errors import in_one_line
from griffinlm.generation.budget import DEFAULT_SLOTS_AT_MOST
from griffinlm.loading import find_model, load
from griffinlm.serve.app import create_app
from griffinlm.serve.errors import ServeError
from griffinlm.serve.guard import Message, Receive, Send
from griffinlm.serve.keys import ApiKeys
from griffinlm.serve.logs import log_event, start_logs
from griffinlm.serve.run import LAST_SECONDS, build, free_port
from griffinlm.serve.settings import Settings

APPLICATION = "griffinlm"
REPLICA_HEADER = b"x-griffin-replica"
"""Names the replica that answered: the machine, as Ray calls it, and the process."""
REQUESTS_BESIDE_ANSWERS = 32
"""That a replica takes beside those for answers: for models, states, metrics."""
HEALTH_SECONDS = 5.0
NUM_STARTS = 3
"""How often a replica may fail to start before all is given up."""
MOST_REPLICAS = 10_000
LOGGING = LoggingConfig(encoding="JSON", log_level="WARNING", enable_access_log=False)
"""Of Ray Serve itself; replicas log requests as `serve` does."""


@dataclass(frozen=True)
class Cluster:
    """Where the replicas run, and how many."""

    address: str | None = None
    """Of a Ray cluster that runs, `auto` or HOST:PORT; None starts one of this machine alone."""
    least_replicas: int = 1
    most_replicas: int = 1
    """Above the least, Ray starts and ends replicas by the requests that are open."""
    requests_per_replica: float = 16.0
    """Open at a time, that Ray aims at when it chooses the number of replicas."""
    threads: int = 1
    """CPU threads of each replica, and the cores that Ray counts for it."""

    def __post_init__(self) -> None:
        if not 1 <= self.least_replicas <= self.most_replicas <= MOST_REPLICAS:
            found = f"{self.least_replicas}-{self.most_replicas}"
            raise ServeError(f"replicas is {found}; it must be N or N-M, numbers that rise in 1..{MOST_REPLICAS}")
        if not 0 < self.requests_per_replica < 1e6:
            raise ServeError(f"requests_per_replica is {self.requests_per_replica}; it must be above 0")


def parse_replicas(text: str) -> tuple[int, int]:
    """Least and most replicas of `2` or `1-8`.

    Raises:
        ServeError: it is neither.
    """
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text.strip())
    if found is None:
        raise ServeError(f"replicas is {text[:40]!r}; it must be a number such as 2, or a range such as 1-8")
    return int(found[1]), int(found[2] or found[1])


def serve_on_ray(load_arguments: Mapping[str, Any], name: str, settings: Settings, cluster: Cluster) -> None:
    """Answers requests on a Ray cluster until the process is told to end (SIGTERM, SIGINT).

    Every replica loads the model and builds the application of `serve`. They share the state directory or the object
    store of the settings, so any of them goes on with any stored conversation. The memory budget is that of each.

    Args:
        load_arguments: of `griffinlm.load`, for each replica; paths are those of every machine of the cluster.

    Raises:
        GriffinError: the model, a file or the address cannot be used, the cluster cannot be reached or has too few
            cores, or the replicas do not start.
    """
    if cluster.most_replicas > 1 and settings.state_directory is None and settings.state_url is None:
        raise ServeError(
            f"{cluster.most_replicas} replicas need a place that they share their conversations through",
            hint="--state-dir DIR on one machine, --state-url URL on several",
        )
    load_arguments, settings = _absolute(load_arguments), _absolute_settings(settings)
    open_checkpoint(find_model(load_arguments["path_or_name"]))
    if settings.api_key_file is not None:
        ApiKeys.from_file(settings.api_key_file)
    port = free_port(settings.host, settings.port)
    start_logs()
    with _ray(cluster) as address:
        _require_cores(cluster)
        try:
            _deploy(load_arguments, name, replace(settings, port=port), cluster)
            with _told_to_end() as end:
                log_event("listening", host=settings.host, port=port, model=name, ray=address)
                end.wait()
        finally:
            # Ray lets every replica finish what it has begun.
            if cluster.address is None:
                serve.shutdown()
            else:
                serve.delete(APPLICATION)
    log_event("ended")


class Replica:
    """One copy of the model and the application around it, in a process of its own.

    Where the thread that computes has failed, Ray's check finds out and starts another replica.
    """

    def __init__(self, load_arguments: Mapping[str, Any], name: str, settings: Settings) -> None:
        start_logs()
        self._keys = None if settings.api_key_file is None else ApiKeys.from_file(settings.api_key_file)
        self._served = build(load(**load_arguments), name, settings)

    def __serve_build_asgi_app__(self) -> Any:
        guard, _ = create_app(self._served, self._keys)
        return _Named(guard, f"{ray.get_runtime_context().get_node_id()[:12]}-{os.getpid()}")

    def check_health(self) -> None:
        if self._served.worker.has_failed:
            raise RuntimeError("the service's thread ended")


class _Named:
    """ASGI middleware that tells in every answer which replica gave it."""

    def __init__(self, app: Any, name: str) -> None:
        self._app, self._name = app, name.encode()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (REPLICA_HEADER, self._name)]
            await send(message)

        await self._app(scope, receive, send_named)


def _deploy(load_arguments: Mapping[str, Any], name: str, settings: Settings, cluster: Cluster) -> None:
    """Starts the replicas, and returns when the least number of them is ready."""
    is_fixed = cluster.least_replicas == cluster.most_replicas
    scaling = AutoscalingConfig(
        min_replicas=cluster.least_replicas,
        max_replicas=cluster.most_replicas,
        target_ongoing_requests=cluster.requests_per_replica,
    )
    uses_gpu = str(load_arguments.get("device", "cpu")).startswith("cuda")
    deployment = serve.deployment(
        name="replica",
        num_replicas=cluster.least_replicas if is_fixed else None,
        autoscaling_config=None if is_fixed else scaling,
        # A replica refuses by itself what is too much for it, and tells how long to wait.
        max_ongoing_requests=settings.most_waiting + DEFAULT_SLOTS_AT_MOST + REQUESTS_BESIDE_ANSWERS,
        ray_actor_options={"num_cpus": cluster.threads, "num_gpus": int(uses_gpu)},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds + LAST_SECONDS,
        max_constructor_retry_count=NUM_STARTS,
    )(serve.ingress()(Replica))
    arguments = dict(load_arguments, threads=cluster.threads)
    options = HTTPOptions(host=settings.host, port=settings.port, keep_alive_timeout_s=round(settings.idle_seconds))
    try:
        serve.start(http_options=options, logging_config=LOGGING)
        application = deployment.bind(arguments, name, settings)
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=LOGGING)
    except (RuntimeError, RayError, RayServeException) as error:
        raise ServeError(f"the replicas do not start: {_last_line(str(error))}") from error


def _last_line(text: str) -> str:
    """The fault itself, of what Ray tells of an exception in a replica."""
    found = re.findall(r"^\s*(?:[\w.]+\.)?\w+(?:Error|Exception): (.+)$", text, re.MULTILINE)
    return in_one_line(found[-1] if found else text)


def _absolute(load_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that mean the same in every working directory."""
    model, adapters = load_arguments["path_or_name"], load_arguments.get("adapters") or {}
    is_place = find_model(model) == Path(model)
    return {
        **load_arguments,
        "path_or_name": Path(model).absolute() if is_place else model,
        "adapters": {name: Path(path).absolute() for name, path in adapters.items()},
    }


def _absolute_settings(settings: Settings) -> Settings:
    names = ("api_key_file", "state_directory", "state_key_file")
    paths = {name: getattr(settings, name) for name in names}
    return replace(settings, **{name: path.absolute() for name, path in paths.items() if path is not None})


@contextmanager
def _ray(cluster: Cluster) -> Any:
    """Ray, started or joined; gives the address that others join it by."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray's reports of its use to its maker
    is_own = cluster.address is None
    try:
        ray.init(
            address="local" if is_own else cluster.address,
            include_dashboard=False if is_own else None,
            configure_logging=False,
            namespace=APPLICATION,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        place = cluster.address or "of this machine"
        raise ServeError(f"the Ray cluster {place} cannot be used: {in_one_line(error)}") from error
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def _require_cores(cluster: Cluster) -> None:
    """Refuses replicas that Ray would wait for forever."""
    wanted, there = cluster.least_replicas * cluster.threads, int(ray.cluster_resources().get("CPU", 0))
    if cluster.address is None and wanted > there:
        raise ServeError(
            f"{cluster.least_replicas} replicas of {cluster.threads} threads need {wanted} cores; there are {there}"
        )


@contextmanager
def _told_to_end() -> Any:
    """An event that is set when the process gets SIGTERM or SIGINT."""
    end = threading.Event()

    def on_signal(_: int, __: FrameType | None) -> None:
        end.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
