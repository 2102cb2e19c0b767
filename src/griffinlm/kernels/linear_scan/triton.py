"""The RG-LRU on a GPU: gates, decay, normaliser and scan in one kernel; forward, and backward with recompute.

A program has some channels of a chunk of one row. It takes the chunk in tiles of groups of consecutive tokens: every
group is reduced in registers to the product of its decays and its end state from zero, the groups of a tile are joined
by a scan of these pairs, and the state that enters a group then gives the states inside it. Chunks of a sequence are
joined in the same way by three launches. Nothing is added by atomics, so equal calls give equal bits.

Not handled here: float64, tensors that are not contiguous, sequences of no tokens.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from griffinlm.config import RG_LRU_EXPONENT
from griffinlm.kernels.linear_scan.reference import SQRT_GRADIENT_FLOOR

EXPONENT = tl.constexpr(RG_LRU_EXPONENT)
FLOOR = tl.constexpr(SQRT_GRADIENT_FLOOR)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + e^x), by 2 atanh(e / (2 + e)) where e = e^x is small, since 1 + e loses its digits."""
    e = tl.exp(tl.minimum(x, 20.0))
    z = e / (2.0 + e)
    s = z * z
    small = 2.0 * z * (1.0 + s * (1.0 / 3 + s * (1.0 / 5 + s * (1.0 / 7 + s * (1.0 / 9)))))
    return tl.where(x > 20.0, x, tl.where(e < 0.5, small, tl.log(1.0 + e)))


@triton.jit
def coefficients(recurrence_gate, softplus_a, starts):
    """sigmoid of the gate, decay, 1 - a^2 before resets, and the input's scale."""
    gate = sigmoid(recurrence_gate)
    log_a = -EXPONENT * softplus_a * gate
    a = tl.exp(log_a)
    # -expm1(2 log a): next to a = 1 the difference would have no digits left.
    v = 2.0 * log_a
    series = 1.0 + v * (1.0 / 5 + v * (1.0 / 30 + v * (1.0 / 210)))
    series = -v * (1.0 + v * (1.0 / 2 + v * (1.0 / 6 + v * (1.0 / 24) * series)))
    variance = tl.where(v > -0.25, series, 1.0 - a * a)
    scale = tl.where(starts, 1.0, tl.sqrt(variance))
    return gate, tl.where(starts, 0.0, a), variance, scale


@triton.jit
def _num_real(lengths_ptr, row, num_tokens):
    if lengths_ptr is None:
        return num_tokens
    else:
        return tl.minimum(tl.load(lengths_ptr + row).to(tl.int32), num_tokens)


@triton.jit
def _compose(
    product, end, before_product, before_end, later_product, later_end, later_before_product, later_before_end
):
    """h -> product h + end and, after it, the later one, as one; then what stands before the last of all joined."""
    return (
        product * later_product,
        later_product * end + later_end,
        product * later_before_product,
        later_before_product * end + later_before_end,
    )


@triton.jit
def _entering(product, end, carry, GROUPS: tl.constexpr):
    """What enters each group [G, L], and of all groups together what leaves them and their product [1, L].

    A group that h enters is left by product h + end; carry enters the first. What stands before each group comes out
    of the scan itself: a shift of its result would be computed in a second layout, and with it all that it comes from.
    """
    if GROUPS == 1:
        return carry, product * carry + end, product
    else:
        one, zero = tl.full(product.shape, 1.0, tl.float32), tl.full(product.shape, 0.0, tl.float32)
        products, ends, before_products, before_ends = tl.associative_scan((product, end, one, zero), 0, _compose)
        is_last = tl.arange(0, GROUPS)[:, None] == GROUPS - 1
        leaving = tl.sum(tl.where(is_last, products * carry + ends, 0.0), axis=0, keep_dims=True)
        product_of_all = tl.sum(tl.where(is_last, products, 0.0), axis=0, keep_dims=True)
        return before_products * carry + before_ends, leaving, product_of_all


