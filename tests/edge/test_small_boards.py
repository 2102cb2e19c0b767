"""Under a memory limit a model that fits runs as without one, and one that does not is refused before it is loaded."""

import dataclasses
import json
import math
import re
import struct
import subprocess
import sys

import pytest

from griffinlm.checkpoint.config_file import CONFIG_FILE, our_fields
from griffinlm.checkpoint.store import SINGLE_FILE
from griffinlm.config import ModelConfig

resource = pytest.importorskip("resource")

PROGRAM = "import sys; from griffinlm.cli.main import main; sys.exit(main())"
GENERATE = ("generate", "Once upon a time", "--max-tokens", "8", "--seed", "3", "--threads")
ADDRESSES = r"error: (\S+) needs ([\d,]+) MB of address space \(threads: {threads}\); ulimit -v leaves ([\d,]+) MB"
LIMIT_BYTES = 2 << 30
MOST_SECONDS = 300
"""Only a process that hangs takes as long."""


def griffin(*arguments, address_bytes=None):
    """The command under `ulimit -v`, as it ended."""

    def limit():
        if address_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))

    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=MOST_SECONDS)


def write_hollow(directory, config):
    """A model whose weights were never written: their file has a length and takes no room. Gives their bytes."""
    header, num_bytes = {}, 0
    for name, shape in config.parameter_shapes().items():
        end = num_bytes + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [num_bytes, end]}
        num_bytes = end
    text = json.dumps(header).encode()
    (directory / CONFIG_FILE).write_text(json.dumps(our_fields(config)))
    with (directory / SINGLE_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + num_bytes)
    return num_bytes


def test_under_a_limit_that_it_fits_into_a_model_writes_the_same():
    free = griffin(*GENERATE, "1")
    limited = griffin(*GENERATE, "1", address_bytes=LIMIT_BYTES)
    assert limited.returncode == 0, limited.stderr
    assert limited.stdout == free.stdout != ""


def test_a_model_too_large_is_refused_in_one_line_with_the_numbers(tmp_path):
    # Its file fits under the limit beside the program, but not the memory to work in.
    config = dataclasses.replace(ModelConfig.preset("kestrel-500m"), vocab_size=240_000)
    num_bytes = write_hollow(tmp_path, config)
    refused = griffin(*GENERATE, "1", "--model", str(tmp_path), address_bytes=LIMIT_BYTES)
    assert refused.returncode == 2
    assert refused.stdout == ""
    found = re.fullmatch(ADDRESSES.format(threads=1), refused.stderr.partition("\n")[0])
    assert found, refused.stderr
    assert found[1] == str(tmp_path)
    wanted, available = (1e6 * int(number.replace(",", "")) for number in found.groups()[1:])
    assert wanted > max(num_bytes, available)


def test_threads_without_room_are_refused_instead_of_waited_for():
    refused = griffin(*GENERATE, "64", address_bytes=LIMIT_BYTES)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert re.match(ADDRESSES.format(threads=64), refused.stderr)
    assert "Traceback" not in refused.stderr
