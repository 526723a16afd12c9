// Group normalization of channels_last tensors, for one element type: included by kernels.c behind kernels_of_type.c.
// A sample is L rows of C channels. Every sum is taken over pieces of a fixed number of rows and merged in their order,
// so that the bits depend on neither the number of threads nor the other samples.

// Sums of (x - k) and (x - k)^2, and below of dy and dy * (x - k), over rows of `lanes` channels, which are a constant
// where this is inlined: the sums stay in registers.
static inline __attribute__((always_inline)) void NAME(lane_sums)(const T *x, long rows, long C, const A *k,
                                                                  A *restrict s, A *restrict q, const int lanes) {
    A sums[LANES] = {0}, squares[LANES] = {0}, shift[LANES];
    for (int c = 0; c < lanes; c++) shift[c] = k[c];
    for (long r = 0; r < rows; r++, x += C)
#pragma omp simd
        for (int c = 0; c < lanes; c++) {
            A d = LOAD(x[c]) - shift[c];
            sums[c] += d;
            squares[c] += d * d;
        }
    for (int c = 0; c < lanes; c++) {
        s[c] = sums[c];
        q[c] = squares[c];
    }
}

static inline __attribute__((always_inline)) void NAME(lane_products)(const T *x, const T *dy, long rows, long C,
                                                                      const A *k, A *restrict s, A *restrict p,
                                                                      const int lanes) {
    A sums[LANES] = {0}, products[LANES] = {0}, shift[LANES];
    for (int c = 0; c < lanes; c++) shift[c] = k[c];
    for (long r = 0; r < rows; r++, x += C, dy += C)
#pragma omp simd
        for (int c = 0; c < lanes; c++) {
            A g = LOAD(dy[c]);
            sums[c] += g;
            products[c] += g * (LOAD(x[c]) - shift[c]);
        }
    for (int c = 0; c < lanes; c++) {
        s[c] = sums[c];
        p[c] = products[c];
    }
}

static void NAME(row_sums)(const T *x, long rows, long C, const A *k, A *restrict s, A *restrict q) {
    long c = 0;
    for (; c + LANES <= C; c += LANES) NAME(lane_sums)(x + c, rows, C, k + c, s + c, q + c, LANES);
    for (; c + LANES / 2 <= C; c += LANES / 2) NAME(lane_sums)(x + c, rows, C, k + c, s + c, q + c, LANES / 2);
    for (; c + LANES / 8 <= C; c += LANES / 8) NAME(lane_sums)(x + c, rows, C, k + c, s + c, q + c, LANES / 8);
    for (; c < C; c++) NAME(lane_sums)(x + c, rows, C, k + c, s + c, q + c, 1);
}

static void NAME(row_products)(const T *x, const T *dy, long rows, long C, const A *k, A *restrict s, A *restrict p) {
    long c = 0;
    for (; c + LANES <= C; c += LANES) NAME(lane_products)(x + c, dy + c, rows, C, k + c, s + c, p + c, LANES);
    for (; c + LANES / 2 <= C; c += LANES / 2)
        NAME(lane_products)(x + c, dy + c, rows, C, k + c, s + c, p + c, LANES / 2);
    for (; c + LANES / 8 <= C; c += LANES / 8)
        NAME(lane_products)(x + c, dy + c, rows, C, k + c, s + c, p + c, LANES / 8);
    for (; c < C; c++) NAME(lane_products)(x + c, dy + c, rows, C, k + c, s + c, p + c, 1);
}

// Means and m2s of the channels of one piece. The shift is the mean of its first rows.
static void NAME(measure_piece)(const T *x, long rows, long C, double *restrict mean, double *restrict m2) {
    A *k = malloc(sizeof(A) * 3 * C), *s = k + C, *q = s + C;
    long first = rows < FIRST ? rows : FIRST;
    for (long c = 0; c < C; c++) k[c] = LOAD(x[c]);
    NAME(row_sums)(x, first, C, k, s, q);
    for (long c = 0; c < C; c++) {
        k[c] = (A)((double)k[c] + (double)s[c] / first);
        mean[c] = m2[c] = 0;
    }
    for (long start = 0; start < rows; start += ROWS) {
        NAME(row_sums)(x + start * C, rows - start < ROWS ? rows - start : ROWS, C, k, s, q);
        for (long c = 0; c < C; c++) {
            mean[c] += s[c];
            m2[c] += q[c];
        }
    }
    for (long c = 0; c < C; c++) {
        double delta = mean[c] / rows;
        m2[c] -= mean[c] * delta;
        mean[c] = (double)k[c] + delta;
    }
    free(k);
}

