"""A converted model: the original where the rank is full, else what the paper's rules and the nearest rest give.

States:
- a rank at or above the full one, whatever the shared layers begin as = the original, on both engines;
- one loop = the original, bit by bit;
- a converted model = the plain model of its matrices W' + up down, on both engines;
- shared parameters are the mean, the first, or the chosen ones of those that become them; all others stay;
- a term is the nearest of its rank to what a layer lost; the report tells what is left;
- converting again gives the same files, and the record says from what.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from edge.models import CAPACITY, config_of, write_model
from recursive_models import unrolled
from tolerances import assert_agree

from griffinlm.checkpoint import Checkpoint, CheckpointError, open_checkpoint, write_checkpoint, write_quantized
from griffinlm.config import ModelConfig, is_matrix
from griffinlm.edge.engine import build_engine
from griffinlm.edge.model import build_graph
from griffinlm.errors import GriffinError
from griffinlm.model.engine import build_engine as build_torch_engine
from griffinlm.quantization import RECIPES, Format, Recipe
from griffinlm.recursive import MatrixReport, Recursion, RecursiveError, write_recursive
from griffinlm.recursive.conversion import RECORD_FILE
from griffinlm.recursive.settings import stepwise_layers

PLAIN = {
    "Griffin": config_of("Griffin", 8),
    "Gemma": config_of("Gemma", 4, use_bias=False),
    "Hawk": config_of("Hawk", 7),
}
"""Griffin and Hawk have layers of their own behind two loops or three."""
INITS = ("stepwise", "average", "lower")
FULL = 1000


@pytest.fixture(scope="module", params=PLAIN)
def source(request, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random model, nothing of which is zero."""
    return write_model(PLAIN[request.param], tmp_path_factory.mktemp("plain"))


@pytest.fixture
def griffin_source(tmp_path: Path) -> Checkpoint:
    return write_model(PLAIN["Griffin"], tmp_path / "plain")


def converted(source: Checkpoint, folder: Path, **changes) -> tuple[Checkpoint, list[MatrixReport]]:
    place = folder / "-".join(map(str, changes.values()))
    reports = write_recursive(source, Recursion(**changes), place)
    return open_checkpoint(place), reports


def logits(checkpoint: Checkpoint, engine: str) -> np.ndarray:
    return _logits(checkpoint.config, checkpoint, engine)


def _logits(config: ModelConfig, checkpoint: Checkpoint, engine: str) -> np.ndarray:
    if engine == "onnx":
        built = build_engine(checkpoint, "float32", 1)
    else:
        built = build_torch_engine(config, checkpoint.tensor, "float32", "float32", "cpu")
    return _read(built, config)


def _read(engine, config: ModelConfig) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 30))
    found = engine.executor(2, CAPACITY if config.needs_capacity else None).prefill([0, 1], tokens, None, "all")
    assert found is not None
    return found


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("has_most_loops", [False, True])
def test_a_full_rank_gives_back_the_original_on_both_engines(source, tmp_path, has_most_loops, init):
    num_loops = source.config.num_layers // len(source.config.block_pattern) if has_most_loops else 2
    found, reports = converted(source, tmp_path, num_loops=num_loops, init=init, rank=FULL)
    assert max(report.relative_error for report in reports) < 1e-5
    for engine in ("torch", "onnx"):
        assert_agree(logits(found, engine), logits(source, engine), "model", "float32", engine)


@pytest.mark.parametrize("tie", ["matrices", "all"])
@pytest.mark.parametrize("init", INITS)
def test_one_loop_is_the_original_bit_by_bit(source, tmp_path, init, tie):
    found, reports = converted(source, tmp_path, num_loops=1, init=init, tie=tie)
    assert {report.distance for report in reports} == {0.0}
    for name, values in source.tensors():
        assert found.tensor(name).tobytes() == values.tobytes(), name
    for engine in ("torch", "onnx"):
        np.testing.assert_array_equal(logits(found, engine), logits(source, engine))


