// Batch and group normalization on the CPU: moments, output and gradients of float32, float64 and bfloat16 tensors, and the
// exchange of rows of doubles between processes of one host. Called through ctypes; see kernels.py.
//
// Statistics are summed in the element's precision over blocks of a shifted channel, and merged in double (Chan et
// al. 1979), so that a large mean costs no accuracy.

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 1024, ROWS = 64, STRIP = 64 };

typedef struct {
    double count, mean, m2;
} moments;

// What an elementwise kernel needs of one channel: out = (in - mean) * scale + bias, and for the gradient a slope.
typedef struct {
    double mean, scale, bias, slope;
} channel;

// Rows that a thread takes at a time, some 128 KiB of float32: they stay in its cache while their channels are taken in
// turn. The last rows come first, since the pass that measured them has left them in the cache.
static inline long rows_at_a_time(long C) { return 1 + 32768 / (C + 1); }

static inline void add(moments *total, double count, double mean, double m2) {
    double all = total->count + count, delta = mean - total->mean;
    if (all == 0) return;
    total->m2 += m2 + delta * delta * total->count * count / all;
    total->mean += delta * count / all;
    total->count = all;
}

// Adds `count` values of which the sums of (x - k) and (x - k)^2 are known.
static inline void add_shifted(moments *total, double count, double k, double sum, double squares) {
    double delta = sum / count;
    add(total, count, k + delta, squares - sum * delta);
}

static inline double at(const void *values, int is_double, long i, double otherwise) {
    if (!values) return otherwise;
    return is_double ? ((const double *)values)[i] : ((const float *)values)[i];
}

#include "sample_tables.c"

#define IDENTITY(v) (v)
#define T float
#define A float
#define LOAD IDENTITY
#define STORE IDENTITY
#define NAME(f) f##_f32
#include "kernels_of_type.c"
#include "sample_kernels.c"
#undef T
#undef A
#undef NAME

#define T double
#define A double
#define NAME(f) f##_f64
#include "kernels_of_type.c"
#include "sample_kernels.c"
#undef T
#undef A
#undef LOAD
#undef STORE
#undef NAME

static inline float from_bf16(uint16_t v) {
    union { uint32_t bits; float value; } u = {(uint32_t)v << 16};
    return u.value;
}

static inline uint16_t to_bf16(float v) { // rounds to nearest even; NaN stays NaN
    union { float value; uint32_t bits; } u = {v};
    uint32_t rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return (uint16_t)(v != v ? 0x7fc0 : rounded);
}

#define T uint16_t
#define A float
#define LOAD from_bf16
#define STORE to_bf16
#define NAME(f) f##_bf16
#include "kernels_of_type.c"
#include "sample_kernels.c"

// --- statistics of the group -----------------------------------------------------------------------------------------

// Merges W rows (count, C means, C m2s), each `stride` doubles after the last, into one such row.
void merge_rows(const double *rows, long W, long stride, long C, double *out) {
    if (W == 1) { // as it is: a mean times its count, divided again, may lose its last bit
        memcpy(out, rows, sizeof(double) * (2 * C + 1));
        return;
    }
    double count = 0;
    for (long w = 0; w < W; w++) count += rows[w * stride];
    out[0] = count;
    double divisor = count > 0 ? count : 1;
    for (long c = 0; c < C; c++) {
        double mean = 0, m2 = 0;
        for (long w = 0; w < W; w++) mean += rows[w * stride] * rows[w * stride + 1 + c];
        mean /= divisor;
        for (long w = 0; w < W; w++) {
            double delta = rows[w * stride + 1 + c] - mean;
            m2 += rows[w * stride + 1 + C + c] + rows[w * stride] * delta * delta;
        }
        out[1 + c] = mean;
        out[1 + C + c] = m2;
    }
}

void sum_rows(const double *rows, long W, long stride, long F, double *out) {
    for (long i = 0; i < F; i++) {
        double sum = 0;
        for (long w = 0; w < W; w++) sum += rows[w * stride + i];
        out[i] = sum;
    }
}

// stats: count, means, m2s. Fills the table for `normalize`.
void output_table(const double *stats, long C, double eps, const void *weight, const void *bias, int is_double,
                  channel *table) {
    double divisor = stats[0] > 0 ? stats[0] : 1;
    for (long c = 0; c < C; c++) {
        double invstd = 1 / sqrt(stats[1 + C + c] / divisor + eps);
        table[c] = (channel){stats[1 + c], at(weight, is_double, c, 1) * invstd, at(bias, is_double, c, 0), 0};
    }
}

// local, total: sums of dy and of dy * (x - mean). Fills the table for `input_gradient` and the affine gradients.
void gradient_table(const double *stats, long C, double eps, const double *local, const double *total,
                    const void *weight, int is_double, channel *table, void *weight_grad, void *bias_grad) {
    double divisor = stats[0] > 0 ? stats[0] : 1;
    for (long c = 0; c < C; c++) {
        double invstd = 1 / sqrt(stats[1 + C + c] / divisor + eps);
        double scale = at(weight, is_double, c, 1) * invstd;
        table[c] = (channel){stats[1 + c], scale, -scale * total[c] / divisor,
                             scale * total[C + c] / divisor * invstd * invstd};
        double by_weight = local[C + c] * invstd, by_bias = local[c];
        if (weight_grad && is_double) ((double *)weight_grad)[c] = by_weight;
        if (weight_grad && !is_double) ((float *)weight_grad)[c] = (float)by_weight;
        if (bias_grad && is_double) ((double *)bias_grad)[c] = by_bias;
        if (bias_grad && !is_double) ((float *)bias_grad)[c] = (float)by_bias;
    }
}