// Sums of dy and of dy * (x - mean) of the channels of one piece.
static void NAME(sum_piece)(const T *x, const T *dy, long rows, long C, const double *mean, double *restrict of_dy,
                            double *restrict of_product) {
    A *k = malloc(sizeof(A) * 3 * C), *s = k + C, *p = s + C;
    for (long c = 0; c < C; c++) {
        k[c] = (A)mean[c];
        of_dy[c] = of_product[c] = 0;
    }
    for (long start = 0; start < rows; start += ROWS) {
        long at = start * C;
        NAME(row_products)(x + at, dy + at, rows - start < ROWS ? rows - start : ROWS, C, k, s, p);
        for (long c = 0; c < C; c++) {
            of_dy[c] += s[c];
            of_product[c] += p[c];
        }
    }
    for (long c = 0; c < C; c++) of_product[c] -= (mean[c] - (double)k[c]) * of_dy[c];
    free(k);
}

// One sample of the forward. stats (2, G): means and inverse standard deviations. work: doubles for every piece.
static void NAME(forward_sample)(const T *x, T *y, long C, long L, long G, int threads, double eps, const void *weight,
                                 const void *bias, int is_double, double *stats, double *work) {
    long pieces = (L + PIECE - 1) / PIECE;
    channel *table = (channel *)(work + pieces * 2 * C);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < pieces; i++) {
        long rows = L - i * PIECE < PIECE ? L - i * PIECE : PIECE;
        NAME(measure_piece)(x + i * PIECE * C, rows, C, work + i * 2 * C, work + i * 2 * C + C);
    }
    merge_pieces(work, pieces, C, L);
    group_table(work, C, L, G, eps, weight, bias, is_double, stats, table);
    NAME(normalize)(x, y, 1, C, L, 1, threads, table);
}

// One sample of the backward. sums (2, C): of dy, and of dy * normalized.
static void NAME(backward_sample)(const T *x, const T *dy, T *dx, long C, long L, long G, int threads,
                                  const double *stats, const void *weight, int is_double, double *sums, double *work) {
    long pieces = (L + PIECE - 1) / PIECE;
    channel *table = (channel *)(work + pieces * 2 * C);
    double *mean = (double *)(table + C);
    for (long c = 0; c < C; c++) mean[c] = stats[c / (C / G)];
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < pieces; i++) {
        long rows = L - i * PIECE < PIECE ? L - i * PIECE : PIECE, at = i * PIECE * C;
        NAME(sum_piece)(x + at, dy + at, rows, C, mean, work + i * 2 * C, work + i * 2 * C + C);
    }
    group_gradient_table(work, pieces, C, L, G, stats, weight, is_double, sums, table);
    NAME(input_gradient)(x, dy, dx, 1, C, L, 1, threads, table);
}

// Samples in parallel where there are enough of them, so that a sample stays in a core's cache; else one by one.
void NAME(group_forward)(const void *data, void *out, long N, long C, long L, long G, int threads, double eps,
                         const void *weight, const void *bias, int is_double, double *stats) {
    int across = across_samples(N, threads), within = across > 1 ? 1 : threads;
#pragma omp parallel num_threads(across) if (across > 1)
    {
        double *work = malloc(sizeof(double) * work_size(C, L));
#pragma omp for
        for (long n = 0; n < N; n++)
            NAME(forward_sample)((const T *)data + n * L * C, (T *)out + n * L * C, C, L, G, within, eps, weight, bias,
                                 is_double, stats + n * 2 * G, work);
        free(work);
    }
}

// by_weight, by_bias: gradients of the affine, in its type, or NULL.
void NAME(group_backward)(const void *data, const void *grad, void *out, long N, long C, long L, long G, int threads,
                          const double *stats, const void *weight, int is_double, void *by_weight, void *by_bias) {
    int across = across_samples(N, threads), within = across > 1 ? 1 : threads;
    double *sums = malloc(sizeof(double) * N * 2 * C);
#pragma omp parallel num_threads(across) if (across > 1)
    {
        double *work = malloc(sizeof(double) * work_size(C, L));
#pragma omp for
        for (long n = 0; n < N; n++) {
            long at = n * L * C;
            NAME(backward_sample)((const T *)data + at, (const T *)grad + at, (T *)out + at, C, L, G, within,
                                  stats + n * 2 * G, weight, is_double, sums + n * 2 * C, work);
        }
        free(work);
    }
    add_samples(sums, N, C, is_double, by_weight, by_bias);
    free(sums);
}
