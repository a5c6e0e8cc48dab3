// Flash attention on the CPU (Dao et al., arXiv 2205.14135 and 2307.08691): exact, tiled, linear in memory.
//
// A tile is QUERIES queries (one register tile wide) by KEYS keys, stored transposed: S^T (KEYS, QUERIES), so that
// vectors run along the queries. Row statistics are then plain vector operations, and every product of the algorithm
// can be computed by one register kernel (layers/simd_cpu.h), which broadcasts the elements of one operand from its
// place in memory and reads the other in rows of QUERIES or of whole vectors of channels:
//
//     S^T  (keys, queries)  = K Q^T        broadcasts K      reads Q^T  (HS, QUERIES), packed once per query tile
//     O^T  (HS, queries)   += V^T A^T      broadcasts V      reads A^T  (KEYS, QUERIES)
//     dA^T (keys, queries)  = V dO^T       broadcasts V      reads dO^T (HS, QUERIES)
//     dQ^T (HS, queries)   += K^T dS^T     broadcasts K      reads dS^T (KEYS, QUERIES)
//     dV   (keys, HS)      += A^T dO       broadcasts A^T    reads dO   (QUERIES, HS)
//     dK   (keys, HS)      += dS^T Q       broadcasts dS^T   reads Q    (QUERIES, HS)
//
// K and V are never packed or copied. A task is a (sequence, head, query tile) in forward, and a (sequence, key-value
// head) in backward, which adds up its dK and dV in the order of the query tiles. Tasks share no results, so these do
// not depend on the number of threads.
#include "attention.h"

#include <float.h>
#include "layers/simd_cpu.h"

enum {
    QUERIES = TILE_COLUMNS,
    KEYS = 64,
    HEAD = ATTENTION_LARGEST_HEAD,
};

// ---- products ---------------------------------------------------------------------------------------------

typedef void (*ProductKernel)(size_t K, const float *a, size_t a_row, size_t a_k, const float *b, size_t b_k,
                              float *c, size_t c_row, int accumulate);
#define DEFINE_PRODUCT(rows)                                                                                 \
    static void product_##rows(size_t K, const float *a, size_t a_row, size_t a_k, const float *b,           \
                               size_t b_k, float *c, size_t c_row, int accumulate) {                         \
        multiply_tile(rows, K, a, a_row, a_k, b, b_k, c, c_row, accumulate);                                 \
    }
EACH_TILE_HEIGHT(DEFINE_PRODUCT)
#define NAME_PRODUCT(rows) product_##rows,
static const ProductKernel product_kernels[] = {NULL, EACH_TILE_HEIGHT(NAME_PRODUCT)};

// C (rows, TILE_COLUMNS) (+)= A (rows, K) B (K, TILE_COLUMNS), for any number of rows.
static void product(size_t rows, size_t K, const float *a, size_t a_row, size_t a_k, const float *b,
                    size_t b_k, float *c, size_t c_row, int accumulate) {
    size_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (size_t tile = 0; tile < tiles; tile++) {
        size_t first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
        product_kernels[count](K, a + first * a_row, a_row, a_k, b, b_k, c + first * c_row, c_row,
                               accumulate);
    }
}

// ---- tiles ------------------------------------------------------------------------------------------------

// One query tile of one head against the keys of its key-value head.
typedef struct {
    const Attention *a;
    size_t b, head;
    size_t first, count; // first query and number of queries
    const float *q;      // row of the first query
    const float *k, *v;  // rows of key 0
} QueryTile;

static QueryTile query_tile(const Attention *a, const float *q, const float *k, const float *v, size_t b,
                            size_t head, size_t first) {
    size_t kv = b * a->kv_sequence + head / (a->NH / a->NKV) * a->HS;
    QueryTile tile = {a, b, head, first, min_size(QUERIES, a->Tq - first), NULL, k + kv, v + kv};
    tile.q = q + b * a->q_sequence + first * a->q_token + head * a->HS;
    return tile;
}

// Transposes rows of `count` tokens into columns; columns from `count` on are zero.
static void transpose_in(float *to, const float *from, size_t stride, size_t count, size_t HS) {
    for (size_t c = 0; c < HS; c++)
        for (size_t i = 0; i < QUERIES; i++) to[c * QUERIES + i] = i < count ? from[i * stride + c] : 0.0f;
}

