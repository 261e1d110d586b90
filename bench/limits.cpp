#include "bench/limits.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <atomic>

#include "glimpse/base/check.h"
#include "glimpse/base/timer.h"
#include "glimpse/nn/linear.h"

namespace glimpse::bench {

namespace {

constexpr int kPasses = 6;

__attribute__((target_clones("default", "avx2", "avx512f"))) uint64_t sum(const uint64_t* data,
                                                                          int64_t count) {
  uint64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += data[i];
  return total;
}

// Bytes per second of the best pass. Each thread walks its part as one or several streams at a time.
double read_rate(int64_t mib) {
  const int64_t count = mib << 17, threads = at::get_num_threads(), page = 512;
  const at::Tensor buffer = at::ones({count}, at::kLong);
  const auto* data = reinterpret_cast<const uint64_t*>(buffer.const_data_ptr<int64_t>());
  Samples times;
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t streams = int64_t{1} << pass % 3, part = count / threads / streams / page * page;
    std::atomic<uint64_t> total = 0;
    const Timer timer;
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        uint64_t own = 0;
        for (int64_t i = 0; i < part; i += page)
          for (int64_t s = 0; s < streams; ++s) own += sum(data + (t * streams + s) * part + i, page);
        total += own;
      }
    });
    times.add(timer.ms() * static_cast<double>(count) / static_cast<double>(part * streams * threads));
    invariant(total == static_cast<uint64_t>(part * streams * threads), "every number is read once");
  }
  return static_cast<double>(count) * 8 / times.best() * 1e3;
}

template <class Product>
double gemm_rate(const GemmShape& s, const Product& product) {
  Samples times;
  for (int pass = 0; pass < kPasses / 2; ++pass) {
    const Timer timer;
    product();
    times.add(timer.ms());
  }
  return 2.0 * static_cast<double>(s.m) * static_cast<double>(s.k) * static_cast<double>(s.n) / times.best() *
         1e3;
}

}  // namespace

std::optional<double> Limits::share_of_flops(double flops, double ms) const {
  if (flops_per_s <= 0) return std::nullopt;
  return flops / ms * 1e3 / flops_per_s;
}

std::optional<double> Limits::share_of_bytes(double bytes, double ms) const {
  if (bytes_per_s <= 0) return std::nullopt;
  return bytes / ms * 1e3 / bytes_per_s;
}

Limits measure_limits(int64_t buffer_mib, const std::vector<GemmShape>& shapes, Rows& rows) {
  Limits limits;
  limits.bytes_per_s = read_rate(buffer_mib);
  rows.add({"memory_read", limits.bytes_per_s / 1e9, "GB/s"});
  std::string best;
  for (const GemmShape& s : shapes) {
    const at::Tensor x = at::randn({s.m, s.k}), w = at::randn({s.n, s.k});
    const at::Tensor narrow_x = x.to(at::kBFloat16);
    const Linear linear{w.to(at::kBFloat16), {}};
    const std::string shape = concat("_", s.m, "x", s.k, "x", s.n);
    const auto measure = [&](const std::string& way, const auto& product) {
      const double rate = gemm_rate(s, product);
      say(concat("gemm_", way, shape, ": ", rate / 1e9, " GFLOP/s"));
      rows.add({"gemm_" + way + shape, rate / 1e9, "GFLOP/s"});
      if (rate <= limits.flops_per_s) return;
      limits.flops_per_s = rate;
      best = way + shape;
    };
    measure("at_bf16", [&] { return at::linear(narrow_x, linear.weight); });
    measure("glimpse_bf16", [&] { return linear(narrow_x); });
    measure("at_f32", [&] { return at::linear(x, w); });
  }
  rows.add({.name = "gemm_peak", .value = limits.flops_per_s / 1e9, .unit = "GFLOP/s", .note = best});
  return limits;
}

}  // namespace glimpse::bench
