/* Kernels become the rows that a plan multiplies: lists of offsets and values, or blocks. */

#include <stdlib.h>
#include <string.h>

#define ENTRIES_OF_A_PART 12 /* of a row: fewer are not worth it to store their sum and to load it again */

/* One matrix of a plan: of a kernel `(taps, channels of a group, filters)` a row for each filter, or transposed for each
   channel; or scale and shift of each channel, when there are no taps. */
typedef struct {
  word_t node, is_first;              /* whose weights it has; whether no matrix before has the same */
  word_t taps, channels, filters, group; /* `group`: filters that read the same channels */
  word_t rows, transposed, channel_offset;
  word_t part;       /* input channels of which a tile reads as much as the cache holds, 0 for any number */
  word_t counts;     /* place of the numbers of entries of each tap */
  word_t scaled;     /* how many nodes scale the filters */
  const word_t *by;  /* these nodes */
  const int *used;   /* -1 for each tap that the matrix leaves out */
  const int *offset; /* what each tap adds to the place of an input */
} matrix_t;

/* An entry that is not 0. */
typedef struct {
  int tap, channel, filter;
  float value;
} found_t;

typedef struct {
  const matrix_t *matrices;
  long count;
  const float *const *weights; /* two of each node: kernel and bias, or scale and shift; or NULL */
  word_t *counts;
  int *words;
  int *failed;
} packing_t;

/* Counts the entries of each tap of a kernel that are not 0. */
static void count_entries(const void *shared, long task, int thread) {
  const packing_t *p = shared;
  const matrix_t *m = p->matrices + task;
  (void)thread;
  if (!m->is_first) return;
  const float *w = p->weights[2 * m->node];
  long size = m->channels * m->filters;
  for (long t = 0; t < m->taps; t++, w += size) {
    long n = 0;
    for (long i = 0; i < size; i++) n += w[i] != 0;
    p->counts[m->counts + t] = n;
  }
}

/* Writes the directory of a plan's matrices, and returns how many words all of them need. Matrices of kernels without
   groups that have `blocked_from` of their entries or more become blocks, if they fill one. */
long trs_layout(const matrix_t *matrices, long count, const float *const *weights, word_t *counts, double blocked_from,
                int threads, int *directory) {
  packing_t packing = {matrices, count, weights, counts, 0, 0};
  share(threads, count, count_entries, &packing);
  long end = MATRIX_WORDS * count;
  for (const matrix_t *m = matrices; m < matrices + count; m++, directory += MATRIX_WORDS) {
    end += end & 1;
    int head[MATRIX_WORDS] = {(int)end, 0, 0, 0, 1};
    long all = 0, entries = 0, used = 0;
    for (long t = 0; t < m->taps; t++) {
      all += counts[m->counts + t];
      if (m->used[t] >= 0) used++, entries += counts[m->counts + t];
    }
    if (!m->taps) {
      end += 2 * m->rows;
    } else if (m->rows >= BLOCK && m->group == m->filters &&
               (double)all >= blocked_from * (double)(m->taps * m->channels * m->filters)) {
      long columns = used * (m->transposed ? m->filters : m->channels);
      head[1] = (int)(end + 1), head[3] = (int)(end + 1 + columns);
      end = head[3] + (m->rows + BLOCK - 1) / BLOCK * BLOCK * columns;
    } else {
      long inputs = m->transposed ? m->filters : m->filters / m->group * m->channels;
      long parts = m->part ? (inputs + m->part - 1) / m->part : 1;
      long most = all * used / (m->taps * m->rows * ENTRIES_OF_A_PART);
      if (parts > most) parts = most < 1 ? 1 : most;
      long part = (inputs + parts - 1) / parts;
      head[4] = (int)((inputs + part - 1) / part);
      head[1] = (int)(end + ((head[4] * (m->rows + 1) + 1) & ~1L));
      end = head[1] + 2 * entries;
    }
    if (m->taps && !m->transposed && (weights[2 * m->node + 1] || m->scaled)) head[2] = (int)end, end += m->rows;
    memcpy(directory, head, sizeof head);
  }
  return end;
}

