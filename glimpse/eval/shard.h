#pragma once

#include <cstddef>

namespace glimpse {

/// This process among those that share a piece of work; they need not talk to each other.
struct Shard {
  int rank = 0, size = 1;
  bool mine(size_t item) const { return item % static_cast<size_t>(size) == static_cast<size_t>(rank); }
};

/// As the launcher says: RANK and WORLD_SIZE (torchrun), SLURM_PROCID and SLURM_STEP_NUM_TASKS (srun), or
/// OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE; alone without them. Error when they do not fit together.
Shard shard_from_environment();

}  // namespace glimpse
