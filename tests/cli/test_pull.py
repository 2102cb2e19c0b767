"""griffin pull: the local path alone. How the hub is spoken to is tested with the checkpoint room."""

import pytest

from griffinlm.checkpoint import CheckpointError


@pytest.fixture
def asked(monkeypatch):
    """What the checkpoint room was asked for."""
    calls = []

    def pull(repo, offline=False, revision=None):
        calls.append((repo, offline, revision))
        return f"/cache/{repo}"

    monkeypatch.setattr("griffinlm.checkpoint.pull", pull)
    return calls


def test_the_path_alone_is_printed(griffin, asked):
    assert griffin("pull", "some/model") == (0, "/cache/some/model\n", "")
    assert asked == [("some/model", False, None)]


def test_revision_and_offline_are_passed_on(griffin, asked):
    run = griffin("pull", "some/model", "--revision", "main", "--offline", "--json")
    assert run.json == {"repository": "some/model", "revision": "main", "path": "/cache/some/model"}
    assert asked == [("some/model", True, "main")]


def test_a_fault_of_the_hub_is_one_error(griffin, monkeypatch):
    def pull(repo, offline=False, revision=None):
        raise CheckpointError(f"{repo} is gated", hint="accept the licence")

    monkeypatch.setattr("griffinlm.checkpoint.pull", pull)
    assert griffin("pull", "some/model") == (2, "", "error: some/model is gated\nhint: accept the licence\n")


def test_a_repository_that_is_not_in_the_cache_is_refused_offline(griffin, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "some/model" in griffin.fails("pull", "some/model", "--offline")
    assert "no repository name" in griffin.fails("pull", "../etc/passwd", "--offline")
