/* Work shared by threads that live as long as one call: nothing of it is left over, so that processes may fork. */

#include <pthread.h>

#define MOST_THREADS 256

typedef void (*task_t)(const void *shared, long task, int thread);

typedef struct {
  task_t run;
  const void *shared;
  long count, next;
  int threads;
} crew_t;

static void *work(void *argument) {
  crew_t *crew = argument;
  int thread = __atomic_fetch_add(&crew->threads, 1, __ATOMIC_RELAXED);
  for (;;) {
    long task = __atomic_fetch_add(&crew->next, 1, __ATOMIC_RELAXED);
    if (task >= crew->count) return 0;
    crew->run(crew->shared, task, thread);
  }
}

/* Runs tasks 0 to `count` - 1 on up to `threads` threads, numbered from 0, of which the caller is one. */
static void share(int threads, long count, task_t run, const void *shared) {
  crew_t crew = {run, shared, count, 0, 0};
  pthread_t others[MOST_THREADS];
  int started = 0;
  if (threads > MOST_THREADS) threads = MOST_THREADS;
  while (started + 1 < threads && started + 1 < count && !pthread_create(&others[started], 0, work, &crew)) started++;
  work(&crew);
  while (started) pthread_join(others[--started], 0);
}
