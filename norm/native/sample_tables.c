// What group normalization makes of the sums over pieces of a sample: its statistics, and what the elementwise kernels
// read. Included by kernels.c; G groups of C / G channels, L positions.

// Rows of a piece, rows whose mean is its shift, and channels that are summed at a time.
enum { PIECE = 2048, FIRST = 16, LANES = 64 };

// What one sample needs for the sums of its pieces, the table, and a mean for every channel.
static inline long work_size(long C, long L) { return (L + PIECE - 1) / PIECE * 2 * C + 5 * C; }

// How many samples to work on at a time; 1 where that would leave threads idle, so that all work on one sample.
static inline int across_samples(long N, int threads) { return N % threads == 0 || N >= 4 * threads ? threads : 1; }

// Merges (means, m2s) of every piece into those of the first, by channel.
static void merge_pieces(double *pieces, long count, long C, long L) {
    for (long c = 0; c < C; c++) {
        moments total = {0, 0, 0};
        for (long i = 0; i < count; i++) {
            long rows = L - i * PIECE < PIECE ? L - i * PIECE : PIECE;
            add(&total, (double)rows, pieces[i * 2 * C + c], pieces[i * 2 * C + C + c]);
        }
        pieces[c] = total.mean;
        pieces[C + c] = total.m2;
    }
}

// From the (means, m2s) of the channels: stats (2, G), means and inverse standard deviations, and the table of the output.
static void group_table(const double *channels, long C, long L, long G, double eps, const void *weight, const void *bias,
                        int is_double, double *stats, channel *table) {
    long size = C / G;
    for (long g = 0; g < G; g++) {
        const double *means = channels + g * size, *m2s = means + C;
        double mean = 0, m2 = 0;
        for (long i = 0; i < size; i++) mean += (means[i] - means[0]) / (double)size;
        mean += means[0];
        for (long i = 0; i < size; i++) m2 += m2s[i] + (double)L * (means[i] - mean) * (means[i] - mean);
        double invstd = 1 / sqrt(m2 / ((double)L * (double)size) + eps);
        stats[g] = mean;
        stats[G + g] = invstd;
        for (long c = g * size; c < (g + 1) * size; c++)
            table[c] = (channel){mean, at(weight, is_double, c, 1) * invstd, at(bias, is_double, c, 0), 0};
    }
}

// Adds up the gradient sums of the pieces. sums (2, C): of dy, and of dy * normalized; table: of the gradient of x.
static void group_gradient_table(double *pieces, long count, long C, long L, long G, const double *stats,
                                 const void *weight, int is_double, double *sums, channel *table) {
    long size = C / G;
    double values = (double)L * (double)size;
    memset(sums, 0, sizeof(double) * 2 * C);
    for (long i = 0; i < count; i++)
        for (long f = 0; f < 2 * C; f++) sums[f] += pieces[i * 2 * C + f];
    for (long g = 0; g < G; g++) {
        double mean = stats[g], invstd = stats[G + g], constant = 0, slope = 0;
        for (long c = g * size; c < (g + 1) * size; c++) {
            double w = at(weight, is_double, c, 1);
            sums[C + c] *= invstd;
            constant += w * sums[c];
            slope += w * sums[C + c];
        }
        for (long c = g * size; c < (g + 1) * size; c++)
            table[c] = (channel){mean, at(weight, is_double, c, 1) * invstd, -invstd * constant / values,
                                 invstd * invstd * slope / values};
    }
}

// The gradients of the affine, in its type, from the sums (2, C) of N samples.
static void add_samples(const double *sums, long N, long C, int is_double, void *by_weight, void *by_bias) {
    for (long c = 0; c < C; c++) {
        double of_dy = 0, of_product = 0;
        for (long n = 0; n < N; n++) {
            of_dy += sums[n * 2 * C + c];
            of_product += sums[n * 2 * C + C + c];
        }
        if (by_weight && is_double) ((double *)by_weight)[c] = of_product;
        if (by_weight && !is_double) ((float *)by_weight)[c] = (float)of_product;
        if (by_bias && is_double) ((double *)by_bias)[c] = of_dy;
        if (by_bias && !is_double) ((float *)by_bias)[c] = (float)of_dy;
    }
}