/* Lists the entries of a kernel in the order of memory: by tap, channel, filter. */
static void find(const matrix_t *k, const float *kernel, found_t *found) {
  for (long t = 0; t < k->taps; t++)
    for (long c = 0; c < k->channels; c++, kernel += k->filters)
      for (long o = 0; o < k->filters; o++) {
        if (o + 8 <= k->filters) { /* most runs of a sparse kernel are empty */
          uint64_t part[4];
          memcpy(part, kernel + o, sizeof part);
          if (!((part[0] | part[1] | part[2] | part[3]) & 0x7fffffff7fffffffu)) {
            o += 7;
            continue;
          }
        }
        if (kernel[o] != 0) *found++ = (found_t){(int)t, (int)c, (int)o, kernel[o]};
      }
}

/* Puts entries into the order of their channels or filters, of which there are `many`; `places` has room for one number
   more. */
static void sort(const found_t *found, long count, int by_filter, long many, int *places, found_t *sorted) {
#define KEY(f) (by_filter ? (f).filter : (f).channel)
  for (long o = 0; o <= many; o++) places[o] = 0;
  for (long i = 0; i < count; i++) places[KEY(found[i]) + 1]++;
  for (long o = 0; o < many; o++) places[o + 1] += places[o];
  for (long i = 0; i < count; i++) sorted[places[KEY(found[i])]++] = found[i];
#undef KEY
}

/* Writes, for each part of the input channels, `rows + 1` beginnings, and all entries, part after part and row after
   row. */
static void pack_sparse(const matrix_t *m, const int *head, const found_t *found, long count, const float *scale,
                        int *words) {
  long inputs = m->transposed ? m->filters : m->filters / m->group * m->channels;
  long table = m->rows + 1, parts = head[4], size = (inputs + parts - 1) / parts;
  entry_t *entries = (entry_t *)(words + head[1]);
  words += head[0];
  for (long i = 0; i < parts * table; i++) words[i] = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (const found_t *f = found; f < found + count; f++) {
      if (m->used[f->tap] < 0) continue;
      long first = f->filter / m->group * m->channels, row = m->transposed ? first + f->channel : f->filter;
      long input = m->transposed ? f->filter : first + f->channel, place = input / size * table + row;
      if (!pass) {
        words[place + 1]++;
        continue;
      }
      int offset = (int)(input * m->channel_offset + m->offset[f->tap]);
      entries[words[place]++] = (entry_t){offset, f->value * scale[f->filter]};
    }
    if (pass) break;
    for (long i = 1; i < parts * table; i++) words[i] += words[i - 1]; /* counts become beginnings, which then move */
  }
  for (long i = parts * table - 1; i > 0; i--)
    if (i % table) words[i] = words[i - 1];
  for (long p = parts - 1; p > 0; p--) words[p * table] = words[p * table - 1];
  words[0] = 0;
}

/* Writes all entries in blocks of BLOCK rows: the offset of each column, and BLOCK weights for each column of each
   block. */
