"""Products of some rows with one matrix or two, of normalised inputs, inside the kernels of a decoder's step.

One row is multiplied number by number, each thread along the inputs; more rows on tensor cores. The norm in front costs
no pass of its own: its scale is applied to what is multiplied, and the mean of squares, found on the way, to the sums.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false

import triton
import triton.language as tl

CACHE_LINE_BYTES = tl.constexpr(128)


@triton.jit
def _fetch(matrix_ptr, outputs, is_output, OUTPUTS: tl.constexpr, WIDTH: tl.constexpr):
    """Brings rows of a matrix into the cache."""
    LINE: tl.constexpr = CACHE_LINE_BYTES * 8 // matrix_ptr.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(WIDTH, LINE))
    at = tl.minimum(tl.arange(0, LINES) * LINE, WIDTH - 1)[None, :]
    rows = tl.where(is_output, outputs, 0).to(tl.int64)[:, None] * WIDTH
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [matrix_ptr + rows + at], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def begin_early(
    first_ptr,
    second_ptr,
    first_outputs,
    second_outputs,
    is_output,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Begins while the kernel before ends and lets the next one do so, then waits until all before has been written.

    Nothing that another kernel has written may be read before. Meanwhile the rows of matrices that this program will
    read are brought into the cache; None is no matrix.
    """
    tl.extra.cuda.gdc_launch_dependents()
    if first_ptr is not None:
        _fetch(first_ptr, first_outputs, is_output, OUTPUTS, WIDTH)
    if second_ptr is not None:
        _fetch(second_ptr, second_outputs, is_output, OUTPUTS, WIDTH)
    tl.extra.cuda.gdc_wait()


@triton.jit
def products(
    x_ptr,
    norm_ptr,
    first_ptr,
    second_ptr,
    first_outputs,
    is_output,
    num_rows,
    epsilon,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    second_outputs=None,
    row_stride=None,
    IS_TRANSPOSED: tl.constexpr = False,
):
    """norm(x) W^T [ROWS, OUTPUTS] in float32 for outputs of one matrix or of two; rows that are not there give 0.

    Args:
        x_ptr: rows of WIDTH inputs, `row_stride` apart; None is rows that lie together.
        norm_ptr: scale of the norm; None is no norm.
        second_ptr: None is one matrix, whose product is given twice.
        first_outputs, is_output: [OUTPUTS], rows of the first matrix, and which of them are there.
        second_outputs: those of the second; None is the same.
        IS_TRANSPOSED: whether the numbers of a matrix that lie together are those of one input, not of one output.
    """
    x_stride = WIDTH if row_stride is None else row_stride
    output_stride: tl.constexpr = 1 if IS_TRANSPOSED else WIDTH
    input_stride: tl.constexpr = WIDTH if IS_TRANSPOSED else 1
    HAS_SECOND: tl.constexpr = second_ptr is not None
    rows = tl.arange(0, ROWS)
    is_row = (rows < num_rows)[:, None]
    first_rows = first_outputs.to(tl.int64)[:, None] * output_stride
    second_rows = first_rows if second_outputs is None else second_outputs.to(tl.int64)[:, None] * output_stride
    if ROWS == 1:
        squares = tl.full([1, INPUTS], 0.0, tl.float32)
        first = tl.full([OUTPUTS, INPUTS], 0.0, tl.float32)
        second = tl.full([OUTPUTS, INPUTS], 0.0, tl.float32)
    else:
        # The squares stand on the diagonal: read for anything but products, x would lie where products wait for it.
        squares = tl.full([ROWS, ROWS], 0.0, tl.float32)
        first = tl.full([ROWS, OUTPUTS], 0.0, tl.float32)
        second = tl.full([ROWS, OUTPUTS], 0.0, tl.float32)
    for start in tl.range(0, WIDTH, INPUTS, num_stages=STAGES):
        inputs = (start + tl.arange(0, INPUTS))[None, :]
        is_input = inputs < WIDTH
        is_weight = is_output[:, None] & is_input
        weights = tl.load(first_ptr + first_rows + inputs * input_stride, mask=is_weight, other=0.0)
        if HAS_SECOND:
            others = tl.load(second_ptr + second_rows + inputs * input_stride, mask=is_weight, other=0.0)
        x = tl.load(x_ptr + rows[:, None] * x_stride + inputs, mask=is_row & is_input, other=0.0)
        if norm_ptr is not None:
            precise = x.to(tl.float32)
            scale = 1.0 + tl.load(norm_ptr + inputs, mask=is_input, other=0.0).to(tl.float32)
            if ROWS == 1:
                squares += precise * precise
            else:
                squares = tl.dot(x, tl.trans(x), squares, input_precision="ieee")
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
        first = tl.sum(first, axis=1)[None, :]
        if HAS_SECOND:
            second = tl.sum(second, axis=1)[None, :]
    if norm_ptr is not None:
        if ROWS > 1:
            squares = tl.where(rows[:, None] == rows[None, :], squares, 0.0)
        squares = tl.sum(squares, axis=1, keep_dims=True)
        inverse = tl.rsqrt(squares / WIDTH + epsilon)
        first *= inverse
        second *= inverse
    if not HAS_SECOND:
        second = first
    return first, second