// Transposes columns into rows of `count` tokens, multiplying each column by its factor.
static void transpose_out(float *to, size_t stride, const float *from, const float *factor, size_t count,
                          size_t HS) {
    for (size_t i = 0; i < count; i++)
        for (size_t c = 0; c < HS; c++) to[i * stride + c] = from[c * QUERIES + i] * factor[i];
}

// Copies rows of `count` tokens into rows of `width` channels; channels from HS on and rows from `count` on are zero.
static void copy_in(float *to, size_t width, const float *from, size_t stride, size_t count, size_t HS) {
    memset(to, 0, QUERIES * width * sizeof(float));
    for (size_t i = 0; i < count; i++) memcpy(to + i * width, from + i * stride, HS * sizeof(float));
}

// Returns the first query of the tile that sees `key`, or QUERIES if none does. Later queries see it too.
static size_t first_query_that_sees(const QueryTile *tile, size_t key) {
    if (tile->a->mask == MASK_NONE) return 0;
    ptrdiff_t query = (ptrdiff_t)key + (ptrdiff_t)tile->a->Tq - (ptrdiff_t)tile->a->Tk -
                      (ptrdiff_t)tile->first;
    return query < 0 ? 0 : min_size((size_t)query, QUERIES);
}

// Sets s to `value` where a key is hidden from a query.
static void fill_hidden(float s[KEYS][QUERIES], const QueryTile *tile, size_t key0, size_t keys,
                        float value) {
    if (first_query_that_sees(tile, key0 + keys - 1) == 0) return; // all keys are visible
    for (size_t j = 0; j < keys; j++) {
        size_t visible = first_query_that_sees(tile, key0 + j);
        for (size_t i = 0; i < visible; i++) s[j][i] = value;
    }
}

// Computes the dropout mask of the tile, transposed, with values 0 or the inverse keep rate. key0 is a multiple of
// DROPOUT_BLOCK_KEYS, the first query a multiple of QUERIES.
static void dropout_factors(float factor[KEYS][QUERIES], const QueryTile *tile, size_t key0, size_t keys) {
    const Attention *a = tile->a;
    const float scale = dropout_scale(&a->dropout);
    for (size_t block = 0; block < keys; block += DROPOUT_BLOCK_KEYS)
        for (size_t query = 0; query < QUERIES;) {
            uint8_t bytes[DROPOUT_BLOCK_QUERIES][DROPOUT_BLOCK_KEYS];
            size_t in_block = (tile->first + query) % DROPOUT_BLOCK_QUERIES;
            size_t count = min_size(DROPOUT_BLOCK_QUERIES - in_block, QUERIES - query);
            attention_dropout_block(bytes, a, tile->b, tile->head,
                                    (tile->first + query) / DROPOUT_BLOCK_QUERIES,
                                    (key0 + block) / DROPOUT_BLOCK_KEYS);
            for (size_t j = 0; j < DROPOUT_BLOCK_KEYS; j++)
                for (size_t i = 0; i < count; i++)
                    factor[block + j][query + i] = bytes[in_block + i][j] < a->dropout.threshold ? scale
                                                                                                 : 0.0f;
            query += count;
        }
}

void attention_dropout_block(uint8_t bytes[DROPOUT_BLOCK_QUERIES][DROPOUT_BLOCK_KEYS], const Attention *a,
                             size_t sequence, size_t head, size_t block_row, size_t block_column) {
    for (uint32_t first = 0; first < 32; first += PHILOX_LANES) {
        uint32_t word[4][PHILOX_LANES];
        for (uint32_t i = 0; i < PHILOX_LANES; i++) {
            word[0][i] = (uint32_t)block_row;
            word[1][i] = (uint32_t)block_column * 32 + first + i;
            word[2][i] = (a->dropout.first_sequence + (uint32_t)sequence) * (uint32_t)a->NH + (uint32_t)head;
            word[3][i] = a->dropout.step;
        }
        philox_lanes(a->dropout.key, word[0], word[1], word[2], word[3]);
        for (uint32_t i = 0; i < PHILOX_LANES; i++) {
            uint32_t q = (first + i) / 4, k = (first + i) % 4 * 2;
            for (uint32_t pair = 0; pair < 8; pair++) { // two bytes, for keys k and k + 1
                uint32_t two = word[pair / 2][i] >> (16 * (pair % 2));
                uint8_t *to = &bytes[q + 8 * (pair / 4)][k + 8 * (pair % 4)];
                to[0] = (uint8_t)two;
                to[1] = (uint8_t)(two >> 8);
            }
        }
    }
}