@triton.jit
def forward_kernel(
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    a_param_ptr,
    reset_ptr,
    lengths_ptr,
    entering_ptr,
    y_ptr,
    final_ptr,
    product_ptr,
    end_ptr,
    num_tokens,
    width,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    SUMMARY: tl.constexpr,
):
    """One chunk of one row, BLOCK channels.

    SUMMARY: from zero, writes product and end [B, C-1, L] of all chunks but the last. Else: from entering [B, C, L],
    writes y [B, T, L] and, in the last chunk, final [B, L].
    """
    chunk, row = tl.program_id(1), tl.program_id(2)
    groups = tl.arange(0, GROUPS)[:, None]
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    in_width = channels < width
    softplus_a = softplus(tl.load(a_param_ptr + channels, mask=in_width, other=0.0).to(tl.float32))
    length = _num_real(lengths_ptr, row, num_tokens)
    chunk_row = (row * tl.num_programs(1) + chunk).to(tl.int64) * width + channels
    first = chunk * CHUNK
    token = row.to(tl.int64) * num_tokens + first
    base = token * width
    h = tl.full([1, BLOCK], 0.0, tl.float32)
    product_of_all = tl.full([1, BLOCK], 1.0, tl.float32)
    if not SUMMARY:
        h = tl.load(entering_ptr + chunk_row, mask=in_width, other=0.0)
    for start in tl.range(0, CHUNK, GROUPS * GROUP, num_stages=NUM_STAGES):
        end = tl.full([GROUPS, BLOCK], 0.0, tl.float32)
        product = tl.full([GROUPS, BLOCK], 1.0, tl.float32)
        ends, products = (), ()
        for u in tl.static_range(GROUP):
            step = start + groups * GROUP + u
            is_real, at = first + step < length, step * width + channels
            real = in_width & is_real
            x = tl.load(x_ptr + base + at, mask=real, other=0.0).to(tl.float32)
            input_gate = tl.load(input_gate_ptr + base + at, mask=real, other=0.0).to(tl.float32)
            recurrence_gate = tl.load(recurrence_gate_ptr + base + at, mask=real, other=0.0).to(tl.float32)
            starts = tl.load(reset_ptr + token + step, mask=is_real, other=0) != 0
            _, decay, _, scale = coefficients(recurrence_gate, softplus_a, starts)
            decay = tl.where(is_real, decay, 1.0)
            end = decay * end + scale * sigmoid(input_gate) * x
            product = decay * product
            ends, products = ends + (end,), products + (product,)
        entering, h, product_of_tile = _entering(product, end, h, GROUPS)
        product_of_all *= product_of_tile
        if not SUMMARY:
            for u in tl.static_range(GROUP):
                step = start + groups * GROUP + u
                at, mask = step * width + channels, in_width & (first + step < num_tokens)
                y = tl.where(first + step < length, products[u] * entering + ends[u], 0.0)
                tl.store(y_ptr + base + at, y.to(y_ptr.dtype.element_ty), mask=mask)
    if SUMMARY:
        tl.store(product_ptr + chunk_row, product_of_all, mask=in_width)
        tl.store(end_ptr + chunk_row, h, mask=in_width)
    elif chunk == tl.num_programs(1) - 1:
        tl.store(final_ptr + row.to(tl.int64) * width + channels, h, mask=in_width)


