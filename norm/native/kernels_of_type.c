// The kernels for one element type: included by kernels.c with T (stored), A (computed with), LOAD, STORE and NAME set.
// Inputs are either planes (N, C, L) or rows (N*L, C), both dense.

// Sums of (x - k) and (x - k)^2 over n contiguous values.
static inline void NAME(plane_sums)(const T *x, long n, A k, double *sum, double *squares) {
    A s = 0, q = 0;
#pragma omp simd reduction(+ : s, q)
    for (long i = 0; i < n; i++) {
        A d = LOAD(x[i]) - k;
        s += d;
        q += d * d;
    }
    *sum = s;
    *squares = q;
}

static void NAME(measure_channel)(const T *x, long N, long C, long L, double *mean, double *m2) {
    moments total = {0, 0, 0};
    A k = 0;
    int has_shift = 0;
    for (long n = 0; n < N; n++) {
        for (long start = 0; start < L; start += BLOCK) {
            const T *values = x + n * C * L + start;
            long count = L - start < BLOCK ? L - start : BLOCK;
            double s, q;
            if (!has_shift) { // the first block's own mean; later ones are shifted by the mean so far
                NAME(plane_sums)(values, count, LOAD(values[0]), &s, &q);
                k = (A)((double)LOAD(values[0]) + s / count);
                has_shift = 1;
            }
            NAME(plane_sums)(values, count, k, &s, &q);
            add_shifted(&total, count, k, s, q);
            k = (A)total.mean;
        }
    }
    *mean = total.mean;
    *m2 = total.m2;
}

// STRIP channels of R rows at once: the lanes of a vector are channels.
static void NAME(measure_strip)(const T *x, long R, long C, long width, double *mean, double *m2) {
    moments total[STRIP] = {{0, 0, 0}};
    A k[STRIP], s[STRIP], q[STRIP];
    for (long c = 0; c < STRIP; c++) k[c] = c < width ? LOAD(x[c]) : 0;
    for (long start = 0; start < R; start += ROWS) {
        long rows = R - start < ROWS ? R - start : ROWS;
        for (int pass = start == 0 ? 0 : 1; pass < 2; pass++) {
            for (long c = 0; c < STRIP; c++) s[c] = q[c] = 0;
            for (long r = start; r < start + rows; r++) {
                const T *row = x + r * C;
#pragma omp simd
                for (long c = 0; c < width; c++) {
                    A d = LOAD(row[c]) - k[c];
                    s[c] += d;
                    q[c] += d * d;
                }
            }
            if (pass == 0)
                for (long c = 0; c < width; c++) k[c] = (A)((double)k[c] + (double)s[c] / rows);
        }
        for (long c = 0; c < width; c++) {
            add_shifted(&total[c], rows, k[c], s[c], q[c]);
            k[c] = (A)total[c].mean;
        }
    }
    for (long c = 0; c < width; c++) {
        mean[c] = total[c].mean;
        m2[c] = total[c].m2;
    }
}

void NAME(measure)(const void *data, long N, long C, long L, int by_rows, int threads, double *row) {
    const T *x = data;
    double *mean = row + 1, *m2 = row + 1 + C;
    row[0] = (double)N * L;
    if (N * L == 0) {
        memset(row, 0, sizeof(double) * (2 * C + 1));
    } else if (by_rows) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long c = 0; c < C; c += STRIP)
            NAME(measure_strip)(x + c, N * L, C, C - c < STRIP ? C - c : STRIP, mean + c, m2 + c);
    } else {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long c = 0; c < C; c++) NAME(measure_channel)(x + c * L, N, C, L, mean + c, m2 + c);
    }
}

// Rows of `lanes` channels, a constant where these two are inlined: what each channel needs stays in registers. The
// tables have a row of C for each of it.
static inline __attribute__((always_inline)) void NAME(normalize_lanes)(const T *x, T *y, long rows, long C,
                                                                        const A *tables, const int lanes) {
    A shift[LANES], scale[LANES], offset[LANES];
    for (int c = 0; c < lanes; c++) {
        shift[c] = tables[c];
        scale[c] = tables[C + c];
        offset[c] = tables[2 * C + c];
    }
    for (long r = 0; r < rows; r++, x += C, y += C)
#pragma omp simd
        for (int c = 0; c < lanes; c++) y[c] = STORE((LOAD(x[c]) - shift[c]) * scale[c] + offset[c]);
}

