"""The recurrence h_t = a_t * h_{t-1} + b_t as graph operators: one step, or a chunk by a fixed number of steps."""

from griffinlm.edge.graph import Graph

MAX_CHUNK_TOKENS = 128
GROUP_TOKENS = 8
"""Tokens that are taken one by one, all groups of the chunk side by side; the groups are then joined by doubling."""


def add_scan(graph: Graph, decay: str, inputs: str, initial: str, is_step: str, rows_tokens: str) -> tuple[str, str]:
    """All h_t and the last one, for chunks of up to `MAX_CHUNK_TOKENS`.

    Args:
        decay, inputs: a and b, [M, L]. initial: [B, L]. is_step: whether every row has one token.
        rows_tokens: shape [B, T, -1].

    Returns:
        outputs [M, L], final [B, L].
    """
    step = graph.branch()
    after = step.node("Add", step.node("Mul", decay, initial), inputs)
    chunk = graph.branch()
    outputs, final = _chunk(chunk, decay, inputs, initial, rows_tokens)
    result = graph.choose(is_step, (step, [after, step.node("Identity", after)]), (chunk, [outputs, final]))
    return result[0], result[1]


def add_step(graph: Graph, decay: str, inputs: str, initial: str) -> tuple[str, str]:
    """The same where every row has one token."""
    after = graph.node("Add", graph.node("Mul", decay, initial), inputs)
    return after, after


def add_short_scan(graph: Graph, decay: str, inputs: str, initial: str, rows_tokens: str) -> tuple[str, str]:
    """The same for chunks of up to `GROUP_TOKENS`, with fewer nodes."""
    a = _groups(graph, decay, rows_tokens, fill=1.0)
    b = _groups(graph, inputs, rows_tokens, fill=0.0)
    h, outputs = graph.node("Unsqueeze", initial, graph.integers([1, 2])), []
    for a_t, b_t in zip(a, b, strict=True):
        h = graph.node("Add", graph.node("Mul", a_t, h), b_t)
        outputs.append(h)
    joined = graph.node("Squeeze", graph.node("Concat", *outputs, axis=2), graph.integers([1]))
    num_tokens = graph.node("Slice", rows_tokens, graph.integers([1]), graph.integers([2]))
    real = graph.node("Slice", joined, graph.integers([0]), num_tokens, graph.integers([1]))
    final = graph.node("Squeeze", h, graph.integers([1, 2]))
    return graph.node("Reshape", real, graph.node("Shape", decay)), final


def _chunk(graph: Graph, decay: str, inputs: str, initial: str, rows_tokens: str) -> tuple[str, str]:
    """Within groups of tokens h = P * (h before the group) + H, one by one; then the states between groups."""
    a = _groups(graph, decay, rows_tokens, fill=1.0)
    b = _groups(graph, inputs, rows_tokens, fill=0.0)
    products, sums = [a[0]], [b[0]]
    for a_t, b_t in zip(a[1:], b[1:], strict=True):
        sums.append(graph.node("Add", graph.node("Mul", a_t, sums[-1]), b_t))
        products.append(graph.node("Mul", a_t, products[-1]))
    first = graph.node("Unsqueeze", initial, graph.integers([1]))
    ends = _after_groups(graph, _squeezed(graph, products[-1]), _squeezed(graph, sums[-1]), first)
    before = graph.node("Concat", first, _without_last(graph, ends, 1), axis=1)
    before = graph.node("Unsqueeze", before, graph.integers([2]))
    outputs = [
        graph.node("Add", graph.node("Mul", p, before), s) for p, s in zip(products, sums, strict=True)
    ]  # each [B, G, 1, L]
    joined = graph.node("Concat", *outputs, axis=2)
    flat = graph.node(
        "Reshape",
        joined,
        graph.node(
            "Concat",
            _rows(graph, rows_tokens),
            graph.integers([-1]),
            graph.node("Shape", initial, start=1, end=2),
            axis=0,
        ),
    )
    num_tokens = graph.node("Slice", rows_tokens, graph.integers([1]), graph.integers([2]))
    real = graph.node("Slice", flat, graph.integers([0]), num_tokens, graph.integers([1]))
    final = graph.node("Gather", ends, graph.integers(-1), axis=1)
    return graph.node("Reshape", real, graph.node("Shape", decay)), final


def _rows(graph: Graph, rows_tokens: str) -> str:
    return graph.node("Slice", rows_tokens, graph.integers([0]), graph.integers([1]))


def _squeezed(graph: Graph, value: str) -> str:
    return graph.node("Squeeze", value, graph.integers([2]))


def _groups(graph: Graph, values: str, rows_tokens: str, fill: float) -> tuple[str, ...]:
    """[M, L] as the tokens of groups, `GROUP_TOKENS` times [B, G, 1, L]; the last group is filled up."""
    chunk = graph.node("Reshape", values, rows_tokens)
    num_tokens = graph.node("Slice", rows_tokens, graph.integers([1]), graph.integers([2]))
    missing = graph.node("Mod", graph.node("Neg", num_tokens), graph.integers(GROUP_TOKENS))
    pads = graph.node("Concat", graph.integers([0, 0, 0, 0]), missing, graph.integers([0]), axis=0)
    padded = graph.node("Pad", chunk, pads, graph.constant(fill))
    size = graph.node("Shape", values, start=1, end=2)
    shape = graph.node("Concat", _rows(graph, rows_tokens), graph.integers([-1, GROUP_TOKENS]), size, axis=0)
    return graph.nodes(
        "Split", graph.node("Reshape", padded, shape), count=GROUP_TOKENS, num_outputs=GROUP_TOKENS, axis=2
    )


def _after_groups(graph: Graph, products: str, sums: str, initial: str) -> str:
    """The state after every group [B, G, L]: doubling steps over the groups, then the initial state's share."""
    distance = 1
    while distance < MAX_CHUNK_TOKENS // GROUP_TOKENS:
        earlier_sums = _shifted(graph, sums, distance, 0.0)
        sums = graph.node("Add", graph.node("Mul", products, earlier_sums), sums)
        products = graph.node("Mul", products, _shifted(graph, products, distance, 1.0))
        distance *= 2
    return graph.node("Add", graph.node("Mul", products, initial), sums)


def _shifted(graph: Graph, values: str, distance: int, fill: float) -> str:
    """values [B, G, L] moved to later groups; `fill` where nothing comes before."""
    pads = graph.integers([0, distance, 0, 0, 0, 0])
    return _without_last(graph, graph.node("Pad", values, pads, graph.constant(fill)), distance)


def _without_last(graph: Graph, values: str, count: int) -> str:
    return graph.node("Slice", values, graph.integers([0]), graph.integers([-count]), graph.integers([1]))
