/* The kernels, compiled once for each instruction set by `kernels.c`, or once by an exported network.

   Whoever includes this file defines VW (floats in a vector: 16, 8 or 4), TARGET (a function attribute, or nothing) and
   NAME(x), which makes a name of its own out of `x`.

   A tensor is a stack of planes, one per channel. A plane has rows of `pitch` positions with zeros around the image, and
   each position holds `lanes` floats, one per image of the batch. A convolution adds, to each output position, shifted
   copies of input planes times a weight each: the shift is one offset, and neighboring positions share it. */

#define vec NAME(vec)
#define vec_at NAME(vec_at)
#define bits NAME(bits)
typedef float vec __attribute__((vector_size(VW * 4)));
typedef float vec_at __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef int bits __attribute__((vector_size(VW * 4)));

#define LOAD(p) (*(const vec_at *)(p))
#define STORE(p, value) (*(vec_at *)(p) = (value))
#define KEEP(value, where) ((vec)((bits)(value) & (where))) /* the value where true, else 0 */

/* What happens to a sum before it is stored: a residual sum; then the activation and zeros where `mask` is not
   positive, or for a gradient the derivative of the activation whose output `mask` is. */
#define end_t NAME(end_t)
typedef struct {
  const float *add, *mask;    /* or NULL */
  long add_plane, mask_plane; /* floats from one channel to the next */
  long add_group, mask_group; /* floats from one group of a tile to the next */
  int act, gradient;
  float slope, top;
} end_t;

static inline ALWAYS TARGET vec NAME(activated)(vec x, int act, float slope, float top) {
  vec zero = {0};
  if (act == ACT_NONE) return x;
  if (act == ACT_LEAKY) return KEEP(x, x > zero) + slope * KEEP(x, x <= zero);
  x = KEEP(x, x > zero);
  if (act == ACT_CLIP) {
    vec most = zero + top;
    x = KEEP(x, x < most) + KEEP(most, x >= most);
  }
  return x;
}

/* What a gradient is multiplied by: 1 where `m`, the activated output, lies on the rising branch. */
static inline ALWAYS TARGET vec NAME(passed)(vec x, vec m, int act, float slope, float top) {
  vec zero = {0};
  if (act == ACT_LEAKY) return KEEP(x, m > zero) + slope * KEEP(x, m <= zero);
  if (act == ACT_CLIP) return KEEP(x, (m > zero) & (m < zero + top));
  return KEEP(x, m > zero);
}

#ifdef ONE_IMAGE /* small rather than fast: few sums are stored, many are added */
static __attribute__((noinline)) void NAME(finish)(
#else
static inline ALWAYS TARGET void NAME(finish)(
#endif
    vec x, float *o, const end_t *e, const float *add, const float *mask) {
  vec zero = {0};
  if (add) x += LOAD(add);
  if (e->gradient) {
    if (mask) x = NAME(passed)(x, LOAD(mask), e->act, e->slope, e->top);
  } else {
    x = NAME(activated)(x, e->act, e->slope, e->top);
    if (mask) x = KEEP(x, LOAD(mask) > zero);
  }
  STORE(o, x);
}

#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)

/* One output tile of a sparse row: `groups` runs of `run` vectors; `ways` entries at a time where the tile is small, so
   that there are enough independent sums to hide the latency of a multiplication. All three are constants. */
static inline ALWAYS TARGET void NAME(sparse_tile)(const int groups, const int run, const int ways, const float *x,
                                                   long x_group, const entry_t *row, long n, float bias, float *o,
                                                   long o_group, const end_t *e, const float *add, const float *mask,
                                                   int first_part, int last_part) {
  const int size = groups * run;
  vec zero = {0};
#define DECLARE(j) vec a##j = zero;
  EACH(DECLARE)
#undef DECLARE
#define START(j) \
  if (j < size) a##j += first_part ? zero + bias : (vec)LOAD(o + j / run * o_group + (j % run) * VW);
  EACH(START)
#undef START
  long i = 0;
  for (; i + ways <= n; i += ways) {
#define STEP(j) \
  if (j < size * ways) \
    a##j += row[i + j / size].value * LOAD(x + row[i + j / size].offset + (j % size) / run * x_group + (j % run) * VW);
    EACH(STEP)
#undef STEP
  }
  for (; i < n; i++) {
#define STEP(j) \
  if (j < size) a##j += row[i].value * LOAD(x + row[i].offset + j / run * x_group + (j % run) * VW);
    EACH(STEP)
#undef STEP
  }
  if (ways == 2 && size == 3) a0 += a3, a1 += a4, a2 += a5;
  if (ways == 2 && size == 4) a0 += a4, a1 += a5, a2 += a6, a3 += a7;
  if (ways == 4) a0 = (a0 + a2) + (a4 + a6), a1 = (a1 + a3) + (a5 + a7);
  if (ways == 8) a0 = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7));
  if (!last_part) { /* the sums so far */
#define KEEP_SUM(j) \
  if (j < size) STORE(o + j / run * o_group + (j % run) * VW, a##j);
    EACH(KEEP_SUM)
#undef KEEP_SUM
    return;
  }
#define WRITE(j) \
  if (j < size) \
    NAME(finish)(a##j, o + j / run * o_group + (j % run) * VW, e, \
                 add ? add + j / run * e->add_group + (j % run) * VW : 0, \
                 mask ? mask + j / run * e->mask_group + (j % run) * VW : 0);
  EACH(WRITE)
#undef WRITE
}

