"""A decoder's step on a GPU in few kernels: each reads one or two matrices once and does all up to the next ones.

A program has some outputs of all rows. One row is multiplied number by number, each thread along the inputs; more rows
on tensor cores. The norm in front costs no pass of its own: its scale is applied to what is multiplied, and the mean
of squares, found on the way, to the sums. Everything is float32 but what tensor cores multiply and what is written.

Not handled here: more rows than one tile has, gradients, float64, tensors that are not contiguous.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false

import triton
import triton.language as tl

from griffinlm.kernels.gated_gelu import blocked
from griffinlm.kernels.linear_scan.triton import coefficients, sigmoid, softplus
from griffinlm.kernels.soft_cap.triton import tanh

CACHE_LINE_BYTES = tl.constexpr(128)
LINEAR, CUBIC = tl.constexpr(blocked.LINEAR), tl.constexpr(blocked.CUBIC)


@triton.jit
def _gelu(x):
    return x * sigmoid(x * (LINEAR + CUBIC * x * x))


@triton.jit
def _begin_early(matrix_ptr, outputs, is_output, OUTPUTS: tl.constexpr, WIDTH: tl.constexpr):
    """Brings rows of a matrix into the cache, which the kernel before does not change, while that one ends."""
    LINE: tl.constexpr = CACHE_LINE_BYTES * 8 // matrix_ptr.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(WIDTH, LINE))
    at = tl.minimum(tl.arange(0, LINES) * LINE, WIDTH - 1)[None, :]
    rows = tl.where(is_output, outputs, 0).to(tl.int64)[:, None] * WIDTH
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [matrix_ptr + rows + at], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _products(
    x_ptr,
    norm_ptr,
    first_ptr,
    second_ptr,
    first_outputs,
    second_outputs,
    is_output,
    num_rows,
    row_stride,
    output_stride: tl.constexpr,
    input_stride: tl.constexpr,
    epsilon,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """norm(x) W^T [ROWS, OUTPUTS] in float32 for outputs of one matrix or of two; rows that are not there give 0.

    Args:
        x_ptr: rows of WIDTH inputs, `row_stride` apart.
        norm_ptr: scale of the norm; None is no norm.
        second_ptr: None is one matrix, whose product is given twice.
        first_outputs, second_outputs, is_output: [OUTPUTS], rows of the matrices, and which of them are there.
        EARLY: the kernel begins while the one before ends, and lets the next one do so. Nothing that another kernel
            has written may be read before this function is called.
    """
    HAS_SECOND: tl.constexpr = second_ptr is not None
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        if input_stride == 1:
            _begin_early(first_ptr, first_outputs, is_output, OUTPUTS, WIDTH)
            if HAS_SECOND:
                _begin_early(second_ptr, second_outputs, is_output, OUTPUTS, WIDTH)
        tl.extra.cuda.gdc_wait()
    rows = tl.arange(0, ROWS)
    is_row = (rows < num_rows)[:, None]
    first_rows = first_outputs.to(tl.int64)[:, None] * output_stride
    second_rows = second_outputs.to(tl.int64)[:, None] * output_stride
    if ROWS == 1:
        squares = tl.full([1, INPUTS], 0.0, tl.float32)
        first = tl.full([OUTPUTS, INPUTS], 0.0, tl.float32)
        second = tl.full([OUTPUTS, INPUTS], 0.0, tl.float32)
    else:
        squares = tl.full([ROWS, 1], 0.0, tl.float32)
        first = tl.full([ROWS, OUTPUTS], 0.0, tl.float32)
        second = tl.full([ROWS, OUTPUTS], 0.0, tl.float32)
    for start in tl.range(0, WIDTH, INPUTS, num_stages=STAGES):
        inputs = (start + tl.arange(0, INPUTS))[None, :]
        is_input = inputs < WIDTH
        is_weight = is_output[:, None] & is_input
        weights = tl.load(first_ptr + first_rows + inputs * input_stride, mask=is_weight, other=0.0)
        if HAS_SECOND:
            others = tl.load(second_ptr + second_rows + inputs * input_stride, mask=is_weight, other=0.0)
        x = tl.load(x_ptr + rows[:, None] * row_stride + inputs, mask=is_row & is_input, other=0.0)
        if norm_ptr is not None:
            precise = x.to(tl.float32)
            scale = 1.0 + tl.load(norm_ptr + inputs, mask=is_input, other=0.0).to(tl.float32)
            if ROWS == 1:
                squares += precise * precise
            else:
                squares += tl.sum(precise * precise, axis=1, keep_dims=True)
            x = (precise * scale).to(x.dtype) if ROWS > 1 else precise * scale
        if ROWS == 1:
            first += weights.to(tl.float32) * x.to(tl.float32)
            if HAS_SECOND:
                second += others.to(tl.float32) * x.to(tl.float32)
        else:
            first = tl.dot(x, tl.trans(weights), first, input_precision="ieee")
            if HAS_SECOND:
                second = tl.dot(x, tl.trans(others), second, input_precision="ieee")
    if ROWS == 1:
        squares = tl.sum(squares, axis=1, keep_dims=True)
        first = tl.sum(first, axis=1)[None, :]
        if HAS_SECOND:
            second = tl.sum(second, axis=1)[None, :]
    if norm_ptr is not None:
        inverse = tl.rsqrt(squares / WIDTH + epsilon)
        first *= inverse
        second *= inverse
    if not HAS_SECOND:
        second = first
    return first, second


@triton.jit
def _row_products(
    x_ptr,
    norm_ptr,
    first_ptr,
    second_ptr,
    num_rows,
    num_outputs,
    epsilon,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`_products` for this program's outputs of matrices whose rows lie together; then these, and which are there."""
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < num_outputs
    first, second = _products(
        x_ptr,
        norm_ptr,
        first_ptr,
        second_ptr,
        outputs,
        outputs,
        is_output,
        num_rows,
        WIDTH,
        WIDTH,
        1,
        epsilon,
        WIDTH,
        ROWS,
        OUTPUTS,
        INPUTS,
        STAGES,
        EARLY,
    )
    return first, second, outputs, is_output


