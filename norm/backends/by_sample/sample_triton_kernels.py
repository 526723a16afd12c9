"""Triton kernels of group normalization for channels_last tensors on a GPU; triton_rows.py calls them.

A sample is L rows of C channels, G groups of C / G channels. A program reads tiles of BA rows x BB channels, of one
split of the rows. Sums run in the element's own precision, at least float32, shifted by the mean of the first tile, and
leave the program in float64. The grid is (splits or tiles of rows, blocks of channels or groups, samples).
"""

from __future__ import annotations

import triton
import triton.language as tl

from syncnorm.norm.backends.triton_kernels import _double, _long


@triton.jit
def _tile(row, L, C, BA: tl.constexpr, BB: tl.constexpr):
    """Offsets, mask and channels of the tile that starts at `row` of this program's sample."""
    a = row + tl.arange(0, BA)
    c = tl.program_id(1) * BB + tl.arange(0, BB)
    start = tl.program_id(2).to(tl.int64) * L
    offsets = ((start + a.to(tl.int64)) * C)[:, None] + c[None, :]
    return offsets, (a < L)[:, None] & (c < C)[None, :], c


@triton.jit
def row_statistics(x, parts, L, C, ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr):
    """parts (N, S, 2, C): means and m2s of the channels of ROWS rows."""
    s = tl.program_id(0)
    first = s * ROWS
    offsets, mask, c = _tile(first, L, C, BA, BB)
    shift = tl.sum(tl.load(x + offsets, mask, 0.0).to(ACC), 0) / tl.minimum(BA, L - first).to(ACC)
    sums = tl.zeros((BA, BB), ACC)
    squares = tl.zeros((BA, BB), ACC)
    for row in range(first, tl.minimum(first + ROWS, L), BA):
        offsets, mask, c = _tile(row, L, C, BA, BB)
        centred = tl.where(mask, tl.load(x + offsets, mask, 0.0).to(ACC) - shift[None, :], 0.0)
        sums += centred
        squares += centred * centred
    count = tl.minimum(ROWS, L - first).to(tl.float64)
    total = tl.sum(sums.to(tl.float64), 0)
    m2 = tl.sum(squares.to(tl.float64), 0) - total * total / count
    out = parts + (tl.program_id(2).to(tl.int64) * tl.num_programs(0) + s) * 2 * C
    tl.store(out + c, shift.to(tl.float64) + total / count, c < C)
    # Rounding may leave a tiny negative number; NaN stays.
    tl.store(out + C + c, tl.where(m2 < 0, 0.0, m2), c < C)


@triton.jit
def _part(p, size, S, L, C, ROWS: tl.constexpr):
    """Of part p of this program's group: its offset in parts, its channel, and how many values are behind it."""
    s, c = p // size, tl.program_id(1) * size + p % size
    return (tl.program_id(2).to(tl.int64) * S + s) * 2 * C + c, c, tl.minimum(ROWS, L - s * ROWS).to(tl.float64)


@triton.jit
def group_statistics(
    parts, statistics, table, weight, bias, S, L, C, size, eps, eps_rest, ROWS: tl.constexpr, BP: tl.constexpr
):  # fmt: skip
    """statistics (N, 2, G): means and inverse standard deviations; table (N, 3, C): mean, scale, offset.

    The union of the S * size parts of a group (Chan et al. 1979).
    """
    n, g, G = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    values = _long(L).to(tl.float64) * size
    sums = tl.zeros((BP,), tl.float64)
    for p0 in range(0, S * size, BP):
        p = p0 + tl.arange(0, BP)
        at, _, count = _part(p, size, S, L, C, ROWS)
        sums += tl.where(p < S * size, count * tl.load(parts + at, p < S * size, 0.0), 0.0)
    mean = tl.sum(sums, 0) / values
    sums = tl.zeros((BP,), tl.float64)
    for p0 in range(0, S * size, BP):
        p = p0 + tl.arange(0, BP)
        at, _, count = _part(p, size, S, L, C, ROWS)
        difference = tl.load(parts + at, p < S * size, 0.0) - mean
        m2 = tl.load(parts + at + C, p < S * size, 0.0) + count * difference * difference
        sums += tl.where(p < S * size, m2, 0.0)
    invstd = 1.0 / tl.sqrt(tl.sum(sums, 0) / values + _double(eps, eps_rest))
    tl.store(statistics + n * 2 * G + g, mean)
    tl.store(statistics + n * 2 * G + G + g, invstd)
    near = mean.to(table.dtype.element_ty)  # what rounding takes from the mean goes into the offset
    for i0 in range(0, size, BP):
        i = i0 + tl.arange(0, BP)
        c = g * size + i
        scale = tl.zeros((BP,), tl.float64) + invstd
        if weight is not None:
            scale *= tl.load(weight + c, i < size, 0.0).to(tl.float64)
        offset = (near.to(tl.float64) - mean) * scale
        if bias is not None:
            offset += tl.load(bias + c, i < size, 0.0).to(tl.float64)
        out = table + n * 3 * C + c
        tl.store(out, tl.zeros((BP,), tl.float64) + near, i < size)
        tl.store(out + C, scale, i < size)
        tl.store(out + 2 * C, offset, i < size)