@pytest.mark.parametrize("tie", ["matrices", "all"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_converted_model_equals_the_plain_model_of_its_sums_on_both_engines(source, tmp_path, rank, tie):
    found, _ = converted(source, tmp_path, num_loops=2, init="average", rank=rank, tie=tie)
    config, read = unrolled(found.config, found.tensor)
    expected = _read(build_torch_engine(config, read, "float32", "float32", "cpu"), config)
    for engine in ("torch", "onnx"):
        assert_agree(logits(found, engine), expected, "model", "float32", engine)
    assert np.abs(expected - logits(source, "torch")).max() > 1e-2


@pytest.mark.parametrize("tie", ["matrices", "all"])
@pytest.mark.parametrize("init", INITS)
def test_shared_parameters_begin_as_the_init_says_and_all_others_stay(source, tmp_path, init, tie):
    found, _ = converted(source, tmp_path, num_loops=2, init=init, tie=tie)
    config, picks = found.config, stepwise_layers(found.config)
    places: dict[str, list[str]] = {}
    for place in source.config.parameter_shapes():
        places.setdefault(config.parameter_at(place), []).append(place)
    assert any(len(users) == 2 for users in places.values())
    assert places.keys() == config.parameter_shapes().keys()
    for name, users in places.items():
        expected = source.tensor(users[0])
        if len(users) > 1 and init == "average":
            expected = np.mean([source.tensor(user) for user in users], axis=0)
        elif len(users) > 1 and init == "stepwise":
            _, layer, rest = name.split(".", 2)
            expected = source.tensor(f"layers.{picks[int(layer)]}.{rest}")
        np.testing.assert_allclose(found.tensor(name), expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_report_tells_what_the_nearest_matrix_of_the_rank_leaves(source, tmp_path):
    """The root of the sum of the squares of the smaller singular values (Eckart and Young), over ||W||."""
    found, reports = converted(source, tmp_path, num_loops=2, init="average", rank=3)
    looped = range(found.config.num_looped_layers)
    matrices = [
        name
        for name, shape in source.config.parameter_shapes().items()
        if name.startswith(tuple(f"layers.{i}." for i in looped)) and name.endswith(".weight") and ".conv." not in name
    ]
    assert sorted(report.parameter for report in reports) == sorted(matrices)
    for report in reports:
        matrix = source.tensor(report.parameter).astype(np.float64)
        assert report.shared == found.config.parameter_at(report.parameter)
        rest = matrix - found.tensor(report.shared)
        values = np.linalg.svd(rest, compute_uv=False)
        left = np.sqrt((values[..., report.rank :] ** 2).sum()) / np.linalg.norm(matrix)
        assert report.rank == min(3, *matrix.shape[-2:])
        assert report.distance == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(matrix), rel=1e-4)
        assert report.relative_error == pytest.approx(left, rel=1e-3, abs=1e-5)


def test_terms_of_no_difference_and_terms_asked_to_be_zero_add_nothing_and_can_learn(griffin_source, tmp_path):
    """A layer that is the shared one in all its values has down drawn and up zero, as low-rank adapters begin."""
    lower, reports = converted(griffin_source, tmp_path, num_loops=2, init="lower", rank=2)
    zero, _ = converted(griffin_source, tmp_path, num_loops=2, init="lower", rank=2, low_rank="zero")
    same = {report.parameter for report in reports if report.distance == 0.0}
    assert same == {report.parameter for report in reports if int(report.parameter.split(".")[1]) < 3}
    for checkpoint, untouched in ((lower, same), (zero, {report.parameter for report in reports})):
        for report in reports:
            term = f"{report.parameter.removesuffix('.weight')}.low_rank"
            assert checkpoint.tensor(f"{term}.down").any()
            assert bool(checkpoint.tensor(f"{term}.up").any()) == (report.parameter not in untouched)


@pytest.mark.parametrize(("dtype", "error"), [(None, 4e-3), ("float32", 1e-5)])
def test_terms_make_up_for_the_rounding_of_the_shared_matrix(griffin_source, tmp_path, dtype, error):
    """Of a bfloat16 model in its own type, and in float32, which loses nothing."""
    narrow = tmp_path / "narrow"
    write_checkpoint(griffin_source.config, griffin_source.tensors(), narrow, "griffinlm", "bfloat16")
    source = open_checkpoint(narrow)
    reports = write_recursive(source, Recursion(2, rank=FULL), tmp_path / "out", dtype)
    found = open_checkpoint(tmp_path / "out")
    assert found.types == (dtype or "bfloat16",)
    assert max(report.relative_error for report in reports) < error


def test_converting_again_gives_the_same_files_and_the_record_says_from_what(griffin_source, tmp_path):
    recursion = Recursion(2, "stepwise", 2, "all", seed=5)
    for name in ("one", "other"):
        reports = write_recursive(griffin_source, recursion, tmp_path / name)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
    record = json.loads(one[RECORD_FILE])
    assert record.pop("matrices") == [report._asdict() for report in reports]
    assert record == {
        "format_version": 1,
        **dataclasses.asdict(recursion),
        "source_digest": griffin_source.digest(),
        "stepwise_layers": [0, 1, 5],
    }


def test_a_conversion_that_cannot_be_is_refused_and_leaves_nothing(griffin_source, tmp_path):
    def refusal(source: Checkpoint, **changes) -> str:
        dtype = changes.pop("dtype", None)
        with pytest.raises(GriffinError) as error:
            write_recursive(source, Recursion(**{"num_loops": 2, **changes}), tmp_path / "out", dtype)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))
        return str(error.value)

    assert "num_loops is 3; 8 layers in a pattern of 3 have room for 2" in refusal(griffin_source, num_loops=3)
    assert "num_loops is 0" in refusal(griffin_source, num_loops=0)
    assert "rank is -1" in refusal(griffin_source, rank=-1)
    assert "tie is 'norms'; allowed are matrices, all" in refusal(griffin_source, tie="norms")
    assert "init is 'upper'; allowed are stepwise, average, lower" in refusal(griffin_source, init="upper")
    assert "low_rank is 'one'; allowed are svd, zero" in refusal(griffin_source, low_rank="one")
    assert "dtype is 'int8'; allowed are float32" in refusal(griffin_source, dtype="int8")
    write_quantized(griffin_source, RECIPES["int8"], tmp_path / "quantized")
    assert "is quantized (int8-channel)" in refusal(open_checkpoint(tmp_path / "quantized"))
    recursive, _ = converted(griffin_source, tmp_path, num_loops=2)
    assert "recursive already, with 2 loops" in refusal(recursive)
    with pytest.raises(CheckpointError, match="exists already"):
        write_recursive(griffin_source, Recursion(2), griffin_source.path)


