#include "bench/limits.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <atomic>
#include <optional>

#include "bench/instructions.h"
#include "glimpse/base/check.h"
#include "glimpse/base/timer.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/parallel.h"
#include "glimpse/nn/row_blocks.h"

namespace glimpse::bench {

namespace {

constexpr int kPasses = 6;

__attribute__((target_clones("default", "avx2", "avx512f"))) uint64_t sum(const uint64_t* data,
                                                                          int64_t count) {
  uint64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += data[i];
  return total;
}

// Bytes per second of the best pass. Each thread walks its part as one or several streams at a time. Random
// numbers, as some machines read pages of equal content faster.
double read_rate(int64_t mib) {
  const int64_t count = mib << 17, threads = at::get_num_threads(), page = 512;
  const at::Tensor buffer = at::empty({count}, at::kLong).random_();
  const auto* data = reinterpret_cast<const uint64_t*>(buffer.const_data_ptr<int64_t>());
  Samples times;
  std::array<std::optional<uint64_t>, 3> found;
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
    invariant(total == found[pass % 3].value_or(total), "every pass reads the same");
    found[pass % 3] = total;
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

at::Tensor call(const char* name, std::vector<c10::IValue> arguments) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(arguments);
  return arguments.at(0).toTensor();
}

// The product of unsigned activations and 8-bit weights that libtorch's quantised models call.
class OneDnnInt8 {
 public:
  explicit OneDnnInt8(const GemmShape& s)
      : x_(at::randint(0, 255, {s.m, s.k}, at::kByte)),
        weight_(call("onednn::qlinear_prepack", {at::randint(-127, 127, {s.n, s.k}, at::kChar), {}})),
        scale_(at::full({s.n}, 0.01)),
        zero_(at::zeros({s.n}, at::kInt)) {}

  at::Tensor operator()() const {
    return call("onednn::qlinear_pointwise", {x_,
                                              0.01,
                                              128,
                                              weight_,
                                              scale_,
                                              zero_,
                                              {},
                                              1.0,
                                              0,
                                              at::kBFloat16,
                                              "none",
                                              c10::List<std::optional<at::Scalar>>(),
                                              ""});
  }

 private:
  at::Tensor x_, weight_, scale_, zero_;
};

// The fastest of several ways.
struct Best {
  double per_s = 0;
  std::string way;

  void offer(double rate, const std::string& name) {
    if (rate > per_s) *this = {rate, name};
  }
};

}  // namespace

std::optional<double> Limits::share_of_flops(double flops, double ms) const {
  if (flops_per_s <= 0) return std::nullopt;
  return flops / ms * 1e3 / flops_per_s;
}

Limits Limits::earlier(const Rows& rows) {
  const auto giga = [&](const char* name) { return 1e9 * rows.earlier(name).value_or(0); };
  return {giga("gemm_peak"), giga("gemm_int8_peak")};
}

double weights_read_rate(const Decoder& decoder) {
  struct Part {
    const uint64_t* data;
    int64_t count;
  };
  std::vector<Part> parts;
  int64_t bytes = 0;
  decoder.visit_linears([&](const std::string&, const Linear& layer) {
    const at::Tensor& data = layer.low_bit ? layer.low_bit->data : layer.weight;
    const auto* const from = static_cast<const uint64_t*>(data.const_data_ptr());
    const auto count = static_cast<int64_t>(data.nbytes() / sizeof(uint64_t));
    bytes += count * static_cast<int64_t>(sizeof(uint64_t));
    for_each_block(count, 1 << 16, [&](int64_t first, int64_t some) {
      parts.push_back({from + first, some});
    });
  });
  std::atomic<uint64_t> total = 0;
  const Timer timer;
  parallel_tasks(static_cast<int64_t>(parts.size()),
                 [&](int64_t i) { total += sum(parts[i].data, parts[i].count); });
  const double ms = timer.ms();
  // Printed nowhere, but asked for, so that nothing is left out.
  invariant(total != 0, "weights are not all zero");
  return static_cast<double>(bytes) / ms * 1e3;
}

Limits measure_limits(int64_t buffer_mib, const std::vector<GemmShape>& shapes, Rows& rows) {
  Limits limits;
  rows.add({"memory_read", read_rate(buffer_mib) / 1e9, "GB/s"});

  double registers = 0, int8_registers = 0;
  for (const InstructionRate& rate : instruction_rates()) {
    const bool int8 = rate.name == "int8_dot";
    rows.add({.name = "registers_" + rate.name,
              .value = rate.per_s / 1e9,
              .unit = int8 ? "GOP/s" : "GFLOP/s",
              .note = concat(rate.bits, " bits, without memory")});
    double& most = int8 ? int8_registers : registers;
    most = std::max(most, rate.per_s);
  }

  Best best, int8_best;
  for (const GemmShape& s : shapes) {
    const auto measure = [&](std::string name, const char* unit, Best& of, const auto& product) {
      name += concat("_", s.m, "x", s.k, "x", s.n);
      const double rate = gemm_rate(s, product);
      say(concat("gemm_", name, ": ", rate / 1e9, " ", unit));
      rows.add({"gemm_" + name, rate / 1e9, unit});
      of.offer(rate, name);
    };
    const at::Tensor x = at::randn({s.m, s.k}), w = at::randn({s.n, s.k});
    const at::Tensor narrow_x = x.to(at::kBFloat16);
    const Linear linear{w.to(at::kBFloat16), {}};
    measure("at_bf16", "GFLOP/s", best, [&] { return at::linear(narrow_x, linear.weight); });
    measure("glimpse_bf16", "GFLOP/s", best, [&] { return linear(narrow_x); });
    measure("at_f32", "GFLOP/s", best, [&] { return at::linear(x, w); });
    const Linear low{{}, {}, nullptr, std::make_shared<LowBitWeight>(quantise_weight(w, 0))};
    measure("glimpse_int8", "GOP/s", int8_best, [&] { return low(narrow_x); });
    try {
      measure("onednn_int8", "GOP/s", int8_best, OneDnnInt8(s));
    } catch (const c10::Error& error) {
      say(concat("libtorch has no 8-bit product here: ", error.what_without_backtrace()));
    }
  }
  const auto peak = [&](const char* name, const char* unit, const Best& of, double most) {
    rows.add({.name = name,
              .value = of.per_s / 1e9,
              .unit = unit,
              .share = most > 0 ? std::optional(of.per_s / most) : std::nullopt,
              .note = of.way});
    return of.per_s;
  };
  limits.flops_per_s = peak("gemm_peak", "GFLOP/s", best, registers);
  limits.int8_flops_per_s = peak("gemm_int8_peak", "GOP/s", int8_best, int8_registers);
  return limits;
}

}  // namespace glimpse::bench
