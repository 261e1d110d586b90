#include "glimpse/train/loader.h"

#include <ATen/Parallel.h>
#include <omp.h>

namespace glimpse {

void work_alone() {
  // ATen sets up each thread once, at its first question, to the number of the whole program.
  at::get_num_threads();
  omp_set_num_threads(1);
}

}  // namespace glimpse
