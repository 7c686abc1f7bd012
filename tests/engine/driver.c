/* Runs plans from standard input on memory of exactly their size, for the sanitizers, by the kernels of vectors of VW
   floats: operations, words, floats of the workspace, pixels of a slice, outputs, images, whether the network is new;
   then the operations and the words themselves. */

#include "plan.h"

#define ALWAYS __attribute__((always_inline))
#define NAME(x) watched_##x
#if VW == 16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#elif VW == 8
#define TARGET __attribute__((target("avx2,fma")))
#else
#define TARGET
#endif
#include "kernels.h"
#include "operations.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void take(void *to, size_t size) {
  if (fread(to, 1, size, stdin) != size) exit(2);
}

int main(void) {
  long head[7];
  float *space = 0;
  while (fread(head, sizeof head, 1, stdin) == 1) {
    op_t *ops = malloc(head[0] * sizeof(op_t));
    int *words = malloc(head[1] * sizeof(int));
    float *x = malloc(head[3] * sizeof(float)), *y = malloc(head[4] * sizeof(float));
    take(ops, head[0] * sizeof(op_t));
    take(words, head[1] * sizeof(int));
    for (long i = 0; i < head[3]; i++) x[i] = (float)(i % 17) / 17;
    if (head[6]) { /* a new network, not the way back of the last one */
      free(space);
      if (posix_memalign((void **)&space, 64, head[2] * sizeof(float))) return 3;
      memset(space, 0, head[2] * sizeof(float));
    }
    NAME(run)(ops, head[0], words, space, x, head[5], y);
    free(ops), free(words), free(x), free(y);
  }
  free(space);
  return 0;
}
