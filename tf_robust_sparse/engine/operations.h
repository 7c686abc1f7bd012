/* Everything but convolutions, and the loop over a plan. Compiled like `kernels.h`, after it. */

#define AT(tensor, c, y, x) \
  (space + op.tensor + (c) * op.tensor##_plane + (y) * op.tensor##_row + (x) * op.tensor##_step)

/* An image `(height, width, channels)` into planes, scaled and shifted by channel; and back. */
static TARGET void NAME(read_one)(op_t op, const int *words, float *space, const float *x) {
  const float *scale = op.matrix < 0 ? 0 : (const float *)(words + words[MATRIX_WORDS * op.matrix]);
  for (long c = 0; c < op.channels; c++)
    for (long i = 0; i < op.height; i++) {
      const float *restrict p = x + i * op.width * op.channels + c;
      float *restrict o = AT(dst, c, i, 0);
      if (!scale && op.channels == 1 && op.dst_step == 1)
        for (long j = 0; j < op.width; j++) o[j] = p[j];
      else
        for (long j = 0; j < op.width; j++, p += op.channels)
          o[j * op.dst_step] = scale ? *p * scale[c] + scale[op.channels + c] : *p;
    }
}

#ifdef ONE_IMAGE
#define LANES 1
static void NAME(write)(op_t op, float *space, float *y) {
  for (long i = 0; i < op.height; i++)
    for (long j = 0; j < op.width; j++)
      for (long c = 0; c < op.channels; c++) *y++ = *AT(src, c, i, j);
}
#else
#define LANES op.lanes
#define SIDE_OF_BLOCK 16 /* images, and values of each, that change places at a time */

/* Images `(images, height, width, channels)` into planes, scaled and shifted by channel; unused lanes become 0. */
static TARGET void NAME(read)(op_t op, const int *words, float *space, const float *x, long images) {
  if (op.lanes == 1) {
    NAME(read_one)(op, words, space, x);
    return;
  }
  const float *scale = op.matrix < 0 ? 0 : (const float *)(words + words[MATRIX_WORDS * op.matrix]);
  long row = op.width * op.channels, size = op.height * row, side = SIDE_OF_BLOCK;
  float block[SIDE_OF_BLOCK][SIDE_OF_BLOCK] = {{0}};
  for (long first = 0; first < op.lanes; first += side) {
    if (op.lanes - first < side) side = op.lanes - first;
    for (long i = 0; i < op.height; i++)
      for (long k = 0, c = 0, j = 0; k < row; k += SIDE_OF_BLOCK) {
        long many = row - k < SIDE_OF_BLOCK ? row - k : SIDE_OF_BLOCK;
        for (long n = 0; n < side && first + n < images; n++)
          for (long q = 0; q < many; q++) block[n][q] = x[(first + n) * size + i * row + k + q];
        for (long q = 0; q < many; q++) {
          float by = scale ? scale[c] : 1, shift = scale && !op.gradient ? scale[op.channels + c] : 0;
          float *restrict o = AT(dst, c, i, j) + first;
          if (side == SIDE_OF_BLOCK)
            for (long n = 0; n < SIDE_OF_BLOCK; n++) o[n] = block[n][q] * by + shift;
          else
            for (long n = 0; n < side; n++) o[n] = block[n][q] * by + shift;
          for (long n = images - first < 0 ? 0 : images - first; n < side; n++) o[n] = 0;
          if (++c == op.channels) c = 0, j++;
        }
      }
  }
}

/* Planes into `(images, height, width, channels)`; of a gradient, scaled by channel. */
static TARGET void NAME(write)(op_t op, const int *words, float *space, float *y, long images) {
  const float *scale = op.matrix < 0 ? 0 : (const float *)(words + words[MATRIX_WORDS * op.matrix]);
  long row = op.width * op.channels, size = op.height * row, side = SIDE_OF_BLOCK;
  float block[SIDE_OF_BLOCK][SIDE_OF_BLOCK];
  for (long first = 0; first < images; first += side) {
    if (op.lanes - first < side) side = op.lanes - first;
    for (long i = 0; i < op.height; i++)
      for (long k = 0, c = 0, j = 0; k < row; k += SIDE_OF_BLOCK) {
        long many = row - k < SIDE_OF_BLOCK ? row - k : SIDE_OF_BLOCK;
        for (long q = 0; q < many; q++) {
          const float *restrict p = AT(src, c, i, j) + first;
          float by = scale ? scale[c] : 1;
          for (long n = 0; n < side; n++) block[q][n] = p[n] * by;
          if (++c == op.channels) c = 0, j++;
        }
        for (long n = 0; n < side && first + n < images; n++)
          for (long q = 0; q < many; q++) y[(first + n) * size + i * row + k + q] = block[q][n];
      }
  }
}

#endif

#if HAS_SMOOTH
/* 1 / (1 + exp(-x)); exp by a power of two, and a polynomial (Cephes) of what is left, within ln(2) / 2 of 0. */
static inline ALWAYS TARGET vec NAME(sigmoid)(vec x) {
  vec zero = {0}, most = zero + 88.0f, least = zero - 87.0f;
  x = -x;
  x = KEEP(x, x < most) + KEEP(most, x >= most);
  x = KEEP(x, x > least) + KEEP(least, x <= least);
  vec rounded = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: its last bits are the whole number */
  bits power = (bits)rounded - 0x4B400000;
  vec whole = rounded - 12582912.0f, r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return 1.0f / (1.0f + (vec)((bits)p + (power << 23)));
}
#endif

#if HAS_EACH
/* `finish` for all activations: of smooth ones `mask` is what went in. */
static inline ALWAYS TARGET void NAME(finish_any)(vec x, float *o, const end_t *e, const float *add, const float *mask) {
#if HAS_SMOOTH
  if (e->act == ACT_SILU) {
    if (add) x += LOAD(add);
    vec m = e->gradient ? (vec)LOAD(mask) : x, s = NAME(sigmoid)(m);
    STORE(o, e->gradient ? x * (s + s * m * (1.0f - s)) : x * s);
    return;
  }
#endif
  NAME(finish)(x, o, e, add, mask);
}

/* act(scale * src + shift + add) for each position; of a gradient, (scale * src + add) through the activation. */
static TARGET void NAME(each)(op_t op, const int *words, float *space) {
  const float *scale = op.matrix < 0 ? 0 : (const float *)(words + words[MATRIX_WORDS * op.matrix]);
  end_t e = {0, 0, 0, 0, 0, 0, (int)op.act, (int)op.gradient, op.slope, op.top};
  long length = op.width * op.lanes, whole = length / VW * VW;
  for (long c = 0; c < op.channels; c++) {
    float by = scale ? scale[c] : 1, shift = scale && !op.gradient ? scale[op.channels + c] : 0;
    for (long i = 0; i < op.height; i++) {
      const float *p = AT(src, c, i, 0);
      const float *add = op.add < 0 ? 0 : AT(add, c, i, 0), *mask = op.mask < 0 ? 0 : AT(mask, c, i, 0);
      float *o = AT(dst, c, i, 0);
      for (long k = 0; k < whole; k += VW)
        NAME(finish_any)(by * LOAD(p + k) + shift, o + k, &e, add ? add + k : 0, mask ? mask + k : 0);
      for (long k = whole; k < length; k++) { /* fewer than a vector are left */
        float in[4][VW] = {{p[k]}, {add ? add[k] : 0}, {mask ? mask[k] : 0}, {0}};
        NAME(finish_any)(by * LOAD(in[0]) + shift, in[3], &e, add ? in[1] : 0, mask ? in[2] : 0);
        o[k] = in[3][0];
      }
    }
  }
}

#endif

#if HAS_POOLS
/* The part of a window that counts: image, and margins of zeros that belong to it. */
#define WINDOW(i, j) \
  long y0 = (i) * op.stride[0] - op.pad[0], x0 = (j) * op.stride[1] - op.pad[1]; \
  long y1 = y0 + op.window[0], x1 = x0 + op.window[1]; \
  if (y0 < -op.margin[0]) y0 = -op.margin[0]; \
  if (x0 < -op.margin[1]) x0 = -op.margin[1]; \
  if (y1 > op.in_height + op.margin[2]) y1 = op.in_height + op.margin[2]; \
  if (x1 > op.in_width + op.margin[3]) x1 = op.in_width + op.margin[3];

static TARGET void NAME(pool)(op_t op, float *space) {
  int most = op.kind == OP_MAX_POOL;
  for (long c = 0; c < op.channels; c++)
    for (long i = 0; i < op.height; i++)
      for (long j = 0; j < op.width; j++) {
        WINDOW(i, j)
        float by = most ? 1 : 1.0f / (float)((y1 - y0) * (x1 - x0)), *o = AT(dst, c, i, j);
        long l = 0;
#ifndef ONE_IMAGE
        for (; l + VW <= op.lanes; l += VW) {
          vec sum = {0};
          if (most) sum -= __builtin_inff();
          for (long y = y0; y < y1; y++)
            for (long x = x0; x < x1; x++) {
              vec value = LOAD(AT(src, c, y, x) + l);
              sum = most ? KEEP(value, value > sum) + KEEP(sum, value <= sum) : sum + value;
            }
          STORE(o + l, sum * by);
        }
#endif
        for (; l < op.lanes; l++) {
          float sum = most ? -__builtin_inff() : 0;
          for (long y = y0; y < y1; y++)
            for (long x = x0; x < x1; x++) {
              float value = AT(src, c, y, x)[l];
              sum = !most ? sum + value : value > sum ? value : sum;
            }
          o[l] = sum * by;
        }
      }
}

#endif

#ifndef ONE_IMAGE
/* Gradients of pooling: `src` is the gradient of the output, `dst` of the input, whose values are at `in`. A maximum
   passes its gradient to the first entry that attains it. */
static TARGET void NAME(unpool)(op_t op, float *space) {
  int most = op.kind == OP_MAX_POOL_GRADIENT;
  long lanes = op.lanes;
  for (long c = 0; c < op.channels; c++) {
    for (long i = 0; i < op.in_height; i++) {
      float *restrict o = AT(dst, c, i, 0);
      const float *restrict p = op.add < 0 ? 0 : AT(add, c, i, 0);
      for (long l = 0; l < op.in_width * lanes; l++) o[l] = p ? p[l] : 0;
    }
    for (long i = 0; i < op.height; i++)
      for (long j = 0; j < op.width; j++) {
        WINDOW(i, j)
        float by = most ? 1 : 1.0f / (float)((y1 - y0) * (x1 - x0));
        int is_inside = y0 >= 0 && x0 >= 0 && y1 <= op.in_height && x1 <= op.in_width;
        for (long l = 0; l < op.lanes; l += VW) {
          vec part = by * LOAD(AT(src, c, i, j) + l), highest = {0};
          bits open = ~(bits){0};
          if (most) highest = LOAD(AT(out, c, i, j) + l);
          for (long y = y0; y < y1; y++)
            for (long x = x0; x < x1; x++) {
              vec mine = part;
              if (most) {
                bits first = open & (LOAD(AT(in, c, y, x) + l) == highest);
                open ^= first;
                mine = KEEP(part, first);
              }
              if (is_inside || (y >= 0 && x >= 0 && y < op.in_height && x < op.in_width))
                STORE(AT(dst, c, y, x) + l, LOAD(AT(dst, c, y, x) + l) + mine);
            }
        }
      }
    if (op.mask >= 0)
      for (long i = 0; i < op.in_height; i++)
        for (long l = 0; l < op.in_width * lanes; l += VW) {
          float *o = AT(dst, c, i, 0) + l;
          STORE(o, NAME(passed)(LOAD(o), LOAD(AT(mask, c, i, 0) + l), (int)op.act, op.slope, op.top));
        }
  }
}
#endif

#if HAS_FLATTEN
/* Between an image and a vector whose features are its entries in the order height, width, channels. */
static TARGET void NAME(flatten)(op_t op, float *space) {
  if (LANES == 1) { /* which has no gradient */
    float *restrict o = space + op.dst;
    for (long i = 0; i < op.height; i++)
      for (long j = 0; j < op.width; j++) {
        const float *restrict p = AT(src, 0, i, j);
        for (long c = 0; c < op.channels; c++, o += op.dst_plane, p += op.src_plane) *o = *p;
      }
    return;
  }
  for (long c = 0; c < op.channels; c++)
    for (long i = 0; i < op.height; i++)
      for (long j = 0; j < op.width; j++) {
        long feature = (i * op.width + j) * op.channels + c;
        float *restrict o = op.gradient ? AT(dst, c, i, j) : space + op.dst + feature * op.dst_plane;
        const float *restrict p = op.gradient ? space + op.src + feature * op.src_plane : AT(src, c, i, j);
        for (long l = 0; l < op.lanes; l++) o[l] = p[l];
      }
}

#endif

#if HAS_SPLIT
/* Every `stride`-th position into a plane of its own, so that a convolution with a stride becomes one without. */
static TARGET void NAME(split)(op_t op, float *space) {
  for (long c = 0; c < op.channels; c++)
    for (long a = 0; a < op.stride[0]; a++)
      for (long b = 0; b < op.stride[1]; b++)
        for (long i = 0; i < op.height; i++) {
          const float *restrict p = AT(src, c, i * op.stride[0] + a, b);
          float *restrict o = AT(dst, (c * op.stride[0] + a) * op.stride[1] + b, i, 0);
          long step = op.stride[1] * op.src_step;
          if (LANES == 1 && step == 2) /* which compilers vectorize */
            for (long j = 0; j < op.width; j++) o[j] = p[2 * j];
          else
            for (long j = 0; j < op.width; j++)
              for (long l = 0; l < LANES; l++) o[j * LANES + l] = p[j * step + l];
        }
}

#endif

/* Computes a plan for up to `lanes` images. `words` holds the weights, `space` the tensors; `x` and `y` are arrays. */
static TARGET void NAME(run)(const op_t *ops, long count, const int *words, float *space, const float *x, long images,
                             float *y) {
  (void)images;
  for (const op_t *op = ops; op < ops + count; op++) switch (op->kind) {
#ifdef ONE_IMAGE
      case OP_READ: NAME(read_one)(*op, words, space, x); break;
      case OP_WRITE: NAME(write)(*op, space, y); break;
#else
      case OP_READ: NAME(read)(*op, words, space, x, images); break;
      case OP_WRITE: NAME(write)(*op, words, space, y, images); break;
#endif
      case OP_CONVOLVE: NAME(convolve)(op, words, space); break;
#if HAS_EACH
      case OP_EACH: NAME(each)(*op, words, space); break;
#endif
#if HAS_POOLS
      case OP_MAX_POOL:
      case OP_MEAN_POOL: NAME(pool)(*op, space); break;
#endif
#ifndef ONE_IMAGE
      case OP_MAX_POOL_GRADIENT:
      case OP_MEAN_POOL_GRADIENT: NAME(unpool)(*op, space); break;
#endif
#if HAS_FLATTEN
      case OP_FLATTEN: NAME(flatten)(*op, space); break;
#endif
#if HAS_SPLIT
      case OP_SPLIT: NAME(split)(*op, space); break;
#endif
    }
}

#undef vec
#undef vec_at
#undef bits
#undef end_t
#undef job_t
#undef tile_t
#undef LOAD
#undef STORE
#undef KEEP
#undef EACH
#undef SPARSE
#undef SIDE
#undef COLUMNS
#undef ROWS
#undef BLOCKED
#undef AT
#undef WINDOW
#undef LANES
#undef SIDE_OF_BLOCK
