"""Triton kernels of batch normalization for dense tensors on a GPU; cuda.py calls them.

A tensor is read as tiles of BA x BB elements. Planes (N, C, L): a program has one channel, tiles lie over samples and
positions. Rows (N*L, C), channels last: a program has BB channels, tiles lie over rows. Sums run in the element's own
precision, at least float32, shifted by the mean of the first tile, and leave the program in float64.

VEC divides the contiguous extent: that a runtime size is a multiple of it lets the compiler load 16 bytes at once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _long(number):
    """An int64, also of what Triton made a constant of because it is 1."""
    return tl.zeros((), tl.int64) + number


@triton.jit
def _tile(t, g, A, C, inner_units, VEC: tl.constexpr, BY_ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr):
    """Offsets and mask of tile t of channel (or block of channels) g."""
    inner = inner_units * VEC
    if BY_ROWS:
        a = t * BA + tl.arange(0, BA)
        b = g * BB + tl.arange(0, BB)
        base = tl.zeros((), tl.int64)
        stride = _long(inner)
    else:
        tiles_b = tl.cdiv(inner, BB)
        a = (t // tiles_b) * BA + tl.arange(0, BA)
        b = (t % tiles_b) * BB + tl.arange(0, BB)
        base = _long(g) * inner
        stride = _long(C) * inner
    offsets = (base + a.to(tl.int64) * stride)[:, None] + b[None, :]
    return offsets, (a < A)[:, None] & (b < inner)[None, :]


@triton.jit
def _values_in_tile(t, A, inner, BY_ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr):
    """How many values of one channel tile t holds."""
    if BY_ROWS:
        return tl.minimum(BA, A - t * BA)
    tiles_b = tl.cdiv(inner, BB)
    return tl.minimum(BA, A - (t // tiles_b) * BA) * tl.minimum(BB, inner - (t % tiles_b) * BB)


@triton.jit
def _over_tile(values, BY_ROWS: tl.constexpr):
    """Sum of a tile per channel: (1, BB) for rows, (1, 1) for planes."""
    sums = tl.sum(values, 0, keep_dims=True)
    if not BY_ROWS:
        sums = tl.sum(sums, 1, keep_dims=True)
    return sums


@triton.jit
def _channels(g, C, BY_ROWS: tl.constexpr, BB: tl.constexpr):
    """The channels of a program, shaped as _over_tile's sums, and which of them exist."""
    if BY_ROWS:
        c = (g * BB + tl.arange(0, BB))[None, :]
    else:
        c = (g + tl.arange(0, 1))[None, :]
    return c, c < C


@triton.jit
def _double(high, low):
    """A float64 from the two float32 it came as."""
    return tl.zeros((), tl.float64) + high + low


