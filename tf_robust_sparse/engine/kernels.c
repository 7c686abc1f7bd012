/* The engine: plans of a sparse network's operations, on the widest vectors that the processor has. */

#include "plan.h"
#include "threads.h"
#include "pack.h"

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
int trs_version(void) { return 4; }

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

typedef struct {
  int width;
  const op_t *ops;
  long count;
  const int *words;
  float *const *spaces;
  long kept; /* whether each slice has a workspace of its own, rather than each thread */
  const float *x;
  long pixels, images, lanes;
  float *y;
  long outputs;
} batch_t;

static void run_slice(const void *shared, long task, int thread) {
  const batch_t *b = shared;
  long first = task * b->lanes, left = b->images - first;
  trs_run(b->width, b->ops, b->count, b->words, b->spaces[b->kept ? task : thread], b->x + first * b->pixels,
          left < b->lanes ? left : b->lanes, b->y + first * b->outputs);
}

/* Computes a plan for any number of images, `lanes` at a time, on up to `threads` threads. */
void trs_run_batch(const batch_t *batch, int threads) {
  share(threads, (batch->images + batch->lanes - 1) / batch->lanes, run_slice, batch);
}