static inline void move(void *buffer, int is_double, long i, double momentum, double batch) {
    double old = at(buffer, is_double, i, 0), now = old + momentum * (batch - old);
    if (is_double) ((double *)buffer)[i] = now;
    else ((float *)buffer)[i] = (float)now;
}

// momentum < 0: the cumulative average. A batch with a value that is not finite is counted and otherwise ignored.
void update_running(const double *stats, long C, double momentum, void *mean, void *var, int is_double,
                    int64_t *batches, int64_t *non_finite) {
    if (stats[0] == 0) return;
    for (long c = 0; c < 2 * C; c++)
        if (!isfinite(stats[1 + c])) {
            ++*non_finite;
            return;
        }
    if (stats[0] < 2) return; // the layer raises
    ++*batches;
    double step = momentum < 0 ? 1.0 / (double)*batches : momentum;
    double divisor = stats[0] > 1 ? stats[0] - 1 : 1; // Bessel
    for (long c = 0; c < C; c++) {
        move(mean, is_double, c, step, stats[1 + c]);
        move(var, is_double, c, step, stats[1 + C + c] / divisor);
    }
}

#define FINISH(SUFFIX)                                                                                                  \
    void finish_forward_##SUFFIX(const void *x, void *y, long N, long C, long L, int by_rows, int threads,              \
                                 const double *rows, long W, long stride, double *work, double eps,                     \
                                 const void *weight, const void *bias, int is_double, double momentum, void *mean,      \
                                 void *var, int running_is_double, int64_t *batches, int64_t *non_finite) {             \
        channel *table = (channel *)(work + 2 * C + 1);                                                                \
        merge_rows(rows, W, stride, C, work);                                                                          \
        if (mean) update_running(work, C, momentum, mean, var, running_is_double, batches, non_finite);                \
        output_table(work, C, eps, weight, bias, is_double, table);                                                    \
        normalize_##SUFFIX(x, y, N, C, L, by_rows, threads, table);                                                    \
    }                                                                                                                  \
    void finish_backward_##SUFFIX(const void *x, const void *dy, void *dx, long N, long C, long L, int by_rows,         \
                                  int threads, const double *stats, const double *local, const double *rows, long W,    \
                                  long stride, double *work, double eps, const void *weight, int is_double,             \
                                  void *by_weight, void *by_bias) {                                                    \
        channel *table = (channel *)(work + 2 * C);                                                                    \
        sum_rows(rows, W, stride, 2 * C, work);                                                                        \
        gradient_table(stats, C, eps, local, work, weight, is_double, table, by_weight, by_bias);                      \
        input_gradient_##SUFFIX(x, dy, dx, N, C, L, by_rows, threads, table);                                          \
    }
FINISH(f32)
FINISH(f64)
FINISH(bf16)

// --- exchange between processes of one host --------------------------------------------------------------------------
//
// Each rank owns an area: a cache line with the number of its last published round, then two slots (a rank is at most
// one round ahead of the slowest, so two are enough). A slot is a header of HEADER doubles and a row.

enum { HEADER = 16, LINE = 64 };

static inline char *area(char *base, long rank, long capacity) {
    return base + rank * (LINE + 2 * 8 * (HEADER + capacity));
}

double *slot(char *base, long rank, long capacity, uint64_t round) {
    return (double *)(area(base, rank, capacity) + LINE) + (round & 1) * (HEADER + capacity);
}

void publish(char *base, long rank, long capacity, uint64_t round) {
    atomic_store_explicit((_Atomic uint64_t *)area(base, rank, capacity), round, memory_order_release);
}

uint64_t published(char *base, long rank, long capacity) {
    return atomic_load_explicit((_Atomic uint64_t *)area(base, rank, capacity), memory_order_acquire);
}

static inline double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void relax(long spins) {
    if (spins < 2000) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    } else if (spins < 20000) {
        sched_yield();
    } else {
        nanosleep(&(struct timespec){0, 100000}, NULL);
    }
}

// 0: every rank has published `round` under the same first four header words; -1: not within `slice_s`; otherwise
// 1 + the first rank that published something else.
static long await_round(char *base, long rank, long W, long capacity, uint64_t round, double slice_s) {
    double deadline = 0;
    for (long w = 0, spins = 0; w < W;) {
        if (published(base, w, capacity) >= round) {
            w++;
            continue;
        }
        relax(spins++);
        if ((spins & 255) == 0) {
            double now = now_s();
            if (deadline == 0) deadline = now + slice_s;
            if (now > deadline) return -1;
        }
    }
    const double *mine = slot(base, rank, capacity, round);
    for (long w = 0; w < W; w++)
        if (memcmp(mine, slot(base, w, capacity, round), 4 * sizeof(double)) != 0) return 1 + w;
    return 0;
}

// One rank's part in the exchange. Written by shared_memory.py; `round` counts on here.
typedef struct {
    char *base;
    long rank, W, capacity;
    uint64_t round;
    double slice_s;
} meeting;

long await_all(meeting *m) { return await_round(m->base, m->rank, m->W, m->capacity, m->round, m->slice_s); }

// Copies the header and the row into this rank's slot, announces the next round and waits for it; see await_round.
long exchange_row(meeting *m, const void *header, const double *row, long length) {
    double *to = slot(m->base, m->rank, m->capacity, ++m->round);
    memcpy(to, header, HEADER * sizeof(double));
    memcpy(to + HEADER, row, length * sizeof(double));
    publish(m->base, m->rank, m->capacity, m->round);
    return await_all(m);
}

// Where the rows of this round lie, each `row_stride` doubles after the last.
const double *arrived_rows(meeting *m) { return slot(m->base, 0, m->capacity, m->round) + HEADER; }

long row_stride(meeting *m) { return (LINE + 2 * 8 * (HEADER + m->capacity)) / 8; }