#define job_t NAME(job_t)
typedef struct {
  const op_t *op;
  const int *rows;        /* where the entries of each output channel begin, and where the last ones end; or columns */
  const entry_t *entries; /* of a sparse matrix */
  const float *bias;      /* or NULL */
  const int *offsets;     /* of a blocked matrix: of each column */
  const float *weights;   /* of a blocked matrix: BLOCK of each column, block after block */
  int first_part, last_part;
  end_t end;
} job_t;

/* All output channels of one tile. */
#define SPARSE(groups, run, ways) \
  static TARGET void NAME(sparse_##groups##_##run)(const job_t *job, long first, long last, const float *x, \
                                                   long x_group, float *o, long o_group, const float *add, \
                                                   const float *mask) { \
    const end_t *e = &job->end; \
    for (long r = first; r < last; r++) \
      NAME(sparse_tile)(groups, run, ways, x, x_group, job->entries + job->rows[r], job->rows[r + 1] - job->rows[r], \
                        job->bias ? job->bias[r] : 0, o + r * job->op->dst_plane, o_group, e, \
                        add ? add + r * e->add_plane : 0, mask ? mask + r * e->mask_plane : 0, job->first_part, \
                        job->last_part); \
  }
SPARSE(1, 1, 8)
SPARSE(1, 2, 4)
SPARSE(1, 4, 2)
SPARSE(1, 8, 1)
#ifndef ONE_IMAGE
SPARSE(1, 3, 2)
SPARSE(1, 5, 1)
SPARSE(1, 6, 1)
SPARSE(1, 7, 1)
SPARSE(2, 1, 4)
SPARSE(3, 1, 2)
SPARSE(4, 1, 2)
SPARSE(5, 1, 1)
SPARSE(6, 1, 1)
SPARSE(7, 1, 1)
SPARSE(8, 1, 1)
SPARSE(2, 2, 2)
SPARSE(3, 2, 1)
SPARSE(4, 2, 1)
SPARSE(2, 4, 1)
#endif

#if VW == 16 || defined(__aarch64__) /* vectors of a tile: BLOCK * SIDE sums, and SIDE inputs, fit into the registers */
#define SIDE 4
#else
#define SIDE 2
#endif

#if HAS_BLOCKS
/* One tile of BLOCK output channels of a blocked matrix: each loaded vector serves all of them. */
#define COLUMNS(M, o) M(o, 0) M(o, 1) M(o, 2) M(o, 3)
#define ROWS(M) COLUMNS(M, 0) COLUMNS(M, 1) COLUMNS(M, 2) COLUMNS(M, 3) COLUMNS(M, 4) COLUMNS(M, 5)