// ---- forward ----------------------------------------------------------------------------------------------

typedef struct {
    float q[HEAD * QUERIES];   // Q^T (HS, QUERIES)
    float out[HEAD * QUERIES]; // O^T (HS, QUERIES), not yet divided by the sum
    float s[KEYS][QUERIES];
    float factor[KEYS][QUERIES];
    float maximum[QUERIES], sum[QUERIES]; // running maximum of the scaled scores and sum of exponentials
} ForwardTile;

// Updates the running maximum with the scores of the tile, and rescales the sums, which are relative to the old one.
static void rescale(ForwardTile *t, size_t keys, size_t HS) {
    float old[QUERIES], correction[QUERIES], moved = 0.0f;
    memcpy(old, t->maximum, sizeof(old));
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < QUERIES; i++)
            t->maximum[i] = t->s[j][i] > t->maximum[i] ? t->s[j][i] : t->maximum[i];
    for (size_t i = 0; i < QUERIES; i++) {
        correction[i] = fast_exp(old[i] - t->maximum[i]);
        t->sum[i] *= correction[i];
    }
    for (size_t i = 0; i < QUERIES; i++) moved = old[i] != t->maximum[i] ? 1.0f : moved;
    if (moved == 0.0f) return;
    for (size_t c = 0; c < HS; c++)
        for (size_t i = 0; i < QUERIES; i++) t->out[c * QUERIES + i] *= correction[i];
}

// Replaces scores by exponentials and adds them to the sums.
static void exponentiate(ForwardTile *t, const QueryTile *tile, size_t key0, size_t keys) {
    float maximum[QUERIES], sum[QUERIES];
    memcpy(maximum, t->maximum, sizeof(maximum));
    memcpy(sum, t->sum, sizeof(sum));
    for (size_t j = 0; j < keys; j++) {
        float *s = t->s[j];
        size_t visible = first_query_that_sees(tile, key0 + j);
        for (size_t i = 0; i < QUERIES; i++) s[i] = fast_exp(s[i] - maximum[i]);
        for (size_t i = 0; i < visible; i++) s[i] = 0.0f;
        for (size_t i = 0; i < QUERIES; i++) sum[i] += s[i];
    }
    memcpy(t->sum, sum, sizeof(sum));
}

// Processes one key tile: scores, online softmax (Milakov and Gimelshein, arXiv 1805.02867), O^T += V^T A^T.
static void forward_keys(ForwardTile *t, const QueryTile *tile, size_t key0, size_t keys) {
    const Attention *a = tile->a;
    product(keys, a->HS, tile->k + key0 * a->kv_token, a->kv_token, 1, t->q, QUERIES, t->s[0], QUERIES, 0);
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < QUERIES; i++) t->s[j][i] *= a->scale;
    fill_hidden(t->s, tile, key0, keys, -INFINITY);
    rescale(t, keys, a->HS);
    exponentiate(t, tile, key0, keys);
    if (a->dropout.threshold < DROPOUT_NONE) {
        dropout_factors(t->factor, tile, key0, keys);
        for (size_t j = 0; j < keys; j++)
            for (size_t i = 0; i < QUERIES; i++) t->s[j][i] *= t->factor[j][i];
    }
    product(a->HS, keys, tile->v + key0 * a->kv_token, 1, a->kv_token, t->s[0], QUERIES, t->out, QUERIES, 1);
}

