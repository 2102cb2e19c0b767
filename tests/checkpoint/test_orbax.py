"""DeepMind's Flax directories, in every layout that orbax writes, are read without jax."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from griffinlm.checkpoint import CheckpointError, open_checkpoint
from griffinlm.checkpoint.names import entries

from .models import GRIFFINS, TYPES, Tensors, assert_same_bits, random_tensors

tensorstore = pytest.importorskip("tensorstore")

CONFIG = GRIFFINS["ends in attention"]
LAYOUTS = ["zarr", "zarr3", "nested zarr", "ocdbt zarr", "ocdbt zarr3"]


def flax_tensors(dtype: str) -> Tensors:
    tensors = random_tensors(CONFIG, dtype)
    return {e.theirs: e.layout.pack(*(tensors[name] for name in e.ours)) for e in entries("flax", CONFIG)}


def store(directory: Path, tensors: Tensors, layout: str, prefix: str = "params.") -> Path:
    """Writes what orbax writes of the arrays; `_METADATA`, which says it is a checkpoint, has no content here."""
    directory.mkdir(parents=True)
    (directory / "_METADATA").write_text("{}")
    base = {"driver": "file", "path": f"{directory}/"}
    context = tensorstore.Context({"file_io_sync": False})
    for name, values in tensors.items():
        key = f"{prefix}{name}"
        if layout.startswith("nested"):
            # Only the dot of "blocks.0" is part of a name.
            key = key.replace(".", "/").replace("blocks/", "blocks.")
        place: dict[str, Any] = {**base, "path": f"{directory}/{key}/"}
        if layout.startswith("ocdbt"):
            place = {"driver": "ocdbt", "base": base, "path": f"{key}/"}
        array = tensorstore.open(
            {"driver": layout.split()[-1], "kvstore": place, "store_data_equal_to_fill_value": True},
            context=context,
            create=True,
            dtype=values.dtype.name,
            shape=values.shape,
        ).result()
        array.write(np.ascontiguousarray(values)).result()
    return directory


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_bit_equal(layout: str, dtype: str, tmp_path: Path):
    directory = store(tmp_path / "model", flax_tensors(dtype), layout)
    checkpoint = open_checkpoint(directory, CONFIG)
    assert checkpoint.format == "flax"
    assert_same_bits(checkpoint, random_tensors(CONFIG, dtype))


@pytest.mark.parametrize("prefix", ["", "params."])
def test_the_tree_may_stand_in_params_and_in_an_item_directory(prefix: str, tmp_path: Path):
    store(tmp_path / "step" / "default", flax_tensors("float32"), "ocdbt zarr", prefix)
    assert_same_bits(open_checkpoint(tmp_path / "step", CONFIG), random_tensors(CONFIG))


def test_a_configuration_is_asked_for(tmp_path: Path):
    store(tmp_path / "model", {"final_norm.scale": np.zeros(24, np.float32)}, "zarr")
    with pytest.raises(CheckpointError, match="does not say which model it is"):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_faults_are_found_at_once(layout: str, tmp_path: Path):
    tensors = flax_tensors("float32")
    del tensors["blocks.0.recurrent_block.linear_x.kernel"]
    tensors["blocks.2.attention_block.proj_k.kernel"] = np.zeros((12, 24), np.float32)
    tensors["blocks.1.extra.w"] = np.zeros(3, np.float32)
    store(tmp_path / "model", tensors, layout)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "model", CONFIG)
    assert caught.value.faults == [
        "blocks.0.recurrent_block.linear_x.kernel is missing, expected [24, 40] float32, bfloat16 or float16",
        "blocks.1.extra.w is unexpected, found [3] float32",
        "blocks.2.attention_block.proj_k.kernel is [12, 24] float32, expected [24, 12] float32, bfloat16 or float16",
    ]


@pytest.mark.parametrize("layout", ["zarr", "zarr3"])
def test_a_lost_chunk_is_damage_and_not_zeros(layout: str, tmp_path: Path):
    directory = store(tmp_path / "model", flax_tensors("float32"), layout)
    chunk = directory / "params.final_norm.scale" / ("0" if layout == "zarr" else "c/0")
    chunk.unlink()
    checkpoint = open_checkpoint(directory, CONFIG)
    with pytest.raises(CheckpointError, match=r"cannot read final_norm\.scale of .* is missing"):
        checkpoint.tensor("final_norm.scale")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_one_error(layout: str, tmp_path: Path):
    directory = store(tmp_path / "model", flax_tensors("float32"), layout)
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "_METADATA"]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:50])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory, CONFIG).digest()
    assert str(caught.value).isprintable()


NO_TENSORSTORE = """
import sys
sys.modules["tensorstore"] = None
from griffinlm.checkpoint import CheckpointError, open_checkpoint
from griffinlm.config import ModelConfig
try:
    open_checkpoint(sys.argv[1], ModelConfig.preset("tiny-hawk"))
except CheckpointError as error:
    print(error, error.hint, sep="|")
"""


def test_without_tensorstore_the_hint_says_what_to_install(tmp_path: Path):
    directory = store(tmp_path / "model", flax_tensors("float32"), "zarr")
    done = subprocess.run(
        [sys.executable, "-c", NO_TENSORSTORE, str(directory)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("which is not installed|pip install griffinlm[orbax]")


@pytest.mark.parametrize("checkpointer", ["PyTreeCheckpointer", "StandardCheckpointer", "without OCDBT"])
def test_what_orbax_itself_writes_is_read_bit_equal(checkpointer: str, tmp_path: Path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint writes these files")
    tree: dict[str, Any] = {"params": {}}
    for name, values in flax_tensors("bfloat16").items():
        *path, leaf = name.replace("blocks.", "blocks_").split(".")
        node = tree["params"]
        for part in path:
            node = node.setdefault(part.replace("blocks_", "blocks."), {})
        node[leaf] = np.ascontiguousarray(values)
    makers = {
        "PyTreeCheckpointer": orbax.PyTreeCheckpointer,
        "StandardCheckpointer": orbax.StandardCheckpointer,
        "without OCDBT": lambda: orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_ocdbt=False)),
    }
    with makers[checkpointer]() as writer:
        writer.save(tmp_path / "model", tree)
    assert_same_bits(open_checkpoint(tmp_path / "model", CONFIG), random_tensors(CONFIG, "bfloat16"))