static inline ALWAYS TARGET void NAME(block_tile)(const int groups, const int run, const float *x, long x_group,
                                                  const int *offsets, const float *w, long n, const float *bias,
                                                  float *o, long o_group, long o_plane, long left, const end_t *e,
                                                  const float *add, const float *mask) {
  const int size = groups * run;
  vec zero = {0};
#define DECLARE(r, j) vec a##r##j = zero;
  ROWS(DECLARE)
#undef DECLARE
  if (bias) {
#define BIAS(r, j) \
  if (r < left && j < size) a##r##j += bias[r];
    ROWS(BIAS)
#undef BIAS
  }
  for (long i = 0; i < n; i++, w += BLOCK) {
    const float *p = x + offsets[i];
    vec x0 = LOAD(p), x1 = zero, x2 = zero, x3 = zero;
    if (size > 1) x1 = LOAD(p + 1 / run * x_group + 1 % run * VW);
    if (size > 2) x2 = LOAD(p + 2 / run * x_group + 2 % run * VW);
    if (size > 3) x3 = LOAD(p + 3 / run * x_group + 3 % run * VW);
#define STEP(r, j) \
  if (j < size) a##r##j += w[r] * x##j;
    ROWS(STEP)
#undef STEP
  }
#define WRITE(r, j) \
  if (r < left && j < size) \
    NAME(finish)(a##r##j, o + r * o_plane + j / run * o_group + (j % run) * VW, e, \
                 add ? add + r * e->add_plane + j / run * e->add_group + (j % run) * VW : 0, \
                 mask ? mask + r * e->mask_plane + j / run * e->mask_group + (j % run) * VW : 0);
  ROWS(WRITE)
#undef WRITE
}

#define BLOCKED(groups, run) \
  static TARGET void NAME(blocked_##groups##_##run)(const job_t *job, long first, long last, const float *x, \
                                                    long x_group, float *o, long o_group, const float *add, \
                                                    const float *mask) { \
    const end_t *e = &job->end; \
    long channels = job->op->channels; \
    for (long b = first; b < last; b++) { \
      long r = b * BLOCK, columns = job->rows[0]; \
      NAME(block_tile)(groups, run, x, x_group, job->offsets, job->weights + b * columns * BLOCK, columns, \
                       job->bias ? job->bias + r : 0, o + r * job->op->dst_plane, o_group, job->op->dst_plane, \
                       channels - r, e, add ? add + r * e->add_plane : 0, mask ? mask + r * e->mask_plane : 0); \
    } \
  }
BLOCKED(1, 1)
BLOCKED(1, 2)
#if SIDE == 4
BLOCKED(1, 3)
BLOCKED(1, 4)
#endif
#ifndef ONE_IMAGE
BLOCKED(2, 1)
#if SIDE == 4
BLOCKED(3, 1)
BLOCKED(4, 1)
BLOCKED(2, 2)
#endif
#endif

#endif

#define tile_t NAME(tile_t)
typedef void (*tile_t)(const job_t *, long, long, const float *, long, float *, long, const float *, const float *);

/* The kernel of a tile of `groups` runs of `run` vectors. */
static tile_t NAME(kernel)(int blocked, int groups, int run) {
#ifdef ONE_IMAGE
  (void)groups;
  if (!blocked) return run < 4 ? run < 2 ? NAME(sparse_1_1) : NAME(sparse_1_2) : run < 8 ? NAME(sparse_1_4) : NAME(sparse_1_8);
#else
  static const tile_t sparse[8][8] = {
      {NAME(sparse_1_1), NAME(sparse_1_2), NAME(sparse_1_3), NAME(sparse_1_4), NAME(sparse_1_5), NAME(sparse_1_6),
       NAME(sparse_1_7), NAME(sparse_1_8)},
      {NAME(sparse_2_1), NAME(sparse_2_2), 0, NAME(sparse_2_4)},
      {NAME(sparse_3_1), NAME(sparse_3_2)},
      {NAME(sparse_4_1), NAME(sparse_4_2)},
      {NAME(sparse_5_1)},
      {NAME(sparse_6_1)},
      {NAME(sparse_7_1)},
      {NAME(sparse_8_1)}};
  if (!blocked) return sparse[groups - 1][run - 1];
  if (groups > 1) {
#if SIDE == 4
    static const tile_t grouped[3] = {NAME(blocked_2_1), NAME(blocked_3_1), NAME(blocked_4_1)};
    return run == 2 ? NAME(blocked_2_2) : grouped[groups - 2];
#else
    return NAME(blocked_2_1);
#endif
  }
#endif
#if !HAS_BLOCKS
  return 0;
#else
#if SIDE == 4
  if (run > 2) return run == 3 ? NAME(blocked_1_3) : NAME(blocked_1_4);
#endif
  return run == 1 ? NAME(blocked_1_1) : NAME(blocked_1_2);
#endif
}

