#include "glimpse/nn/parallel.h"

#include <omp.h>

namespace glimpse {

int work_alone() {
  // A thread gets the number of the whole program at its first question and at its first loop, once for ATen
  // and once for each library that has such loops: what is set here must come behind both.
  const int before = at::get_num_threads();
  at::parallel_for(0, 1, 1, [](int64_t, int64_t) {});
  omp_set_num_threads(1);
  return before;
}

}  // namespace glimpse