static inline __attribute__((always_inline)) void NAME(gradient_lanes)(const T *x, const T *dy, T *dx, long rows, long C,
                                                                       const A *tables, const int lanes) {
    A shift[LANES], scale[LANES], offset[LANES], slope[LANES];
    for (int c = 0; c < lanes; c++) {
        shift[c] = tables[c];
        scale[c] = tables[C + c];
        offset[c] = tables[2 * C + c];
        slope[c] = tables[3 * C + c];
    }
    for (long r = 0; r < rows; r++, x += C, dy += C, dx += C)
#pragma omp simd
        for (int c = 0; c < lanes; c++)
            dx[c] = STORE(LOAD(dy[c]) * scale[c] + (offset[c] - slope[c] * (LOAD(x[c]) - shift[c])));
}

static void NAME(normalize_rows)(const T *x, T *y, long rows, long C, const A *tables) {
    long c = 0;
    for (; c + LANES <= C; c += LANES) NAME(normalize_lanes)(x + c, y + c, rows, C, tables + c, LANES);
    for (; c + LANES / 2 <= C; c += LANES / 2) NAME(normalize_lanes)(x + c, y + c, rows, C, tables + c, LANES / 2);
    for (; c + LANES / 8 <= C; c += LANES / 8) NAME(normalize_lanes)(x + c, y + c, rows, C, tables + c, LANES / 8);
    for (; c < C; c++) NAME(normalize_lanes)(x + c, y + c, rows, C, tables + c, 1);
}

static void NAME(gradient_rows)(const T *x, const T *dy, T *dx, long rows, long C, const A *tables) {
    long c = 0;
    for (; c + LANES <= C; c += LANES) NAME(gradient_lanes)(x + c, dy + c, dx + c, rows, C, tables + c, LANES);
    for (; c + LANES / 2 <= C; c += LANES / 2)
        NAME(gradient_lanes)(x + c, dy + c, dx + c, rows, C, tables + c, LANES / 2);
    for (; c + LANES / 8 <= C; c += LANES / 8)
        NAME(gradient_lanes)(x + c, dy + c, dx + c, rows, C, tables + c, LANES / 8);
    for (; c < C; c++) NAME(gradient_lanes)(x + c, dy + c, dx + c, rows, C, tables + c, 1);
}

// y = (x - shift) * scale + offset; scale, offset and shift per channel.
void NAME(normalize)(const void *data, void *out, long N, long C, long L, int by_rows, int threads,
                     const channel *table) {
    const T *x = data;
    T *y = out;
    if (by_rows) {
        A *tables = malloc(sizeof(A) * 3 * C);
        for (long c = 0; c < C; c++) {
            tables[c] = (A)table[c].mean;
            tables[C + c] = (A)table[c].scale;
            tables[2 * C + c] = (A)(table[c].bias - (table[c].mean - (double)tables[c]) * table[c].scale);
        }
        long step = rows_at_a_time(C);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long r = (N * L - 1) / step * step; r >= 0; r -= step)
            NAME(normalize_rows)(x + r * C, y + r * C, N * L - r < step ? N * L - r : step, C, tables);
        free(tables);
        return;
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) collapse(2)
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C; c++) {
            // What rounding takes from the mean is given back in the offset.
            A shift = (A)table[c].mean, scale = (A)table[c].scale;
            A offset = (A)(table[c].bias - (table[c].mean - (double)shift) * table[c].scale);
            const T *from = x + (n * C + c) * L;
            T *to = y + (n * C + c) * L;
#pragma omp simd
            for (long i = 0; i < L; i++) to[i] = STORE((LOAD(from[i]) - shift) * scale + offset);
        }
}