@triton.jit
def _added_bias(out, bias_ptr, outputs, is_output):
    if bias_ptr is None:
        return out
    else:
        return out + tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    epsilon,
    soft_cap,
    HAS_CAP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`reference.linear`."""
    out, _, outputs, is_output = _row_products(
        x_ptr, norm_ptr, weight_ptr, None, num_rows, num_outputs, epsilon, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES, EARLY
    )
    out = _added_bias(out, bias_ptr, outputs, is_output)
    rows = tl.arange(0, ROWS)[:, None]
    mask = (rows < num_rows) & is_output[None, :]
    at = rows * num_outputs + outputs[None, :]
    if residual_ptr is not None:
        out += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_CAP:
        out = soft_cap * tanh(out / soft_cap)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def gated_hidden_kernel(
    x_ptr,
    norm_ptr,
    gate_ptr,
    gate_bias_ptr,
    up_ptr,
    up_bias_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    epsilon,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`reference.gated_hidden`."""
    gate, up, outputs, is_output = _row_products(
        x_ptr, norm_ptr, gate_ptr, up_ptr, num_rows, num_outputs, epsilon, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES, EARLY
    )
    out = _gelu(_added_bias(gate, gate_bias_ptr, outputs, is_output)) * _added_bias(up, up_bias_ptr, outputs, is_output)
    rows = tl.arange(0, ROWS)[:, None]
    mask = (rows < num_rows) & is_output[None, :]
    tl.store(out_ptr + rows * num_outputs + outputs[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def recurrent_inputs_kernel(
    x_ptr,
    norm_ptr,
    into_ptr,
    into_bias_ptr,
    gate_ptr,
    gate_bias_ptr,
    taps_ptr,
    taps_bias_ptr,
    tails_ptr,
    slots_ptr,
    positions_ptr,
    u_ptr,
    gate_out_ptr,
    num_rows,
    num_outputs,
    epsilon,
    TAPS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`reference.recurrent_inputs`; a program has its channels' part of the tails to itself."""
    read, gate, outputs, is_output = _row_products(
        x_ptr, norm_ptr, into_ptr, gate_ptr, num_rows, num_outputs, epsilon, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES, EARLY
    )
    gate = _gelu(_added_bias(gate, gate_bias_ptr, outputs, is_output))
    # What the tail will hold is what is seen now.
    newer = _added_bias(read, into_bias_ptr, outputs, is_output).to(tails_ptr.dtype.element_ty)
    rows, channels = tl.arange(0, ROWS)[:, None], outputs[None, :]
    is_row = rows < num_rows
    mask = is_row & is_output[None, :]
    slots = tl.load(slots_ptr + rows, mask=is_row, other=0).to(tl.int64)
    positions = tl.load(positions_ptr + rows, mask=is_row, other=0)
    past: tl.constexpr = TAPS - 1
    tails = tails_ptr + slots * (past * num_outputs) + channels
    taps = taps_ptr + channels
    u = newer.to(tl.float32) * tl.load(taps + past * num_outputs, mask=is_output[None, :], other=0.0).to(tl.float32)
    u = _added_bias(u, taps_bias_ptr, outputs, is_output)
    kept = (newer,)
    for age in tl.static_range(1, TAPS):
        at = (past - age) * num_outputs
        older = tl.load(tails + at, mask=mask, other=0.0)
        tap = tl.load(taps + at, mask=is_output[None, :], other=0.0).to(tl.float32)
        u += tl.where(positions >= age, older.to(tl.float32) * tap, 0.0)
        kept += (older,)
    # A number may stand in several threads: all have read the old one before one of them writes.
    tl.debug_barrier()
    for age in tl.static_range(1, TAPS):
        tl.store(tails + (past - age) * num_outputs, kept[age - 1], mask=mask)
    at = rows * num_outputs + channels
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)
    tl.store(gate_out_ptr + at, gate.to(gate_out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def recurrent_outputs_kernel(
    u_ptr,
    gate_ptr,
    input_gate_ptr,
    input_gate_bias_ptr,
    recurrence_gate_ptr,
    recurrence_gate_bias_ptr,
    a_param_ptr,
    hidden_ptr,
    slots_ptr,
    positions_ptr,
    out_ptr,
    num_rows,
    width,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`reference.recurrent_outputs`; WIDTH inputs and outputs of one block of the gates, whose outputs lie together."""
    block = tl.program_id(1)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < WIDTH
    matrix = block * WIDTH * WIDTH
    input_gate, recurrence_gate = _products(
        u_ptr + block * WIDTH,
        None,
        input_gate_ptr + matrix,
        recurrence_gate_ptr + matrix,
        outputs,
        outputs,
        is_output,
        num_rows,
        width,
        1,
        WIDTH,
        0.0,
        WIDTH,
        ROWS,
        OUTPUTS,
        INPUTS,
        STAGES,
        EARLY,
    )
    channels = block * WIDTH + outputs
    input_gate = _added_bias(input_gate, input_gate_bias_ptr, channels, is_output)
    recurrence_gate = _added_bias(recurrence_gate, recurrence_gate_bias_ptr, channels, is_output)
    rows = tl.arange(0, ROWS)[:, None]
    is_row = rows < num_rows
    mask = is_row & is_output[None, :]
    slots = tl.load(slots_ptr + rows, mask=is_row, other=0).to(tl.int64)
    starts = tl.load(positions_ptr + rows, mask=is_row, other=0) == 0
    at = rows * width + channels[None, :]
    a_param = tl.load(a_param_ptr + channels, mask=is_output, other=0.0).to(tl.float32)
    _, decay, _, scale = coefficients(recurrence_gate, softplus(a_param)[None, :], starts)
    u = tl.load(u_ptr + at, mask=mask, other=0.0).to(tl.float32)
    memory = hidden_ptr + slots * width + channels[None, :]
    h = decay * tl.load(memory, mask=mask, other=0.0) + scale * sigmoid(input_gate) * u
    # A number may stand in several threads: all have read the old one before one of them writes.
    tl.debug_barrier()
    tl.store(memory, h, mask=mask)
    gate = tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (gate * h).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def attention_inputs_kernel(
    x_ptr,
    norm_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    positions_ptr,
    frequencies_ptr,
    query_out_ptr,
    key_out_ptr,
    value_out_ptr,
    num_rows,
    num_heads,
    head_size,
    num_frequencies,
    epsilon,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """`reference.attention_inputs`, a program for pairs of channels of one head; the last two heads are key and value.

    Channel i turns with i + num_frequencies. Channels behind these are paired too, but do not turn.
    """
    head = tl.program_id(1)
    pairs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    num_pairs = (head_size + 1) // 2
    is_pair = pairs < num_pairs
    turns = pairs < num_frequencies
    first_channels = tl.where(turns, pairs, pairs + num_frequencies)
    second_channels = tl.where(turns, pairs + num_frequencies, pairs + num_pairs)
    # The last pair of an odd head has one channel, which is read twice.
    is_second = is_pair & (second_channels < head_size)
    second_channels = tl.minimum(second_channels, head_size - 1)
    if head < num_heads:
        weight_ptr = query_ptr + head * head_size * WIDTH
        out_ptr = query_out_ptr + head * head_size
        out_stride = num_heads * head_size
    elif head == num_heads:
        weight_ptr, out_ptr, out_stride = key_ptr, key_out_ptr, head_size
    else:
        weight_ptr, out_ptr, out_stride = value_ptr, value_out_ptr, head_size
    first, second = _products(
        x_ptr,
        norm_ptr,
        weight_ptr,
        weight_ptr,
        first_channels,
        second_channels,
        is_pair,
        num_rows,
        WIDTH,
        WIDTH,
        1,
        epsilon,
        WIDTH,
        ROWS,
        OUTPUTS,
        INPUTS,
        STAGES,
        EARLY,
    )
    rows = tl.arange(0, ROWS)[:, None]
    is_row = rows < num_rows
    positions = tl.load(positions_ptr + rows, mask=is_row, other=0)
    is_turned = turns & (head <= num_heads)
    frequencies = tl.load(frequencies_ptr + pairs, mask=is_turned, other=0.0)
    angle = positions.to(tl.float32) * frequencies[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    first, second = first * cos - second * sin, second * cos + first * sin
    out = out_ptr + rows * out_stride
    dtype = query_out_ptr.dtype.element_ty
    tl.store(out + first_channels[None, :], first.to(dtype), mask=is_row & is_pair[None, :])
    tl.store(out + second_channels[None, :], second.to(dtype), mask=is_row & is_second[None, :])
