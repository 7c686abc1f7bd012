/* The engine: plans of a sparse network's operations, on the widest vectors that the processor has. */

#include "plan.h"

#define ALWAYS __attribute__((always_inline))

#if defined(__x86_64__)
#define VW 16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(x) avx512_##x
#include "kernels.h"
#include "operations.h"
#undef VW
#undef TARGET
#undef NAME

#define VW 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) avx2_##x
#include "kernels.h"
#include "operations.h"
#undef VW
#undef TARGET
#undef NAME
#endif

#define VW 4
#define TARGET
#define NAME(x) plain_##x
#include "kernels.h"
#include "operations.h"

/* The widest vectors of this processor, in floats. */
int trs_width(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

void trs_run(int width, const op_t *ops, long count, const int *words, float *space, const float *x, long images,
             float *y) {
#if defined(__x86_64__)
  if (width == 16) {
    avx512_run(ops, count, words, space, x, images, y);
    return;
  }
  if (width == 8) {
    avx2_run(ops, count, words, space, x, images, y);
    return;
  }
#endif
  (void)width;
  plain_run(ops, count, words, space, x, images, y);
}

/* Where the weights of a matrix are in a kernel, and which inputs they multiply. Rows come in groups of `group_rows`
   that share `channels` inputs; tap `t` of channel `c` in group `g` is at
   `g * group_stride + row * row_stride + c * channel_stride + tap_at[t]`, and reads
   `(g * channels + c) * channel_offset + tap_offset[t]`. */
typedef struct {
  word_t rows, group_rows, group_stride, row_stride, channels, channel_stride, channel_offset, taps;
  const float *row_scale, *channel_scale; /* or NULL: what the weights of a row, or of an input, are multiplied by */
} matrix_t;

/* Writes the compressed rows of a kernel and returns the number of words: first `rows + 1` beginnings, then entries. */
long trs_pack_sparse(const matrix_t *m, const float *kernel, const int *tap_at, const int *tap_offset, int *words) {
  entry_t *entries = (entry_t *)(words + ((m->rows + 2) & ~1L));
  int n = 0;
  for (long r = 0; r < m->rows; r++) {
    long g = r / m->group_rows;
    const float *w = kernel + g * m->group_stride + r % m->group_rows * m->row_stride;
    words[r] = n;
    for (long c = 0; c < m->channels; c++)
      for (long t = 0; t < m->taps; t++) {
        float value = w[c * m->channel_stride + tap_at[t]];
        if (m->row_scale) value *= m->row_scale[r];
        if (m->channel_scale) value *= m->channel_scale[g * m->channels + c];
        if (value != 0) {
          entries[n].offset = (int)((g * m->channels + c) * m->channel_offset + tap_offset[t]);
          entries[n++].value = value;
        }
      }
  }
  words[m->rows] = n;
  return ((m->rows + 2) & ~1L) + 2L * n;
}

/* The same for blocks of BLOCK rows, which share the columns that any of them has; `columns` is room for the offsets.
   Returns the number of columns; `rows` gets the beginnings. */
long trs_pack_blocked(const matrix_t *m, const float *kernel, const int *tap_at, const int *tap_offset, int *rows,
                      int *columns, float *weights) {
  long n = 0, blocks = (m->rows + BLOCK - 1) / BLOCK;
  for (long b = 0; b < blocks; b++) {
    rows[b] = (int)n;
    for (long c = 0; c < m->channels; c++)
      for (long t = 0; t < m->taps; t++) {
        const float *w = kernel + b * BLOCK * m->row_stride + c * m->channel_stride + tap_at[t];
        int any = 0;
        for (long r = 0; r < BLOCK; r++) {
          float value = b * BLOCK + r < m->rows ? w[r * m->row_stride] : 0;
          if (m->row_scale && b * BLOCK + r < m->rows) value *= m->row_scale[b * BLOCK + r];
          if (m->channel_scale) value *= m->channel_scale[c];
          weights[n * BLOCK + r] = value;
          any |= value != 0;
        }
        if (any) columns[n++] = (int)(c * m->channel_offset + tap_offset[t]);
      }
  }
  rows[blocks] = (int)n;
  return n;
}

/* The number of entries that are not 0. */
long trs_count(const float *kernel, long size) {
  long n = 0;
  for (long i = 0; i < size; i++) n += kernel[i] != 0;
  return n;
}
