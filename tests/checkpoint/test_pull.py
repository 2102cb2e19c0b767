"""Fetching from a hub on loopback: cache, resume, and one line for whatever goes wrong."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from griffinlm.checkpoint import open_checkpoint, write_checkpoint

from .hub import COMMIT, Hub, serve
from .models import GRIFFINS, assert_same_bits, random_tensors

CONFIG = GRIFFINS["ends in recurrent"]
REPO = "google/tiny-griffin"
WEIGHTS = "model-00001-of-00002.safetensors"

PROGRAM = """
import json, sys
from griffinlm.checkpoint import CheckpointError, pull
{setup}
try:
    print(json.dumps({{"path": str(pull(**json.loads(sys.argv[1])))}}))
except CheckpointError as error:
    print(json.dumps({{"error": str(error), "hint": error.hint}}))
"""


class Outcome(NamedTuple):
    path: Path | None
    error: str
    hint: str | None


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    two_thirds = 4 * CONFIG.num_parameters * 2 // 3
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "m", "huggingface", shard_bytes=two_thirds)
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "m").iterdir())}
    assert WEIGHTS in files
    with serve() as hub:
        hub.repositories[REPO] = {**files, "README.md": b"# hello", "flax_model.msgpack": b"\0" * 100}
        yield hub


def pull(home: Path, endpoint: str, setup: str = "", **arguments: object) -> Outcome:
    """`pull` in a process of its own, since huggingface_hub reads its environment when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setup=setup), json.dumps({"repo": REPO, **arguments})],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer.get("error", "x").isprintable()
    return Outcome(Path(answer["path"]) if "path" in answer else None, answer.get("error", ""), answer.get("hint"))


def test_a_pulled_model_opens_and_nothing_else_was_fetched(hub: Hub, tmp_path: Path):
    directory = pull(tmp_path / "home", hub.endpoint).path
    assert directory is not None
    assert_same_bits(open_checkpoint(directory), random_tensors(CONFIG))
    assert directory.is_relative_to(tmp_path / "home")
    assert not {"README.md", "flax_model.msgpack"} & {name for name, _ in hub.downloads}


def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub, tmp_path: Path):
    first = pull(tmp_path / "home", hub.endpoint)
    hub.downloads.clear()
    assert pull(tmp_path / "home", hub.endpoint) == first
    assert pull(tmp_path / "home", hub.endpoint, offline=True) == first
    assert pull(tmp_path / "home", hub.endpoint, revision=COMMIT) == first
    assert hub.downloads == []


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub: Hub, tmp_path: Path):
    # huggingface_hub writes pieces of 10 MiB; only whole ones survive the cut.
    piece = 10 << 20
    content = random.Random(0).randbytes(piece + 50_000)
    hub.repositories["google/large"] = {"2b.pt": content}
    hub.cut_after["2b.pt"] = piece + 20_000
    directory = pull(tmp_path / "home", hub.endpoint, repo="google/large").path
    assert directory is not None
    assert hub.downloads == [("2b.pt", 0), ("2b.pt", piece)]
    assert (directory / "2b.pt").read_bytes() == content


def test_a_body_of_the_wrong_size_is_refused_and_can_be_repaired(hub: Hub, tmp_path: Path):
    hub.shortened.add(WEIGHTS)
    outcome = pull(tmp_path / "home", hub.endpoint)
    assert outcome.error.startswith(f"cannot fetch {REPO}: ")
    assert "size" in outcome.error
    assert "not complete in the cache" in pull(tmp_path / "home", hub.endpoint, offline=True).error
    hub.shortened.clear()
    directory = pull(tmp_path / "home", hub.endpoint).path
    assert directory is not None
    assert_same_bits(open_checkpoint(directory), random_tensors(CONFIG))


def test_a_gated_repository_says_what_to_do(hub: Hub, tmp_path: Path):
    hub.gated.add(REPO)
    outcome = pull(tmp_path / "home", hub.endpoint)
    assert outcome.error == f"{REPO} is gated: its licence must be accepted first"
    assert outcome.hint == "accept the licence on the model's page, then log in with `hf auth login` or set HF_TOKEN"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"repo": "google/absent"}, "google/absent does not exist on the hub, or is private"),
        ({"revision": "v9"}, f"{REPO} has no revision 'v9'"),
        ({"repo": "a/b/c"}, "'a/b/c' is no repository name; it must be OWNER/NAME"),
        ({"repo": ""}, "'' is no repository name; it must be OWNER/NAME"),
        ({"repo": "bad name/x\n"}, "is no repository name; it must be OWNER/NAME"),
        ({"offline": True}, f"{REPO} is not complete in the cache"),
    ],
)
def test_what_is_not_there_is_named(hub: Hub, tmp_path: Path, arguments: dict[str, Any], error: str):
    assert error in pull(tmp_path / "home", hub.endpoint, **arguments).error
    assert hub.downloads == []


def test_without_a_network_the_cache_serves_or_the_error_says_so(hub: Hub, tmp_path: Path):
    nowhere = "http://127.0.0.1:9"
    outcome = pull(tmp_path / "home", nowhere)
    assert outcome.error == f"cannot reach the hub to fetch {REPO}"
    assert outcome.hint == "check the network and HF_ENDPOINT"
    first = pull(tmp_path / "home", hub.endpoint)
    assert pull(tmp_path / "home", nowhere) == first


def test_a_repository_without_weights_is_refused(hub: Hub, tmp_path: Path):
    hub.repositories["google/empty"] = {"config.json": b"{}", "README.md": b""}
    outcome = pull(tmp_path / "home", hub.endpoint, repo="google/empty")
    assert outcome.error == "google/empty holds no weights: none of its files is *.safetensors or *.pt"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_a_refused_write_is_one_line(hub: Hub, tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    outcome = pull(tmp_path / "home", hub.endpoint, setup=limit)
    assert outcome.error == f"cannot fetch {REPO}: File too large"