static void forward_tile(float *out, float *lse, const QueryTile *tile) {
    const Attention *a = tile->a;
    ForwardTile t;
    transpose_in(t.q, tile->q, a->q_token, tile->count, a->HS);
    memset(t.out, 0, a->HS * QUERIES * sizeof(float));
    for (size_t i = 0; i < QUERIES; i++) {
        t.maximum[i] = -FLT_MAX;
        t.sum[i] = 0.0f;
    }
    size_t visible = attention_visible_keys(a, tile->first + tile->count - 1);
    for (size_t key0 = 0; key0 < visible; key0 += KEYS)
        forward_keys(&t, tile, key0, min_size(KEYS, visible - key0));

    float inverse[QUERIES];
    for (size_t i = 0; i < tile->count; i++) {
        int blind = attention_visible_keys(a, tile->first + i) == 0;
        inverse[i] = blind ? 0.0f : 1.0f / t.sum[i];
        lse[i] = blind ? INFINITY : t.maximum[i] + logf(t.sum[i]);
    }
    transpose_out(out, a->out_token, t.out, inverse, tile->count, a->HS);
}

void attention_flash_forward_cpu(float *out, float *lse, const float *q, const float *k, const float *v,
                                 const Attention *a) {
    CHECK(a->HS % 8 == 0 && a->HS >= 8 && a->HS <= HEAD && a->NH % a->NKV == 0);
    size_t tiles = (a->Tq + QUERIES - 1) / QUERIES;
#pragma omp parallel for collapse(3) schedule(dynamic)
    for (size_t b = 0; b < a->B; b++)
        for (size_t head = 0; head < a->NH; head++)
            for (size_t later = 0; later < tiles; later++) {
                size_t first = (tiles - 1 - later) * QUERIES; // last queries see most keys: long tasks first
                QueryTile tile = query_tile(a, q, k, v, b, head, first);
                forward_tile(out + b * a->out_sequence + first * a->out_token + head * a->HS,
                             lse + (b * a->NH + head) * a->Tq + first, &tile);
            }
}

// ---- backward ---------------------------------------------------------------------------------------------

typedef struct {
    float q[HEAD * QUERIES], dout[HEAD * QUERIES];           // transposed: (HS, QUERIES)
    float q_rows[QUERIES * HEAD], dout_rows[QUERIES * HEAD]; // (QUERIES, width)
    float dq[HEAD * QUERIES];                                // transposed
    float p[KEYS][QUERIES], dp[KEYS][QUERIES], factor[KEYS][QUERIES];
    float lse[QUERIES], D[QUERIES];
    size_t width;   // HS rounded up to whole register tiles
    float *dk, *dv; // (Tk, width), for the key-value head of the task; dk lacks the factor scale
} BackwardTile;

// Computes from S^T in p and dA^T in dp: p = A^T, dp = dS^T.
static void softmax_backward(BackwardTile *t, const QueryTile *tile, size_t key0, size_t keys) {
    const float scale = tile->a->scale;
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < QUERIES; i++) t->p[j][i] = fast_exp(t->p[j][i] * scale - t->lse[i]);
    fill_hidden(t->p, tile, key0, keys, 0.0f);
    if (tile->a->dropout.threshold == DROPOUT_NONE) {
        for (size_t j = 0; j < keys; j++)
            for (size_t i = 0; i < QUERIES; i++) t->dp[j][i] = t->p[j][i] * (t->dp[j][i] - t->D[i]);
        return;
    }
    dropout_factors(t->factor, tile, key0, keys);
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < QUERIES; i++) {
            t->dp[j][i] = t->p[j][i] * (t->factor[j][i] * t->dp[j][i] - t->D[i]);
            t->p[j][i] *= t->factor[j][i];
        }
}

static void backward_keys(BackwardTile *t, const QueryTile *tile, size_t key0, size_t keys) {
    const Attention *a = tile->a;
    const float *k = tile->k + key0 * a->kv_token, *v = tile->v + key0 * a->kv_token;
    product(keys, a->HS, k, a->kv_token, 1, t->q, QUERIES, t->p[0], QUERIES, 0);
    product(keys, a->HS, v, a->kv_token, 1, t->dout, QUERIES, t->dp[0], QUERIES, 0);
    softmax_backward(t, tile, key0, keys);
    product(a->HS, keys, k, 1, a->kv_token, t->dp[0], QUERIES, t->dq, QUERIES, 1);
    for (size_t c = 0; c < t->width; c += TILE_COLUMNS) {
        product(keys, QUERIES, t->p[0], QUERIES, 1, t->dout_rows + c, t->width, t->dv + key0 * t->width + c,
                t->width, 1);
        product(keys, QUERIES, t->dp[0], QUERIES, 1, t->q_rows + c, t->width, t->dk + key0 * t->width + c,
                t->width, 1);
    }
}

