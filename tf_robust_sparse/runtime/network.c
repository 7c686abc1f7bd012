/* The end of an exported network: its weights are unpacked at the first call, then images are computed one by one. */

static int words[WORDS];
static float space[SPACE] __attribute__((aligned(64)));
static int ready;

static float float_at(const unsigned char *p) {
  float value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

/* The next weight of a matrix; of signs that with this number. */
static float value_of(const unsigned char **from, int mode, float scale, long number) {
  const unsigned char *p = *from;
#if HAS_SIGNS
  if (mode == VALUES_SIGNS) return p[number >> 3] >> (number & 7) & 1 ? scale : -scale;
#endif
#if HAS_INT8
  if (mode == VALUES_INT8) {
    *from += 1;
    return scale * (float)(signed char)p[0];
  }
#endif
#if HAS_FLOAT16
  if (mode == VALUES_FLOAT16) { /* normal and subnormal numbers */
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31;
    float value = (float)((bits & 1023) + (exponent ? 1024 : 0)) / 1024;
    *from += 2;
    for (exponent = exponent ? exponent : 1; exponent < 15; exponent++) value /= 2;
    for (; exponent > 15; exponent--) value *= 2;
    return bits >> 15 ? -value : value;
  }
#endif
  (void)mode, (void)scale, (void)number;
  *from += 4;
  return float_at(p);
}

static int next_bit(void) {
  static long place;
  int bit = gaps[place >> 3] >> (place & 7) & 1;
  place++;
  return bit;
}

static void unpack(void) {
  const unsigned char *from = values, *finer = 0;
  const float *scale = floats;
  const int *offset = offsets;
  int end = MATRIX_WORDS * MATRICES;
  for (int i = 0; i < MATRICES; i++) {
    const made_t *m = &made[i];
    int *head = words + MATRIX_WORDS * i;
    end += end & 1;
    head[0] = end;
    if (m->kind == MADE_SCALE) {
      for (int r = 0; r < 2 * m->rows; r++, end++) __builtin_memcpy(words + end, scale++, 4);
      continue;
    }
    float by = 0, most = 0;
    if (m->mode == VALUES_INT8) most = *scale++, finer = from, from += m->rows;
#define NEXT_SCALE \
  if (m->mode == VALUES_SIGNS) by = *scale++; \
  if (m->mode == VALUES_INT8) { \
    by = 1; \
    for (int k = *finer++; k; k--) by *= 0.9576f; \
    by *= most; \
  }
#if HAS_BLOCKS
    if (m->kind == MADE_BLOCKED) {
      int columns = m->channels * m->taps, blocks = (m->rows + BLOCK - 1) / BLOCK;
      words[end++] = columns;
      head[1] = end;
      for (int c = 0; c < m->channels; c++)
        for (int t = 0; t < m->taps; t++) words[end++] = c * m->channel_offset + offset[t];
      head[3] = end;
      float *to = (float *)(words + end);
      for (int r = 0; r < m->rows; r++) {
        NEXT_SCALE
        for (int k = 0; k < columns; k++)
          to[(r / BLOCK * columns + k) * BLOCK + r % BLOCK] = value_of(&from, m->mode, by, 0);
      }
      end += blocks * columns * BLOCK;
    } else
#endif
    {
      int *row = words + end, r = 0, index = -1, columns = m->channels * m->taps;
      entry_t *entry = (entry_t *)(words + (head[1] = end + ((m->rows + 2) & ~1)));
      row[0] = 0;
      NEXT_SCALE
      for (int n = 0; n <= m->count; n++) {
        for (index++; n < m->count && next_bit();) index += 1 << m->rest;
        for (int k = 0; n < m->count && k < m->rest; k++) index += next_bit() << k;
        while (r < m->rows - 1 && (n == m->count || index >= (r + 1) * columns)) {
          row[++r] = n;
          NEXT_SCALE
        }
        if (n == m->count) break;
        int place = index - r * columns, c = place / m->taps + r / m->group * m->channels;
        entry[n].offset = c * m->channel_offset + offset[place % m->taps];
        entry[n].value = value_of(&from, m->mode, by, n);
      }
      row[m->rows] = m->count;
      if (m->mode == VALUES_SIGNS) from += (m->count + 7) / 8;
      end = head[1] + 2 * m->count;
    }
    if (m->biased) {
      head[2] = end;
      if (m->mode == VALUES_INT8) most = *scale++;
      for (int r = 0; r < m->rows; r++, end++) {
        float bias;
        if (m->mode == VALUES_INT8)
          bias = most * (float)(short)(from[0] | from[1] << 8), from += 2;
        else
          bias = *scale++;
        __builtin_memcpy(words + end, &bias, 4);
      }
    }
    offset += m->taps;
  }
  for (int i = 0; i < STENCILS; i++) /* zeros between the rows of an image */
    for (int k = 0; k < stencils[i].positions; k++)
      space[stencils[i].place + k] = k % stencils[i].pitch < stencils[i].width;
  ready = 1;
}

/* Computes the outputs of `count` images, CLASSES floats each, from HEIGHT * WIDTH * CHANNELS pixels each. Not for
   several threads at a time. */
void network_run(const float *images, long count, float *outputs) {
  if (!ready) unpack();
  for (long i = 0; i < count; i++)
    net_run(ops, sizeof ops / sizeof ops[0], words, space, images + i * HEIGHT * WIDTH * CHANNELS, 1,
            outputs + i * CLASSES);
}

void network_shape(int *shape) { shape[0] = HEIGHT, shape[1] = WIDTH, shape[2] = CHANNELS, shape[3] = CLASSES; }

#ifndef NO_MAIN
#include <stdio.h>

/* Reads images as float32 from standard input, height by width by channels, and prints one line of outputs for each. */
int main(void) {
  static float image[HEIGHT * WIDTH * CHANNELS], output[CLASSES];
  while (fread(image, sizeof image, 1, stdin) == 1) {
    network_run(image, 1, output);
    for (int c = 0; c < CLASSES; c++) printf("%.9g%c", output[c], c + 1 < CLASSES ? ' ' : '\n');
  }
  return 0;
}
#endif
