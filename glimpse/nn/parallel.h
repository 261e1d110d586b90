#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

namespace glimpse {

/// Makes this thread start no OpenMP threads of its own, in this library and in ATen: beside those of the
/// thread that runs the model they would take its cores away, and OpenMP no longer spins when there are more
/// threads than cores. Returns how many it may have started before.
int work_alone();

/// Calls task(i) once for each i < count on all threads. Every thread begins with a part of its own, as what
/// follows in memory was asked for already, then helps the others: cores are not equally fast when other
/// programs run, and equal halves would wait for the slower one.
template <class Task>
void parallel_tasks(int64_t count, const Task& task) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  const auto begin_of = [&](int64_t part) { return part * count / threads; };
  std::vector<std::atomic<int64_t>> next(threads);
  for (int64_t part = 0; part < threads; ++part) next[part] = begin_of(part);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t help = 0; help < threads; ++help) {
        const int64_t part = (t + help) % threads, last = begin_of(part + 1);
        for (int64_t i = next[part]++; i < last; i = next[part]++) task(i);
      }
  });
}

/// The same for several kinds of tasks, counts[k] of kind k: task(k, i).
template <class Task>
void parallel_tasks_of(const std::vector<int64_t>& counts, const Task& task) {
  parallel_tasks(std::accumulate(counts.begin(), counts.end(), int64_t{0}), [&](int64_t i) {
    size_t kind = 0;
    while (i >= counts[kind]) i -= counts[kind++];
    task(kind, i);
  });
}

}  // namespace glimpse