static void NAME(sum_strip)(const T *x, const T *dy, long R, long C, long width, const double *mean, double *sum_dy,
                            double *sum_dyx) {
    A k[STRIP], s[STRIP], p[STRIP];
    for (long c = 0; c < width; c++) {
        k[c] = (A)mean[c];
        sum_dy[c] = sum_dyx[c] = 0;
    }
    for (long start = 0; start < R; start += ROWS) {
        long rows = R - start < ROWS ? R - start : ROWS;
        for (long c = 0; c < STRIP; c++) s[c] = p[c] = 0;
        for (long r = start; r < start + rows; r++) {
            const T *row = x + r * C, *grad = dy + r * C;
#pragma omp simd
            for (long c = 0; c < width; c++) {
                A g = LOAD(grad[c]);
                s[c] += g;
                p[c] += g * (LOAD(row[c]) - k[c]);
            }
        }
        for (long c = 0; c < width; c++) {
            sum_dy[c] += s[c];
            sum_dyx[c] += p[c] - (mean[c] - (double)k[c]) * s[c];
        }
    }
}

static void NAME(sum_channel)(const T *x, const T *dy, long N, long C, long L, double mean, double *sum_dy,
                              double *sum_dyx) {
    A k = (A)mean;
    *sum_dy = *sum_dyx = 0;
    for (long n = 0; n < N; n++)
        for (long start = 0; start < L; start += BLOCK) {
            const T *values = x + n * C * L + start, *grads = dy + n * C * L + start;
            long count = L - start < BLOCK ? L - start : BLOCK;
            A s = 0, p = 0;
#pragma omp simd reduction(+ : s, p)
            for (long i = 0; i < count; i++) {
                A g = LOAD(grads[i]);
                s += g;
                p += g * (LOAD(values[i]) - k);
            }
            *sum_dy += s;
            *sum_dyx += p - (mean - (double)k) * s;
        }
}

// row: sums of dy, then of dy * (x - mean).
void NAME(gradient_sums)(const void *data, const void *grad, long N, long C, long L, int by_rows, int threads,
                         const double *mean, double *row) {
    const T *x = data, *dy = grad;
    if (by_rows) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long c = 0; c < C; c += STRIP)
            NAME(sum_strip)(x + c, dy + c, N * L, C, C - c < STRIP ? C - c : STRIP, mean + c, row + c, row + C + c);
    } else {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long c = 0; c < C; c++)
            NAME(sum_channel)(x + c * L, dy + c * L, N, C, L, mean[c], row + c, row + C + c);
    }
}

// dx = scale * (dy - constant - slope * (x - mean)), written as scale * dy + a - b * (x - mean).
void NAME(input_gradient)(const void *data, const void *grad, void *out, long N, long C, long L, int by_rows,
                          int threads, const channel *table) {
    const T *x = data, *dy = grad;
    T *dx = out;
    if (by_rows) {
        A *tables = malloc(sizeof(A) * 4 * C);
        for (long c = 0; c < C; c++) {
            tables[c] = (A)table[c].mean;
            tables[C + c] = (A)table[c].scale;
            tables[2 * C + c] = (A)(table[c].bias + (table[c].mean - (double)tables[c]) * table[c].slope);
            tables[3 * C + c] = (A)table[c].slope;
        }
        long step = rows_at_a_time(C);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long r = (N * L - 1) / step * step; r >= 0; r -= step)
            NAME(gradient_rows)(x + r * C, dy + r * C, dx + r * C, N * L - r < step ? N * L - r : step, C, tables);
        free(tables);
        return;
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) collapse(2)
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C; c++) {
            A shift = (A)table[c].mean, scale = (A)table[c].scale, slope = (A)table[c].slope;
            A offset = (A)(table[c].bias + (table[c].mean - (double)shift) * table[c].slope);
            const T *row = x + (n * C + c) * L, *from = dy + (n * C + c) * L;
            T *to = dx + (n * C + c) * L;
#pragma omp simd
            for (long i = 0; i < L; i++)
                to[i] = STORE(LOAD(from[i]) * scale + (offset - slope * (LOAD(row[i]) - shift)));
        }
}