@triton.jit
def carry_kernel(
    product_ptr,
    end_ptr,
    start_ptr,
    entering_ptr,
    num_chunks,
    width,
    MOST_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """What enters every chunk [B, C, L], from start [B, L] and the summaries [B, C-1, L] of all but the last to run."""
    row = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_width = channels < width
    carry = tl.load(start_ptr + row.to(tl.int64) * width + channels, mask=in_width, other=0.0)
    summaries = row.to(tl.int64) * (num_chunks - 1) * width + channels
    entering = row.to(tl.int64) * num_chunks * width + channels
    last = num_chunks - 1
    tl.store(entering_ptr + entering + (last * width if REVERSE else 0), carry, mask=in_width)
    for step in tl.range(0, MOST_CHUNKS):
        mask = in_width & (step < last)
        summary = summaries + (last - 1 - step if REVERSE else step) * width
        product = tl.load(product_ptr + summary, mask=mask, other=1.0)
        carry = product * carry + tl.load(end_ptr + summary, mask=mask, other=0.0)
        into = entering + (last - 1 - step if REVERSE else step + 1) * width
        tl.store(entering_ptr + into, carry, mask=mask)


@triton.jit
def backward_kernel(
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    a_param_ptr,
    reset_ptr,
    lengths_ptr,
    initial_ptr,
    y_ptr,
    dy_ptr,
    entering_ptr,
    dx_ptr,
    dinput_gate_ptr,
    drecurrence_gate_ptr,
    dsoftplus_ptr,
    dinitial_ptr,
    product_ptr,
    end_ptr,
    num_tokens,
    width,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    SUMMARY: tl.constexpr,
):
    """One chunk of one row, BLOCK channels, from its last token to its first.

    g_t = dy_t + a_{t+1} g_{t+1} is the whole gradient of h_t; h_{t-1} is the y that the forward pass wrote.
    SUMMARY: from zero, writes product and end [B, C-1, L] of all chunks but the first. Else: from entering [B, C, L],
    writes the gradients, that of softplus(a_param) as a share of every chunk [B, C, L].
    """
    chunk, row = tl.program_id(1), tl.program_id(2)
    groups = tl.arange(0, GROUPS)[:, None]
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    in_width = channels < width
    softplus_a = softplus(tl.load(a_param_ptr + channels, mask=in_width, other=0.0).to(tl.float32))
    length = _num_real(lengths_ptr, row, num_tokens)
    chunk_row = (row * tl.num_programs(1) + chunk).to(tl.int64) * width + channels
    row_start = row.to(tl.int64) * width + channels
    first = (chunk + 1) * CHUNK if SUMMARY else chunk * CHUNK
    token = row.to(tl.int64) * num_tokens + first
    base = token * width
    through = tl.full([1, BLOCK], 0.0, tl.float32)
    product_of_all = tl.full([1, BLOCK], 1.0, tl.float32)
    dsoftplus = tl.full([GROUPS, BLOCK], 0.0, tl.float32)
    initial = through
    if not SUMMARY:
        through = tl.load(entering_ptr + chunk_row, mask=in_width, other=0.0)
        initial = tl.load(initial_ptr + row_start, mask=in_width, other=0.0)
    for start in tl.range(0, CHUNK, GROUPS * GROUP, num_stages=NUM_STAGES):
        # What flows from each token to the one before it: a_t g_t, from zero behind the group.
        end = tl.full([GROUPS, BLOCK], 0.0, tl.float32)
        product = tl.full([GROUPS, BLOCK], 1.0, tl.float32)
        given, gates, ends, products = (), (), (), ()
        for u in tl.static_range(GROUP):
            step = CHUNK - 1 - (start + groups * GROUP + u)
            is_real, at = first + step < length, step * width + channels
            dy = tl.load(dy_ptr + base + at, mask=in_width & is_real, other=0.0)
            recurrence_gate = tl.load(recurrence_gate_ptr + base + at, mask=in_width & is_real, other=0.0)
            given, gates = given + (dy,), gates + (recurrence_gate,)
            ends, products = ends + (end,), products + (product,)
            starts = tl.load(reset_ptr + token + step, mask=is_real, other=0) != 0
            _, decay, _, _ = coefficients(recurrence_gate.to(tl.float32), softplus_a, starts)
            decay = tl.where(is_real, decay, 1.0)
            end = decay * (dy.to(tl.float32) + end)
            product = decay * product
        entering, through, product_of_tile = _entering(product, end, through, GROUPS)
        product_of_all *= product_of_tile
        if not SUMMARY:
            for u in tl.static_range(GROUP):
                step = CHUNK - 1 - (start + groups * GROUP + u)
                is_real, at = first + step < length, step * width + channels
                real, has_before = in_width & is_real, first + step > 0
                g = tl.where(is_real, given[u].to(tl.float32) + products[u] * entering + ends[u], 0.0)
                starts = tl.load(reset_ptr + token + step, mask=is_real, other=0) != 0
                gate, decay, variance, scale = coefficients(gates[u].to(tl.float32), softplus_a, starts)
                x = tl.load(x_ptr + base + at, mask=real, other=0.0).to(tl.float32)
                share = sigmoid(tl.load(input_gate_ptr + base + at, mask=real, other=0.0).to(tl.float32))
                before = tl.load(y_ptr + base + at - width, mask=real & has_before, other=0.0).to(tl.float32)
                before = tl.where(has_before, before, initial)
                dinputs = g * share
                through_scale = dinputs * x
                # d scale / d log a = -2 a^2 / sqrt(4 (1 - a^2)), its divisor held from zero as in the definition.
                # Where a document starts, the decay is zero and so is dlog_a.
                dscale = -2.0 * decay * through_scale * tl.rsqrt(tl.maximum(4.0 * variance, FLOOR))
                dlog_a = decay * (g * before + dscale)
                through_softplus = -EXPONENT * gate * dlog_a
                dsoftplus += through_softplus
                dx, dinput_gate = dinputs * scale, through_scale * scale * (1.0 - share)
                drecurrence_gate = through_softplus * softplus_a * (1.0 - gate)
                mask = in_width & (first + step < num_tokens)
                tl.store(dx_ptr + base + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
                tl.store(dinput_gate_ptr + base + at, dinput_gate.to(dinput_gate_ptr.dtype.element_ty), mask=mask)
                drecurrence_gate = drecurrence_gate.to(drecurrence_gate_ptr.dtype.element_ty)
                tl.store(drecurrence_gate_ptr + base + at, drecurrence_gate, mask=mask)
    if SUMMARY:
        tl.store(product_ptr + chunk_row, product_of_all, mask=in_width)
        tl.store(end_ptr + chunk_row, through, mask=in_width)
    else:
        tl.store(dsoftplus_ptr + chunk_row, tl.sum(dsoftplus, axis=0, keep_dims=True), mask=in_width)
        if chunk == 0:
            tl.store(dinitial_ptr + row_start, through, mask=in_width)