@triton.jit
def normalize_rows(x, y, table, L, C, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr):
    """y = (x - mean) * scale + offset, by the table of `group_statistics`."""
    offsets, mask, c = _tile(tl.program_id(0) * BA, L, C, BA, BB)
    of_sample = table + tl.program_id(2).to(tl.int64) * 3 * C + c
    mean = tl.load(of_sample, c < C, 0.0)[None, :]
    scale = tl.load(of_sample + C, c < C, 0.0)[None, :]
    offset = tl.load(of_sample + 2 * C, c < C, 0.0)[None, :]
    values = tl.load(x + offsets, mask, 0.0).to(ACC)
    tl.store(y + offsets, (values - mean) * scale + offset, mask)


@triton.jit
def row_gradient_sums(
    x, dy, statistics, parts, L, C, G, ROWS: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """parts (N, S, 2, C): sums of dy and of dy * (x - mean) of the channels of ROWS rows."""
    s, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    offsets, mask, c = _tile(s * ROWS, L, C, BA, BB)
    mean = tl.load(statistics + n * 2 * G + c // (C // G), c < C, 0.0)
    near = mean.to(ACC)
    plain = tl.zeros((BA, BB), ACC)
    product = tl.zeros((BA, BB), ACC)
    for row in range(s * ROWS, tl.minimum((s + 1) * ROWS, L), BA):
        offsets, mask, c = _tile(row, L, C, BA, BB)
        slope = tl.load(dy + offsets, mask, 0.0).to(ACC)
        plain += slope
        product += slope * tl.where(mask, tl.load(x + offsets, mask, 0.0).to(ACC) - near[None, :], 0.0)
    total = tl.sum(plain.to(tl.float64), 0)
    out = parts + (n * tl.num_programs(0) + s) * 2 * C + c
    tl.store(out, total, c < C)
    rest = (near.to(tl.float64) - mean) * total  # what rounding took from the mean
    tl.store(out + C, tl.sum(product.to(tl.float64), 0) + rest, c < C)


@triton.jit
def group_gradients(sums, statistics, table, weight, L, C, size, BP: tl.constexpr):
    """table (N, 4, C): mean, and the factors of dy, of x - mean and of 1 in dx. sums (N, 2, C): of all rows."""
    n, g, G = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    mean = tl.load(statistics + n * 2 * G + g)
    invstd = tl.load(statistics + n * 2 * G + G + g)
    constants = tl.zeros((BP,), tl.float64)
    slopes = tl.zeros((BP,), tl.float64)
    for i0 in range(0, size, BP):
        i = i0 + tl.arange(0, BP)
        at = sums + n * 2 * C + g * size + i
        factor = tl.zeros((BP,), tl.float64) + 1.0
        if weight is not None:
            factor = tl.load(weight + g * size + i, i < size, 0.0).to(tl.float64)
        constants += factor * tl.load(at, i < size, 0.0)
        slopes += factor * tl.load(at + C, i < size, 0.0)
    values = _long(L).to(tl.float64) * size
    slope = -invstd * invstd * invstd * (tl.sum(slopes, 0) / values)
    near = mean.to(table.dtype.element_ty)
    constant = -invstd * (tl.sum(constants, 0) / values) + slope * (near.to(tl.float64) - mean)
    for i0 in range(0, size, BP):
        i = i0 + tl.arange(0, BP)
        c = g * size + i
        scale = tl.zeros((BP,), tl.float64) + invstd
        if weight is not None:
            scale *= tl.load(weight + c, i < size, 0.0).to(tl.float64)
        out = table + n * 4 * C + c
        tl.store(out, tl.zeros((BP,), tl.float64) + near, i < size)
        tl.store(out + C, scale, i < size)
        tl.store(out + 2 * C, tl.zeros((BP,), tl.float64) + slope, i < size)
        tl.store(out + 3 * C, tl.zeros((BP,), tl.float64) + constant, i < size)


@triton.jit
def differentiate_rows(x, dy, dx, table, L, C, BA: tl.constexpr, BB: tl.constexpr, ACC: tl.constexpr):
    """dx = scale * dy + slope * (x - mean) + constant, by the table of `group_gradients`."""
    offsets, mask, c = _tile(tl.program_id(0) * BA, L, C, BA, BB)
    of_sample = table + tl.program_id(2).to(tl.int64) * 4 * C + c
    mean = tl.load(of_sample, c < C, 0.0)[None, :]
    scale = tl.load(of_sample + C, c < C, 0.0)[None, :]
    slope = tl.load(of_sample + 2 * C, c < C, 0.0)[None, :]
    constant = tl.load(of_sample + 3 * C, c < C, 0.0)[None, :]
    values = tl.load(x + offsets, mask, 0.0).to(ACC)
    slopes = tl.load(dy + offsets, mask, 0.0).to(ACC)
    tl.store(dx + offsets, scale * slopes + (slope * (values - mean) + constant), mask)
