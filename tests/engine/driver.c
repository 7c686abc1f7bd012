/* Runs plans from standard input on memory of exactly their size, for the sanitizers: width, operations, words, floats of
   the workspace, pixels of a slice, outputs, images; then the operations and the words themselves. */

#include "kernels.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void take(void *to, size_t size) {
  if (fread(to, 1, size, stdin) != size) exit(2);
}

int main(void) {
  long head[8];
  float *space = 0;
  while (fread(head, sizeof head, 1, stdin) == 1) {
    op_t *ops = malloc(head[1] * sizeof(op_t));
    int *words = malloc(head[2] * sizeof(int));
    float *x = malloc(head[4] * sizeof(float)), *y = malloc(head[5] * sizeof(float));
    take(ops, head[1] * sizeof(op_t));
    take(words, head[2] * sizeof(int));
    for (long i = 0; i < head[4]; i++) x[i] = (float)(i % 17) / 17;
    if (head[7]) { /* a new network, not the way back of the last one */
      free(space);
      if (posix_memalign((void **)&space, 64, head[3] * sizeof(float))) return 3;
      memset(space, 0, head[3] * sizeof(float));
    }
    if (head[0] <= trs_width()) trs_run((int)head[0], ops, head[1], words, space, x, head[6], y);
    free(ops), free(words), free(x), free(y);
  }
  free(space);
  return 0;
}
