"""A decoder's step on a GPU in few kernels: each reads one or two matrices once and does all up to the next ones.

A program has some outputs of all rows. What stands around a product is asked for before the matrices, so that nothing
waits for memory twice. Everything is float32 but what tensor cores multiply and what is written.

Not handled here: more rows than one tile has, gradients, float64, tensors that are not contiguous.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportIndexIssue=false

import triton
import triton.language as tl

from griffinlm.kernels.gated_gelu import blocked
from griffinlm.kernels.linear_scan.triton import coefficients, sigmoid, softplus
from griffinlm.kernels.soft_cap.triton import tanh
from griffinlm.kernels.token_step.triton_products import begin_early, products

LINEAR, CUBIC = tl.constexpr(blocked.LINEAR), tl.constexpr(blocked.CUBIC)


@triton.jit
def _gelu(x):
    return x * sigmoid(x * (LINEAR + CUBIC * x * x))


@triton.jit
def _vector(vector_ptr, at, mask):
    """[1, n] in float32; None is zeros."""
    if vector_ptr is None:
        return tl.full(at.shape, 0.0, tl.float32)[None, :]
    else:
        return tl.load(vector_ptr + at, mask=mask, other=0.0).to(tl.float32)[None, :]


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
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < num_outputs
    if EARLY:
        begin_early(weight_ptr, None, outputs, outputs, is_output, OUTPUTS, WIDTH)
    rows = tl.arange(0, ROWS)[:, None]
    mask = (rows < num_rows) & is_output[None, :]
    at = rows * num_outputs + outputs[None, :]
    beside = _vector(bias_ptr, outputs, is_output)
    if residual_ptr is not None:
        beside += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    out, _ = products(
        x_ptr, norm_ptr, weight_ptr, None, outputs, is_output, num_rows, epsilon, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES
    )
    out += beside
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
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < num_outputs
    if EARLY:
        begin_early(gate_ptr, up_ptr, outputs, outputs, is_output, OUTPUTS, WIDTH)
    gate_bias, up_bias = _vector(gate_bias_ptr, outputs, is_output), _vector(up_bias_ptr, outputs, is_output)
    gate, up = products(
        x_ptr, norm_ptr, gate_ptr, up_ptr, outputs, is_output, num_rows, epsilon, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES
    )
    out = _gelu(gate + gate_bias) * (up + up_bias)
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
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < num_outputs
    if EARLY:
        begin_early(into_ptr, gate_ptr, outputs, outputs, is_output, OUTPUTS, WIDTH)
    rows, channels = tl.arange(0, ROWS)[:, None], outputs[None, :]
    is_row = rows < num_rows
    mask = is_row & is_output[None, :]
    slots = tl.load(slots_ptr + rows, mask=is_row, other=0).to(tl.int64)
    positions = tl.load(positions_ptr + rows, mask=is_row, other=0)
    into_bias, gate_bias = _vector(into_bias_ptr, outputs, is_output), _vector(gate_bias_ptr, outputs, is_output)
    past: tl.constexpr = TAPS - 1
    tails = tails_ptr + slots * (past * num_outputs) + channels
    newest_tap = _vector(taps_ptr, past * num_outputs + outputs, is_output)
    u = _vector(taps_bias_ptr, outputs, is_output) + tl.full([ROWS, OUTPUTS], 0.0, tl.float32)
    older = ()
    for age in tl.static_range(1, TAPS):
        at = (past - age) * num_outputs
        old = tl.load(tails + at, mask=mask, other=0.0)
        u += tl.where(positions >= age, old.to(tl.float32) * _vector(taps_ptr, at + outputs, is_output), 0.0)
        older += (old,)
    read, gate = products(
        x_ptr, norm_ptr, into_ptr, gate_ptr, outputs, is_output, num_rows, epsilon, WIDTH, ROWS, OUTPUTS, INPUTS, STAGES
    )
    # What the tail will hold is what is seen now.
    newer = (read + into_bias).to(tails_ptr.dtype.element_ty)
    u += newer.to(tl.float32) * newest_tap
    # A number may stand in several threads: all have read the old one before one of them writes.
    tl.debug_barrier()
    for age in tl.static_range(1, TAPS):
        tl.store(tails + (past - age) * num_outputs, newer, mask=mask)
        newer = older[age - 1]
    at = rows * num_outputs + channels
    tl.store(u_ptr + at, u.to(u_ptr.dtype.element_ty), mask=mask)
    tl.store(gate_out_ptr + at, _gelu(gate + gate_bias).to(gate_out_ptr.dtype.element_ty), mask=mask)


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
    if EARLY:
        begin_early(None, None, outputs, outputs, is_output, OUTPUTS, WIDTH)
    matrix, channels = block * WIDTH * WIDTH, block * WIDTH + outputs
    rows = tl.arange(0, ROWS)[:, None]
    is_row = rows < num_rows
    mask = is_row & is_output[None, :]
    at = rows * width + channels[None, :]
    slots = tl.load(slots_ptr + rows, mask=is_row, other=0).to(tl.int64)
    starts = tl.load(positions_ptr + rows, mask=is_row, other=0) == 0
    memory = hidden_ptr + slots * width + channels[None, :]
    before = tl.load(memory, mask=mask, other=0.0)
    u = tl.load(u_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    a_param = _vector(a_param_ptr, channels, is_output)
    input_bias = _vector(input_gate_bias_ptr, channels, is_output)
    recurrence_bias = _vector(recurrence_gate_bias_ptr, channels, is_output)
    input_gate, recurrence_gate = products(
        u_ptr + block * WIDTH,
        None,
        input_gate_ptr + matrix,
        recurrence_gate_ptr + matrix,
        outputs,
        is_output,
        num_rows,
        0.0,
        WIDTH,
        ROWS,
        OUTPUTS,
        INPUTS,
        STAGES,
        row_stride=width,
        IS_TRANSPOSED=True,
    )
    _, decay, _, scale = coefficients(recurrence_gate + recurrence_bias, softplus(a_param), starts)
    h = decay * before + scale * sigmoid(input_gate + input_bias) * u
    # A number may stand in several threads: all have read the old one before one of them writes.
    tl.debug_barrier()
    tl.store(memory, h, mask=mask)
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
    if EARLY:
        begin_early(weight_ptr, weight_ptr, first_channels, second_channels, is_pair, OUTPUTS, WIDTH)
    rows = tl.arange(0, ROWS)[:, None]
    is_row = rows < num_rows
    positions = tl.load(positions_ptr + rows, mask=is_row, other=0)
    frequencies = _vector(frequencies_ptr, pairs, turns & (head <= num_heads))
    first, second = products(
        x_ptr,
        norm_ptr,
        weight_ptr,
        weight_ptr,
        first_channels,
        is_pair,
        num_rows,
        epsilon,
        WIDTH,
        ROWS,
        OUTPUTS,
        INPUTS,
        STAGES,
        second_outputs=second_channels,
    )
    angle = positions.to(tl.float32) * frequencies
    cos, sin = tl.cos(angle), tl.sin(angle)
    first, second = first * cos - second * sin, second * cos + first * sin
    out = out_ptr + rows * out_stride
    dtype = query_out_ptr.dtype.element_ty
    tl.store(out + first_channels[None, :], first.to(dtype), mask=is_row & is_pair[None, :])
    tl.store(out + second_channels[None, :], second.to(dtype), mask=is_row & is_second[None, :])