static void backward_tile(BackwardTile *t, float *dq, const float *dout, const float *out, const float *lse,
                          const QueryTile *tile) {
    const Attention *a = tile->a;
    float scale[QUERIES];
    transpose_in(t->q, tile->q, a->q_token, tile->count, a->HS);
    transpose_in(t->dout, dout, a->out_token, tile->count, a->HS);
    copy_in(t->q_rows, t->width, tile->q, a->q_token, tile->count, a->HS);
    copy_in(t->dout_rows, t->width, dout, a->out_token, tile->count, a->HS);
    memset(t->dq, 0, a->HS * QUERIES * sizeof(float));
    for (size_t i = 0; i < QUERIES; i++) {
        const float *d = dout + i * a->out_token, *o = out + i * a->out_token;
        t->D[i] = t->lse[i] = 0.0f;
        scale[i] = a->scale;
        if (i >= tile->count) continue; // padding: finite values, which are multiplied only by zeros
        float sum;
        size_t HS = a->HS;
        { SUM_IN_LANES(sum, HS, d[i] * o[i]); }
        t->D[i] = sum;
        t->lse[i] = lse[i];
    }
    size_t visible = attention_visible_keys(a, tile->first + tile->count - 1);
    for (size_t key0 = 0; key0 < visible; key0 += KEYS)
        backward_keys(t, tile, key0, min_size(KEYS, visible - key0));
    transpose_out(dq, a->q_token, t->dq, scale, tile->count, a->HS);
}

// Processes all queries of one sequence that read one key-value head.
static void backward_head(BackwardTile *t, float *dq, float *dk, float *dv, const float *dout, const float *q,
                          const float *k, const float *v, const float *out, const float *lse,
                          const Attention *a, size_t b, size_t kv_head) {
    size_t group = a->NH / a->NKV;
    memset(t->dk, 0, 2 * a->Tk * t->width * sizeof(float)); // dv follows dk
    for (size_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (size_t first = 0; first < a->Tq; first += QUERIES) {
            QueryTile tile = query_tile(a, q, k, v, b, head, first);
            size_t output = b * a->out_sequence + first * a->out_token + head * a->HS;
            backward_tile(t, dq + (tile.q - q), dout + output, out + output,
                          lse + (b * a->NH + head) * a->Tq + first, &tile);
        }
    size_t kv = b * a->kv_sequence + kv_head * a->HS;
    for (size_t j = 0; j < a->Tk; j++)
        for (size_t c = 0; c < a->HS; c++) {
            dk[kv + j * a->kv_token + c] = t->dk[j * t->width + c] * a->scale;
            dv[kv + j * a->kv_token + c] = t->dv[j * t->width + c];
        }
}

void attention_flash_backward_cpu(float *dq, float *dk, float *dv, const float *dout, const float *q,
                                  const float *k, const float *v, const float *out, const float *lse,
                                  const Attention *a) {
    CHECK(a->HS % 8 == 0 && a->HS >= 8 && a->HS <= HEAD && a->NH % a->NKV == 0);
#pragma omp parallel
    {
        size_t width = round_up(a->HS, TILE_COLUMNS);
        BackwardTile *t = (BackwardTile *)allocated(device_alloc(sizeof(BackwardTile)), sizeof(BackwardTile));
        const size_t bytes = 2 * a->Tk * width * sizeof(float);
        float *sums = (float *)allocated(device_alloc(bytes), bytes);
        t->width = width;
        t->dk = sums;
        t->dv = sums + a->Tk * width;
#pragma omp for collapse(2) schedule(dynamic)
        for (size_t b = 0; b < a->B; b++)
            for (size_t kv_head = 0; kv_head < a->NKV; kv_head++)
                backward_head(t, dq, dk, dv, dout, q, k, v, out, lse, a, b, kv_head);
        device_free(sums);
        device_free(t);
    }
}
