/* The end of an exported network: its weights are unpacked at the first call, then images are computed one by one. */

static int words[WORDS];
static float space[SPACE] __attribute__((aligned(64)));
static int ready;

static float value_of(const unsigned char **from, int mode, float scale, long number) {
  const unsigned char *p = *from;
  if (mode == VALUES_SIGNS) return p[number >> 3] >> (number & 7) & 1 ? scale : -scale;
  if (mode == VALUES_INT8) {
    *from += 1;
    return scale * (float)(signed char)p[0];
  }
  if (mode == VALUES_FLOAT16) { /* normal and subnormal numbers */
    int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31;
    float value = (float)((bits & 1023) + (exponent ? 1024 : 0)) / 1024;
    *from += 2;
    for (exponent = exponent ? exponent : 1; exponent < 15; exponent++) value /= 2;
    for (; exponent > 15; exponent--) value *= 2;
    return bits >> 15 ? -value : value;
  }
  float value;
  __builtin_memcpy(&value, p, 4);
  *from += 4;
  return value;
}

static void unpack(void) {
  const unsigned char *gap = gaps, *from = values;
  const unsigned short *count = counts;
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
#if HAS_BLOCKS
    if (m->kind == MADE_BLOCKED) {
      int columns = m->channels * m->taps, blocks = (m->rows + BLOCK - 1) / BLOCK;
      words[end++] = columns;
      head[1] = end;
      for (int c = 0; c < m->channels; c++)
        for (int t = 0; t < m->taps; t++) words[end++] = c * m->channel_offset + offset[t];
      head[3] = end;
      float *to = (float *)(words + end);
      for (int r = 0; r < blocks * BLOCK; r++) {
        float by = m->mode >= VALUES_INT8 && r < m->rows ? *scale++ : 0;
        for (int k = 0; k < columns; k++)
          to[(r / BLOCK * columns + k) * BLOCK + r % BLOCK] = r < m->rows ? value_of(&from, m->mode, by, 0) : 0;
      }
      end += blocks * columns * BLOCK;
    } else
#endif
    {
      int *row = words + end, n = 0;
      entry_t *entry = (entry_t *)(words + (head[1] = end + ((m->rows + 2) & ~1)));
      for (int r = 0; r < m->rows; r++) {
        float by = m->mode >= VALUES_INT8 ? *scale++ : 0;
        int index = -1, left = *count++;
        row[r] = n;
        while (left) {
          index += *gap + (*gap < 255);
          if (*gap++ == 255) continue;
          int c = index / m->taps + r / m->group * m->channels;
          entry[n].offset = c * m->channel_offset + offset[index % m->taps];
          entry[n].value = value_of(&from, m->mode, by, n);
          n++, left--;
        }
      }
      row[m->rows] = n;
      if (m->mode == VALUES_SIGNS) from += (n + 7) / 8;
      end = head[1] + 2 * n;
    }
    if (m->biased) {
      head[2] = end;
      for (int r = 0; r < m->rows; r++, end++) __builtin_memcpy(words + end, scale++, 4);
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