@triton.jit
def statistics(
    x, rows, A, C, inner_units, num_tiles,
    VEC: tl.constexpr, BY_ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """rows (S, 2C+1): count, means and m2s of the tiles s, s+S, s+2S, ... of every channel."""
    g, s = tl.program_id(0), tl.program_id(1)
    offsets, mask = _tile(s, g, A, C, inner_units, VEC, BY_ROWS, BA, BB)
    first = tl.load(x + offsets, mask, 0.0).to(ACC)
    inner = inner_units * VEC
    shift = _over_tile(first, BY_ROWS) / _values_in_tile(s, A, inner, BY_ROWS, BA, BB).to(ACC)
    sums = tl.zeros((BA, BB), ACC)
    squares = tl.zeros((BA, BB), ACC)
    count = tl.zeros((), tl.float64)
    for t in range(s, num_tiles, tl.num_programs(1)):
        offsets, mask = _tile(t, g, A, C, inner_units, VEC, BY_ROWS, BA, BB)
        centred = tl.where(mask, tl.load(x + offsets, mask, 0.0).to(ACC) - shift, 0.0)
        sums += centred
        squares += centred * centred
        count += _values_in_tile(t, A, inner, BY_ROWS, BA, BB).to(tl.float64)
    total = _over_tile(sums.to(tl.float64), BY_ROWS)
    m2 = _over_tile(squares.to(tl.float64), BY_ROWS) - total * total / count
    c, exists = _channels(g, C, BY_ROWS, BB)
    row = rows + _long(s) * (2 * C + 1)
    tl.store(row + 1 + c, shift.to(tl.float64) + total / count, exists)
    # Rounding may leave a tiny negative number; NaN stays.
    tl.store(row + 1 + C + c, tl.where(m2 < 0, 0.0, m2), exists)
    if g == 0:
        tl.store(row, count)


@triton.jit
def _move(running, values, step, divisor, C, BC: tl.constexpr):
    """running += step * (values / divisor - running), of C channels."""
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        old = tl.load(running + c, c < C, 0.0).to(tl.float64)
        tl.store(running + c, old + step * (tl.load(values + c, c < C, 0.0) / divisor - old), c < C)


@triton.jit
def merge(
    rows, merged, table, weight, bias, running_mean, running_var, num_batches, num_non_finite,
    R, C, eps, eps_rest, momentum, momentum_rest,
    MOVES: tl.constexpr, CUMULATIVE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """merged (2C+1): the union of R rows (Chan et al. 1979). table (3, C): mean, scale, offset; None: not wanted.

    With MOVES it is one program and moves the running statistics, all of them or, for a row with a NaN, none.
    """
    F = _long(2 * C + 1)
    r = tl.arange(0, BR)
    count = tl.zeros((), tl.float64)
    for r0 in range(0, R, BR):
        count += tl.sum(tl.load(rows + (r0 + r) * F, r0 + r < R, 0.0), 0)
    divisor = tl.where(count > 0, count, 1.0)
    num_bad = tl.zeros((), tl.int32)
    for c0 in range(tl.program_id(0) * BC, C, tl.num_programs(0) * BC):
        c = c0 + tl.arange(0, BC)
        exists = c < C
        sums = tl.zeros((BR, BC), tl.float64)
        for r0 in range(0, R, BR):
            counts = tl.load(rows + (r0 + r) * F, r0 + r < R, 0.0)[:, None]
            mask = (r0 + r < R)[:, None] & exists[None, :]
            sums += counts * tl.load(rows + ((r0 + r) * F)[:, None] + 1 + c[None, :], mask, 0.0)
        mean = tl.sum(sums, 0) / divisor
        if R == 1:  # as it is: a mean times its count, divided again, may lose its last bit
            mean = tl.load(rows + 1 + c, exists, 0.0)
        sums = tl.zeros((BR, BC), tl.float64)
        for r0 in range(0, R, BR):
            counts = tl.load(rows + (r0 + r) * F, r0 + r < R, 0.0)[:, None]
            mask = (r0 + r < R)[:, None] & exists[None, :]
            at = rows + ((r0 + r) * F)[:, None] + 1 + c[None, :]
            difference = tl.load(at, mask, 0.0) - mean[None, :]
            sums += tl.where(mask, tl.load(at + C, mask, 0.0) + counts * difference * difference, 0.0)
        m2 = tl.sum(sums, 0)
        tl.store(merged + 1 + c, mean, exists)
        tl.store(merged + 1 + C + c, m2, exists)
        # A NaN or an infinity minus itself is not zero.
        num_bad += tl.sum(tl.where(exists & ((mean - mean != 0) | (m2 - m2 != 0)), 1, 0), 0)
        if table is not None:
            scale = 1.0 / tl.sqrt(m2 / divisor + _double(eps, eps_rest))
            if weight is not None:
                scale *= tl.load(weight + c, exists, 0.0).to(tl.float64)
            near = mean.to(table.dtype.element_ty)  # what rounding takes from the mean goes into the offset
            offset = (near.to(tl.float64) - mean) * scale
            if bias is not None:
                offset += tl.load(bias + c, exists, 0.0).to(tl.float64)
            tl.store(table + c, near, exists)
            tl.store(table + C + c, scale, exists)
            tl.store(table + 2 * C + c, offset, exists)
    if tl.program_id(0) == 0:
        tl.store(merged, count)
    if MOVES:
        tl.debug_barrier()
        moves = tl.where((num_bad == 0) & (count > 1), 1, 0)
        batches = tl.load(num_batches) + moves
        tl.store(num_batches, batches)
        tl.store(num_non_finite, tl.load(num_non_finite) + tl.where(num_bad == 0, 0, 1))
        step = _double(momentum, momentum_rest)
        if CUMULATIVE:
            step = 1.0 / tl.maximum(batches, 1).to(tl.float64)
        _move(running_mean, merged + 1, step, 1.0, C * moves, BC)
        _move(running_var, merged + 1 + C, step, tl.where(count > 1, count - 1, 1.0), C * moves, BC)


@triton.jit
def normalize(
    x, y, table, A, C, inner_units,
    VEC: tl.constexpr, BY_ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) * scale + offset, by the table of `merge`."""
    g = tl.program_id(1)
    offsets, mask = _tile(tl.program_id(0), g, A, C, inner_units, VEC, BY_ROWS, BA, BB)
    values = tl.load(x + offsets, mask, 0.0).to(ACC)
    c, exists = _channels(g, C, BY_ROWS, BB)
    mean = tl.load(table + c, exists, 0.0)
    scale = tl.load(table + C + c, exists, 0.0)
    offset = tl.load(table + 2 * C + c, exists, 0.0)
    tl.store(y + offsets, (values - mean) * scale + offset, mask)


@triton.jit
def gradient_sums(
    x, dy, row, sums, A, C, inner_units, num_tiles,
    VEC: tl.constexpr, BY_ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums (S, 2C): of dy, then of dy * (x - mean), over the tiles s, s+S, ...; row: merged (2C+1)."""
    g, s = tl.program_id(0), tl.program_id(1)
    c, exists = _channels(g, C, BY_ROWS, BB)
    mean = tl.load(row + 1 + c, exists, 0.0)
    near = mean.to(ACC)
    plain = tl.zeros((BA, BB), ACC)
    product = tl.zeros((BA, BB), ACC)
    for t in range(s, num_tiles, tl.num_programs(1)):
        offsets, mask = _tile(t, g, A, C, inner_units, VEC, BY_ROWS, BA, BB)
        slope = tl.load(dy + offsets, mask, 0.0).to(ACC)
        plain += slope
        product += slope * tl.where(mask, tl.load(x + offsets, mask, 0.0).to(ACC) - near, 0.0)
    total = _over_tile(plain.to(tl.float64), BY_ROWS)
    out = sums + _long(s) * 2 * C
    tl.store(out + c, total, exists)
    rest = (near.to(tl.float64) - mean) * total  # what rounding took from the mean
    tl.store(out + C + c, _over_tile(product.to(tl.float64), BY_ROWS) + rest, exists)


@triton.jit
def add_rows(rows, total, R, F, BR: tl.constexpr, BC: tl.constexpr):
    """total (F): the sum of R rows, in their order."""
    f = tl.program_id(0) * BC + tl.arange(0, BC)
    r = tl.arange(0, BR)
    sums = tl.zeros((BR, BC), tl.float64)
    for r0 in range(0, R, BR):
        mask = (r0 + r < R)[:, None] & (f < F)[None, :]
        sums += tl.load(rows + ((r0 + r).to(tl.int64) * F)[:, None] + f[None, :], mask, 0.0)
    tl.store(total + f, tl.sum(sums, 0), f < F)


@triton.jit
def gradient_table(
    row, local, rows, table, weight, by_weight, by_bias, W, C, eps, eps_rest, BC: tl.constexpr
):  # fmt: skip
    """table (4, C): mean, and the factors of dy, of x - mean and of 1 in dx; gradients of weight and bias from local.

    rows (W, 2C): the gradient sums of every worker; local (2C): ours.
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    exists = c < C
    count = tl.load(row)
    divisor = tl.where(count > 0, count, 1.0)
    mean = tl.load(row + 1 + c, exists, 0.0)
    variance = tl.load(row + 1 + C + c, exists, 0.0) / divisor
    invstd = 1.0 / tl.sqrt(variance + _double(eps, eps_rest))
    constant = tl.zeros((BC,), tl.float64)
    slope = tl.zeros((BC,), tl.float64)
    for w in range(W):
        constant += tl.load(rows + w * 2 * C + c, exists, 0.0)
        slope += tl.load(rows + w * 2 * C + C + c, exists, 0.0)
    scale = invstd
    if weight is not None:
        scale *= tl.load(weight + c, exists, 0.0).to(tl.float64)
    slope = -scale * invstd * invstd * (slope / divisor)
    near = mean.to(table.dtype.element_ty)
    tl.store(table + c, near, exists)
    tl.store(table + C + c, scale, exists)
    tl.store(table + 2 * C + c, slope, exists)
    tl.store(table + 3 * C + c, -scale * (constant / divisor) + slope * (near.to(tl.float64) - mean), exists)
    tl.store(by_bias + c, tl.load(local + c, exists, 0.0), exists)
    tl.store(by_weight + c, tl.load(local + C + c, exists, 0.0) * invstd, exists)


@triton.jit
def differentiate(
    x, dy, dx, table, A, C, inner_units,
    VEC: tl.constexpr, BY_ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx = scale * dy + slope * (x - mean) + constant, by the table of `gradient_table`."""
    g = tl.program_id(1)
    offsets, mask = _tile(tl.program_id(0), g, A, C, inner_units, VEC, BY_ROWS, BA, BB)
    values = tl.load(x + offsets, mask, 0.0).to(ACC)
    slopes = tl.load(dy + offsets, mask, 0.0).to(ACC)
    c, exists = _channels(g, C, BY_ROWS, BB)
    mean = tl.load(table + c, exists, 0.0)
    scale = tl.load(table + C + c, exists, 0.0)
    slope = tl.load(table + 2 * C + c, exists, 0.0)
    constant = tl.load(table + 3 * C + c, exists, 0.0)
    tl.store(dx + offsets, scale * slopes + (slope * (values - mean) + constant), mask)
