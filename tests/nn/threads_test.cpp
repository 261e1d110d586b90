// Operations that split their work: any number of threads gives the bits of one.
#include <ATen/Parallel.h>
#include <omp.h>

#include <thread>

#include "glimpse/nn/attention.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/parallel.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

namespace {

template <class Operation>
void check_threads(const char* name, const Operation& operation) {
  CAPTURE(name);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor alone = operation();
  for (const int threads : {2, 3, 5}) {
    at::set_num_threads(threads);
    CHECK(at::equal(operation(), alone));
  }
  at::set_num_threads(before);
}

}  // namespace

TEST_CASE("the number of threads changes no result") {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    CAPTURE(type);
    at::manual_seed(5);
    const auto random = [&](at::IntArrayRef shape) { return at::randn(shape).to(type); };
    for (const int64_t rows : {1, 5, 700}) {
      CAPTURE(rows);
      const at::Tensor x = random({rows, 96}), w = random({530, 96}), bias = random({530});
      if (type == at::kBFloat16 || rows <= 8)  // many rows of float32 are libtorch's
        check_threads("linear", [&] { return Linear{w, bias}(x); });
      for (const int64_t group : {0, 32}) {
        const LowBitWeight packed = quantise_weight(w, group);
        const Linear low{{}, bias, nullptr, std::make_shared<LowBitWeight>(packed)};
        check_threads("low bits", [&] { return low(x); });
        check_threads("several", [&] { return at::cat(linears(x, low, low, low), 1); });
      }
      const at::Tensor norm = random({96}), more = random({rows, 96});
      check_threads("rms_norm", [&] { return rms_norm(x, norm, 1e-6); });
      check_threads("silu_mul", [&] { return silu_mul(x, more); });
    }
    const at::Tensor q = random({400, 8, 32}), k = random({400, 4, 32}), v = random({400, 4, 32});
    LayerCache cache;
    cache.append(k, v);
    check_threads("prefill", [&] { return causal_attention(q, cache); });
    check_threads("decoding", [&] { return causal_attention(q.narrow(0, 399, 1), cache); });
    LayerCache longer;
    longer.append(random({5000, 4, 32}), random({5000, 4, 32}));
    check_threads("long decoding", [&] { return causal_attention(q.narrow(0, 399, 1), longer); });
    check_threads("segments", [&] { return segment_attention(q, q, q, {64, 64, 200, 72}); });
    check_threads("received", [&] { return received_attention(q, q, {150, 250}); });
  }
}

TEST_CASE("a thread that works alone stays alone") {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  int own = 0, of_operations = 0, restored = 0;
  std::thread([&] {
    own = work_alone();
    rms_norm(at::randn({3000, 96}), at::ones(96), 1e-6);  // a loop of the library
    at::randn({300000}).add_(1);                          // one of ATen
    of_operations = omp_get_max_threads();
    omp_set_num_threads(own);
    rms_norm(at::randn({3000, 96}), at::ones(96), 1e-6);
    restored = omp_get_max_threads();
  }).join();
  at::set_num_threads(before);
  CHECK(own == 3);
  CHECK(of_operations == 1);
  CHECK(restored == 3);
}
