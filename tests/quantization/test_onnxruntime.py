"""The stored arrays mean to ONNX Runtime what they mean here."""

import numpy as np
import pytest

from griffinlm.quantization import Format, dequantize, quantize

onnxruntime = pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx.helper")

FLOAT, UINT8 = 1, 2
BLOCK_FORMATS = [Format(4, 16), Format(4, 32), Format(4, 128), Format(8, 32), Format(8, 128)]


def run(node: object, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The one output of a graph of one node."""
    element_types = {"float32": FLOAT, "uint8": UINT8, "int8": 3, "int64": 7}
    inputs = [helper.make_tensor_value_info(n, element_types[a.dtype.name], a.shape) for n, a in feeds.items()]
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("out", FLOAT, None)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("accuracy", [0, 4])
@pytest.mark.parametrize("shape", [(24, 256), (7, 100)])
@pytest.mark.parametrize("format", BLOCK_FORMATS, ids=lambda format: format.name)
def test_matmulnbits_multiplies_by_the_dequantized_matrix(format: Format, shape: tuple[int, int], accuracy: int):
    random = np.random.default_rng(0)
    matrix, x = random.standard_normal(shape, np.float32), random.standard_normal((3, shape[1]), np.float32)
    stored = quantize(matrix, format)
    assert (stored.scales < 0).any()
    assert (stored.scales > 0).any()
    node = helper.make_node(
        "MatMulNBits",
        ["x", "numbers", "scales"],
        ["out"],
        domain="com.microsoft",
        K=shape[1],
        N=shape[0],
        bits=format.bits,
        block_size=format.block_size,
        accuracy_level=accuracy,
    )
    out = run(node, {"x": x, "numbers": stored.numbers, "scales": stored.scales})
    expected = x @ dequantize(stored.numbers, stored.scales, format, shape[1]).T
    # At level 4 the activations are rounded to 8 bits a block.
    tolerance = 1e-5 if accuracy == 0 else 0.02
    assert np.linalg.norm(out - expected) < tolerance * np.linalg.norm(expected)


def test_qgemm_multiplies_by_the_dequantized_channels():
    random = np.random.default_rng(0)
    stored = quantize(random.standard_normal((24, 100), np.float32), Format(8))
    x = random.integers(0, 64, (3, 100)).astype(np.uint8)
    names = ["x", "x_scale", "x_zero", "numbers", "scales", "zeros"]
    node = helper.make_node("QGemm", names, ["out"], domain="com.microsoft", transB=1)
    feeds = {"x": x, "x_scale": np.array(0.5, np.float32), "x_zero": np.array(32, np.uint8), "numbers": stored.numbers}
    out = run(node, feeds | {"scales": stored.scales, "zeros": np.zeros(24, np.int8)})
    expected = 0.5 * (x - np.float32(32)) @ dequantize(stored.numbers, stored.scales, Format(8), 100).T
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)