static void pack_blocked(const matrix_t *m, const int *head, const float *kernel, const float *scale, int *words) {
  long outer = m->transposed ? m->filters : m->channels, used = 0, blocks = (m->rows + BLOCK - 1) / BLOCK;
  int *columns = words + head[1];
  float *weights = (float *)(words + head[3]);
  for (long t = 0; t < m->taps; t++) used += m->used[t] >= 0;
  long all = outer * used, n = 0, together = 64;
  words[head[0]] = (int)all;
  for (long i = 0; i < outer; i++)
    for (long t = 0; t < m->taps; t++)
      if (m->used[t] >= 0) columns[n++] = (int)(i * m->channel_offset + m->offset[t]);
  for (long i0 = 0; i0 < outer; i0 += together) /* a part of the kernel at a time that stays in the cache */
    for (long b = 0; b < blocks; b++) {
      float *to = weights + (b * all + i0 * used) * BLOCK;
      long r0 = b * BLOCK, many = m->rows - r0 < BLOCK ? m->rows - r0 : BLOCK;
      for (long i = i0; i < outer && i < i0 + together; i++)
        for (long t = 0; t < m->taps; t++) {
          if (m->used[t] < 0) continue;
          const float *from = kernel + (t * m->channels + (m->transposed ? r0 : i)) * m->filters + (m->transposed ? i : r0);
          if (many < BLOCK)
            for (long r = 0; r < BLOCK; r++)
              to[r] = r >= many ? 0 : m->transposed ? from[r * m->filters] * scale[i] : from[r] * scale[r0 + r];
          else if (m->transposed)
            for (long r = 0; r < BLOCK; r++) to[r] = from[r * m->filters] * scale[i];
          else
            for (long r = 0; r < BLOCK; r++) to[r] = from[r] * scale[r0 + r];
          to += BLOCK;
        }
    }
}

/* Multiplies the scales of all nodes that scale the filters, and writes the bias that remains, if there is one. */
static void fold(const packing_t *p, const matrix_t *m, float *scale, float *bias) {
  const float *given = p->weights[2 * m->node + 1];
  for (long o = 0; o < m->filters; o++) {
    float by = 1, sum = given ? given[o] : 0;
    for (long s = 0; s < m->scaled; s++) {
      float factor = p->weights[2 * m->by[s]][o];
      by *= factor;
      sum = sum * factor + p->weights[2 * m->by[s] + 1][o];
    }
    scale[o] = by;
    if (bias) bias[o] = sum;
  }
}

/* Writes all matrices of one node. */
static void pack_node(const void *shared, long task, int thread) {
  const packing_t *p = shared;
  const matrix_t *first = p->matrices + task;
  long count = 0;
  (void)thread;
  if (!first->taps) { /* scale and shift */
    for (int part = 0; part < 2; part++)
      memcpy(p->words + p->words[MATRIX_WORDS * task] + part * first->rows, p->weights[2 * first->node + part],
             first->rows * sizeof(float));
    return;
  }
  if (!first->is_first) return;
  for (long t = 0; t < first->taps; t++) count += p->counts[first->counts + t];
  long most = first->filters > first->channels ? first->filters : first->channels;
  found_t *found = malloc((2 * count + 1) * sizeof *found), *sorted = found + count;
  int *places = malloc((most + 1) * sizeof *places), listed = 0;
  float *scale = malloc(first->filters * sizeof *scale);
  if (!found || !places || !scale) __atomic_store_n(p->failed, 1, __ATOMIC_RELAXED);
  for (const matrix_t *m = first; !*p->failed && m < p->matrices + p->count; m++) {
    if (m->node != first->node) continue;
    const int *head = p->words + MATRIX_WORDS * (m - p->matrices);
    const float *kernel = p->weights[2 * m->node];
    fold(p, m, scale, head[2] ? (float *)(p->words + head[2]) : 0);
    if (head[3]) {
      pack_blocked(m, head, kernel, scale, p->words);
      continue;
    }
    if (!listed) {
      find(m, kernel, found);
      sort(found, count, 0, m->channels, places, sorted);
      sort(sorted, count, 1, m->filters, places, found);
      listed = 1;
    }
    pack_sparse(m, head, m->transposed ? found : sorted, count, scale, p->words);
  }
  free(found), free(places), free(scale);
}

/* Writes all matrices after their directory, which `trs_layout` made; returns 0, or 1 if there is not enough memory. */
int trs_pack(const matrix_t *matrices, long count, const float *const *weights, word_t *counts, int threads, int *words) {
  int failed = 0;
  packing_t packing = {matrices, count, weights, counts, words, &failed};
  share(threads, count, pack_node, &packing);
  return failed;
}
