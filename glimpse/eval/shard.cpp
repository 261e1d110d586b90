#include <charconv>
#include <cstdlib>
#include <string_view>

#include "glimpse/base/check.h"
#include "glimpse/eval/shard.h"

namespace glimpse {

namespace {

int number_in(const char* name, const char* text) {
  const std::string_view given = text;
  int value = -1;
  const auto [end, error] = std::from_chars(given.begin(), given.end(), value);
  check(error == std::errc() && end == given.end() && value >= 0, name, ": expected a number, got '", given,
        "'");
  return value;
}

}  // namespace

Shard shard_from_environment() {
  constexpr std::pair<const char*, const char*> kLaunchers[] = {
      {"RANK", "WORLD_SIZE"},
      {"SLURM_PROCID",
       "SLURM_STEP_NUM_TASKS"},  // of srun; a batch script is alone, whatever SLURM_NTASKS says
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}};
  for (const auto& [rank_name, size_name] : kLaunchers) {
    const char *rank = std::getenv(rank_name), *size = std::getenv(size_name);
    if (!rank || !size) continue;
    const Shard shard{number_in(rank_name, rank), number_in(size_name, size)};
    check(shard.rank < shard.size, rank_name, " ", shard.rank, " is not below ", size_name, " ", shard.size);
    return shard;
  }
  return {};
}

}  // namespace glimpse