/* A convolution, tile after tile. Where the positions of a row lie side by side in all tensors, a run is a row, or a part
   of it, and short rows are the groups of a tile; else, with a stride, a run is a position. */
static TARGET void NAME(convolve)(const op_t *op, const int *words, float *space) {
  const int *head = words + MATRIX_WORDS * op->matrix;
  job_t job = {op, words + head[0], (const entry_t *)(words + head[1]), head[2] ? (const float *)(words + head[2]) : 0,
               words + head[1], (const float *)(words + head[3]), 1, 1,
               {0, 0, op->add_plane, op->mask_plane, 0, 0, (int)op->act, (int)op->gradient, op->slope, op->top}};
  const float *add = op->add < 0 ? 0 : space + op->add, *mask = op->mask < 0 ? 0 : space + op->mask;
  int blocked = head[3] != 0, parts = blocked || head[4] < 1 ? 1 : head[4];
  long lanes = op->lanes, most = blocked ? SIDE : 8, rows = op->height, positions = 1, chunk = op->chunk;
  int flat = op->src_step == lanes && op->dst_step == lanes;
  long run = ((flat ? op->width : 1) * lanes + VW - 1) / VW;
  if (!flat) positions = op->width;
  long groups = run == 1 || run == 2 || run == 4 ? (run > most ? 1 : most / run) : 1;
  long units = op->channels;
  if (blocked) { /* as many blocks at a time as leave their weights in the second-level cache */
    units = (op->channels + BLOCK - 1) / BLOCK;
    chunk = CHUNK_FLOATS / (job.rows[0] * BLOCK + 1) + 1;
  }
  long x_group = flat ? op->src_row : op->src_step, o_group = flat ? op->dst_row : op->dst_step;
  job.end.add_group = flat ? op->add_row : op->add_step;
  job.end.mask_group = flat ? op->mask_row : op->mask_step;
  long outer = flat ? 1 : rows, inner = flat ? rows : positions;
  for (long first = 0; first < units; first += chunk) {
    long last = first + chunk < units ? first + chunk : units;
    for (long i = 0; i < outer; i++)
      for (long j = 0; j < inner; j += groups) {
        long many = inner - j < groups ? inner - j : groups;
        for (long k = 0, wide; k < run; k += wide) {
          wide = run - k < most ? run - k : most;
#ifdef ONE_IMAGE /* fewer sizes of tiles */
          if (!blocked) wide = wide < 2 ? 1 : wide < 4 ? 2 : wide < 8 ? 4 : 8;
#endif
          long at = k * VW;
          for (int part = 0; part < parts; part++) { /* of the input channels, whose patch stays in the first-level cache */
            if (!blocked) job.rows = words + head[0] + part * (op->channels + 1);
            job.first_part = part == 0, job.last_part = part == parts - 1;
            NAME(kernel)(blocked, (int)many, (int)wide)(
              &job, first, last, space + op->src + i * op->src_row + j * x_group + at, x_group,
              space + op->dst + i * op->dst_row + j * o_group + at, o_group,
              add ? add + i * op->add_row + j * job.end.add_group + at : 0,
              mask ? mask + i * op->mask_row + j * job.end.mask_group + at : 0);
          }
        }
      }
  }
}