def test_a_type_that_cannot_hold_the_weights_is_refused(griffin_source, tmp_path):
    tensors = dict(griffin_source.tensors())
    tensors["layers.0.mlp.up.weight"] = tensors["layers.0.mlp.up.weight"] * np.float32(1e10)
    write_checkpoint(griffin_source.config, tensors.items(), tmp_path / "large", "griffinlm")
    large = open_checkpoint(tmp_path / "large")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up\.weight holds NaN or infinity"):
        write_recursive(large, Recursion(2, rank=2), tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["huggingface", "deepmind"])
def test_other_formats_refuse_layers_that_share_parameters(griffin_source, tmp_path, format):
    found, _ = converted(griffin_source, tmp_path, num_loops=2)
    with pytest.raises(CheckpointError, match="share parameters"):
        write_checkpoint(found.config, found.tensors(), tmp_path / "other", format)


@pytest.mark.parametrize("format", [Format(8), Format(4, 16)], ids=lambda format: format.name)
def test_terms_stay_float32_or_are_quantized_as_a_pattern_says(griffin_source, tmp_path, format):
    """The onnx engine beside torch on what the integers stand for; terms of gates have no format but float32."""
    found, _ = converted(griffin_source, tmp_path, num_loops=2, init="average", rank=3)
    for number, overrides in enumerate([(), (("*.low_rank.*", format),)]):
        reports = write_quantized(found, Recipe(Format(8), overrides), tmp_path / f"quantized-{number}")
        formats = {r.parameter: r.format for r in reports if ".low_rank." in r.parameter}
        assert len(formats) == 2 * (4 * 6 + 2 * 7)
        assert set(formats.values()) == ({format.name} if overrides else {"float32"})
        quantized = open_checkpoint(tmp_path / f"quantized-{number}")
        found_logits, expected = (logits(quantized, engine) for engine in ("onnx", "torch"))
        assert_agree(found_logits, expected, "model, rounded activations", "float32", "onnx")


def test_engines_hold_a_shared_matrix_once(griffin_source, tmp_path):
    found, _ = converted(griffin_source, tmp_path, num_loops=2, init="average", rank=1)
    torch_engine = build_torch_engine(found.config, found.tensor, "float32", "float32", "cpu")
    assert {name for name, _ in torch_engine.model.named_parameters()} == found.config.parameter_shapes().keys()
    held = {p.untyped_storage().data_ptr(): p.numel() for p in torch_engine.model.state_dict().values()}
    assert sum(held.values()) == found.config.num_parameters
    assert found.num_bytes == 4 * found.config.num_parameters
    names = [tensor.name for tensor in build_graph(found, "float32", 127).proto.graph.initializer]
    shared = [name for name in names if name.endswith(".weight")]
    assert sorted(shared) == sorted(
        n for n, s in found.config.parameter_shapes().items() if is_matrix(n) and len(s) == 2
    )


def test_settings_are_checked_before_any_model_is_looked_at():
    with pytest.raises(RecursiveError, match="init is 'first'"):
        Recursion(2, init="first")  # pyright: ignore[reportArgumentType]
