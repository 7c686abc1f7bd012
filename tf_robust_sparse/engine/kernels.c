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

/* Changes with every change of a plan or of packed weights, so that kernels of another version are not used. */
int trs_version(void) { return 2; }

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

/* A kernel `(taps, channels of a group, filters)`, filters side by side in memory. */
typedef struct {
  word_t taps, channels, filters, group; /* `group`: filters that read the same channels */
} kernel_t;

/* An entry that is not 0. */
typedef struct {
  int tap, channel, filter;
  float value;
} found_t;

/* One matrix made of a kernel: a row for each filter, or transposed for each channel; `tap_offset` is what each tap adds
   to the place of an input, -1 in `used` where the matrix has no such tap. */
typedef struct {
  word_t rows, transposed, channel_offset, part; /* `part`: input channels that are added before the next ones */
  const int *used, *offset;
  const float *scale; /* of each filter, or NULL */
} matrix_t;

long trs_count(const float *kernel, long size) {
  long n = 0;
  for (long i = 0; i < size; i++) n += kernel[i] != 0;
  return n;
}

/* Lists the entries of a kernel that are not 0, channel after channel. */
long trs_find(const kernel_t *k, const float *kernel, found_t *found) {
  long n = 0;
  for (long c = 0; c < k->channels; c++)
    for (long t = 0; t < k->taps; t++) {
      const float *w = kernel + (t * k->channels + c) * k->filters;
      for (long o = 0; o < k->filters; o++) {
        if (o + 8 <= k->filters) { /* most runs of a sparse kernel are empty */
          uint64_t part[4];
          __builtin_memcpy(part, w + o, sizeof part);
          if (!((part[0] | part[1] | part[2] | part[3]) & 0x7fffffff7fffffffu)) {
            o += 7;
            continue;
          }
        }
        if (w[o] != 0) found[n++] = (found_t){(int)t, (int)c, (int)o, w[o]};
      }
    }
  return n;
}

/* Puts entries into the order of their filters. */
void trs_sort(const kernel_t *k, const found_t *found, long count, int *places, found_t *sorted) {
  for (long o = 0; o <= k->filters; o++) places[o] = 0;
  for (long i = 0; i < count; i++) places[found[i].filter + 1]++;
  for (long o = 0; o < k->filters; o++) places[o + 1] += places[o];
  for (long i = 0; i < count; i++) sorted[places[found[i].filter]++] = found[i];
}

/* Writes, for each part of the input channels, `rows + 1` beginnings and, from the next even word on, all entries, part
   after part and row after row; returns the number of words. */
long trs_pack_sparse(const kernel_t *k, const matrix_t *m, const found_t *found, long count, int *words) {
  long inputs = m->transposed ? k->filters : k->filters / k->group * k->channels;
  long table = m->rows + 1, parts = (inputs + m->part - 1) / m->part, start = (parts * table + 1) & ~1L;
  entry_t *entries = (entry_t *)(words + start);
  for (long i = 0; i < parts * table; i++) words[i] = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (const found_t *f = found; f < found + count; f++) {
      if (m->used[f->tap] < 0) continue;
      long first = f->filter / k->group * k->channels, row = m->transposed ? first + f->channel : f->filter;
      long input = m->transposed ? f->filter : first + f->channel, place = input / m->part * table + row;
      if (!pass) {
        words[place + 1]++;
        continue;
      }
      float value = m->scale ? f->value * m->scale[f->filter] : f->value;
      entries[words[place]++] = (entry_t){(int)(input * m->channel_offset + m->offset[f->tap]), value};
    }
    if (pass) break;
    for (long i = 1; i < parts * table; i++) words[i] += words[i - 1]; /* counts become beginnings, which then move */
  }
  for (long i = parts * table - 1; i > 0; i--)
    if (i % table) words[i] = words[i - 1];
  for (long p = parts - 1; p > 0; p--) words[p * table] = words[p * table - 1];
  words[0] = 0;
  return start + 2L * words[parts * table - 1];
}

/* Writes all entries in blocks of BLOCK rows: the offset of each column, and BLOCK weights for each column of each
   block. Returns the number of columns. */
long trs_pack_blocked(const kernel_t *k, const matrix_t *m, const float *kernel, int *columns, float *weights) {
  long outer = m->transposed ? k->filters : k->channels, used = 0, blocks = (m->rows + BLOCK - 1) / BLOCK;
  for (long t = 0; t < k->taps; t++) used += m->used[t] >= 0;
  long all = outer * used, n = 0, together = 64;
  for (long i = 0; i < outer; i++)
    for (long t = 0; t < k->taps; t++)
      if (m->used[t] >= 0) columns[n++] = (int)(i * m->channel_offset + m->offset[t]);
  for (long i0 = 0; i0 < outer; i0 += together) /* a part of the kernel at a time that stays in the cache */
    for (long b = 0; b < blocks; b++) {
      float *to = weights + (b * all + i0 * used) * BLOCK;
      for (long i = i0; i < outer && i < i0 + together; i++)
        for (long t = 0; t < k->taps; t++) {
          if (m->used[t] < 0) continue;
          for (long r = b * BLOCK; r < (b + 1) * BLOCK; r++, to++) {
            long c = m->transposed ? r : i, o = m->transposed ? i : r;
            *to = r < m->rows ? kernel[(t * k->channels + c) * k->filters + o] : 0;
            if (m->scale && r < m->rows) *to *= m->scale[o];
          }
        }
    }
  return all;
}
