/* What a plan is made of. The Python side writes the same fields, in this order, each of eight bytes, in an exported network four. */

#include <stdint.h>

#ifdef ONE_IMAGE /* an exported network is small */
typedef int32_t word_t;
#else
typedef int64_t word_t;
#endif

#ifndef ONE_IMAGE /* an exported network says itself what it needs */
#define HAS_BLOCKS 1
#define HAS_EACH 1
#define HAS_SMOOTH 1
#define HAS_POOLS 1
#define HAS_FLATTEN 1
#define HAS_SPLIT 1
#endif

enum { ACT_NONE, ACT_RELU, ACT_CLIP, ACT_LEAKY, ACT_SILU };
enum {
  OP_READ,
  OP_WRITE,
  OP_CONVOLVE,
  OP_EACH,
  OP_MAX_POOL,
  OP_MEAN_POOL,
  OP_MAX_POOL_GRADIENT,
  OP_MEAN_POOL_GRADIENT,
  OP_FLATTEN,
  OP_SPLIT
};

#define BLOCK 6        /* rows of a blocked matrix that share their columns */
#define CHUNK_FLOATS 65536
/* Of the directory, per matrix: where its rows, entries, bias and blocked weights begin, or 0; and the number of parts. */
#define MATRIX_WORDS 5

typedef struct {
  int offset; /* floats from an output position to the input that it adds */
  float value;
} entry_t;

/* One operation. Tensors are given by the place of their first position, -1 for none, and by the floats from one channel,
   row and position to the next; sizes are those of the positions to compute. */
typedef struct {
  word_t kind, act, gradient, matrix, chunk, lanes, channels, height, width;
  word_t src, src_plane, src_row, src_step;
  word_t dst, dst_plane, dst_row, dst_step;
  word_t add, add_plane, add_row, add_step;
  word_t mask, mask_plane, mask_row, mask_step;
  word_t in, in_plane, in_row, in_step; /* of pooling's gradient: the values that were pooled */
  word_t out, out_plane, out_row, out_step;
  word_t in_height, in_width, window[2], stride[2], pad[2], margin[4];
  float slope, top;
} op_t;
