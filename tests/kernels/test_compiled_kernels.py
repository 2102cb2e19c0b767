"""Every Triton kernel compiles for an A100 and an H100 without one, and spills no register."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Shared memory that a program may have, by compute capability."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """In a process of its own: this one may have been told to interpret."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), *map(str, SHARED_BYTES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_without_spills_and_within_shared_memory(reports, capability):
    found = [report for report in reports if report["capability"] == capability]
    kernels = {report["kernel"].split()[0] for report in found}
    step = {"out", "logits", "hidden", "recurrent_inputs", "recurrent_outputs", "attention_inputs"}
    assert kernels == {"forward", "backward", "carry", "split", "join", *step, "soft_cap", "draw_parts", "draw_join"}
    for report in found:
        assert report["spill_bytes"] == 0, report
        assert report["shared_bytes"] <= SHARED_BYTES[capability], report


def test_scans_load_ahead_and_nothing_is_added_in_an_order_left_to_chance(reports):
    for report in reports:
        assert not report["has_atomics"], report
        if report["kernel"].startswith(("forward", "backward")):
            assert report["is_pipelined"], report
            # Three programs of four warps share a processor's 65,536 registers.
            assert report["registers"] <= 168, report


def test_steps_multiply_several_rows_in_bfloat16_on_tensor_cores(reports):
    found = [report for report in reports if re.fullmatch("split bf16|.* bf16 (16|32|64) rows", report["kernel"])]
    assert len(found) == 19 * len(SHARED_BYTES)
    assert all(report["has_tensor_cores"] for report in found)


def test_matrices_are_loaded_ahead_and_two_programs_fit_on_a_processor(reports):
    """Of an H100's 65,536 registers, so that one computes while the other waits, at rows that steps are fused for."""
    for report in reports:
        if "rows" in report["kernel"] and "64 rows" not in report["kernel"] and report["capability"] == 90:
            assert report["is_pipelined"] or report["kernel"].startswith("recurrent_outputs"), report
            assert 2 * report["registers"] * report["num_threads"] <= 65_536, report
            assert 2 * report["shared_bytes"] <= SHARED_BYTES[report["capability"]], report


def test_kernels_that_begin_early_wait_before_they_read(reports):
    """Once, for the kernel before; the others do not wait, and one that did could not be compiled for an A100."""
    found = [report for report in reports if report["kernel"].endswith(", overlapped")]
    assert len(found) == 12
    assert {report["capability"] for report in found} == {90}
    for report in reports:
        assert report["waits"] == int(report in found), report
        assert not report["reads_before_waiting"], report
