// Flash attention on every instruction set, against plain attention in double.
#include "glimpse/nn/flash.h"

#include <cmath>

#include "glimpse/nn/ops.h"
#include "nn/every_target.h"
#include "nn/near.h"
#include "nn/random_sizes.h"

using namespace glimpse;
using test::can_pair;
using test::near;
using test::on_every_target;

namespace {

// q [R, G, d]; k [S, d]; v [S, dv] -> [R, G, dv].
at::Tensor plain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                 int64_t window = 0) {
  const int64_t rows = q.size(0), keys = k.size(0);
  const at::Tensor scores = at::einsum("rgd,sd->grs", {q.to(at::kDouble), k.to(at::kDouble)}) /
                            std::sqrt(static_cast<double>(q.size(2)));
  at::Tensor seen = at::ones({rows, keys}, at::kBool).tril(keys - rows);
  if (window > 0) seen = seen.triu(keys - rows - window + 1);
  const at::Tensor unseen = seen.logical_not();
  const at::Tensor p = (causal ? scores.masked_fill(unseen, -INFINITY) : scores).softmax(2);
  return at::einsum("grs,sd->rgd", {p, v.to(at::kDouble)});
}

// The rows [first, last) of the kernel's result, the others zero.
at::Tensor flash_rows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                      int64_t first, int64_t last, bool pairs = false, int64_t window = 0) {
  at::Tensor out = at::zeros({q.size(0), q.size(1), v.size(1)}, q.options());
  std::vector<float> scratch(flash::scratch_size(last - first, q.size(1), q.size(2), v.size(1)));
  with_element(q.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const flash::Heads<T> heads{element_data<T>(q),
                                element_data<T>(k),
                                element_data<T>(v),
                                q.size(0),
                                k.size(0),
                                q.size(1),
                                q.size(2),
                                v.size(1),
                                q.stride(0),
                                q.stride(1),
                                k.stride(0),
                                v.stride(0),
                                out.stride(0),
                                out.stride(1),
                                causal,
                                pairs,
                                window};
    flash::attend(heads, first, last, element_data<T>(out), scratch.data());
  });
  return out;
}

at::Tensor flash_all(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal,
                     bool pairs = false, int64_t window = 0) {
  return flash_rows(q, k, v, causal, 0, q.size(0), pairs, window);
}

}  // namespace

TEST_CASE("flash attention: random shapes, causal and full") {
  on_every_target(flash::target_name, [] {
    for (const auto& [type, limit] : {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 2e-2}})
      for (const auto& [rows, keys] :
           {std::pair{1, 1}, {1, 61}, {2, 2}, {33, 33}, {64, 64}, {17, 130}, {70, 200}})
        for (const auto& [d, dv] : {std::pair{64, 64}, {80, 80}, {128, 128}, {7, 5}, {48, 20}})
          for (const int64_t group : {1, 3}) {
            CAPTURE(rows);
            CAPTURE(keys);
            CAPTURE(d);
            CAPTURE(group);
            const at::Tensor q = at::randn({rows, group, d}).to(type), k = at::randn({keys, d}).to(type),
                             v = at::randn({keys, dv}).to(type);
            for (const bool causal : {true, false})
              for (const bool pairs : {false, true})
                if (!pairs || (type == at::kBFloat16 && can_pair()))
                  CHECK(near(flash_all(q, k, v, causal, pairs), plain(q, k, v, causal), limit, limit));
          }
  });
}

TEST_CASE("flash attention: a row sees the keys of its window") {
  on_every_target(flash::target_name, [] {
    for (const auto& [type, limit] : {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 2e-2}})
      for (const auto& [rows, keys] : {std::pair{33, 33}, {130, 130}, {70, 200}, {17, 300}})
        for (const int64_t window : {1, 2, 37, 60, 61, 150}) {
          CAPTURE(rows);
          CAPTURE(keys);
          CAPTURE(window);
          const at::Tensor q = at::randn({rows, 3, 48}).to(type), k = at::randn({keys, 48}).to(type),
                           v = at::randn({keys, 20}).to(type);
          for (const bool pairs : {false, true})
            if (!pairs || (type == at::kBFloat16 && can_pair())) {
              const at::Tensor all = flash_all(q, k, v, true, pairs, window);
              CHECK(near(all, plain(q, k, v, true, window), limit, limit));
              const at::Tensor some = flash_rows(q, k, v, true, 5, 11, pairs, window);
              CHECK(at::equal(some.narrow(0, 5, 6), all.narrow(0, 5, 6)));
            }
        }
  });
}

TEST_CASE("flash attention: shapes drawn at random") {
  on_every_target(flash::target_name, [] {
    test::RandomSizes size(13);
    for (int i = 0; i < 24; ++i) {
      const int64_t rows = size(100), keys = rows + size(150) - 1, group = size(8), d = size(128),
                    dv = size(128);
      CAPTURE(rows);
      CAPTURE(keys);
      CAPTURE(group);
      CAPTURE(d);
      CAPTURE(dv);
      const auto random = [&](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); };
      const at::Tensor q = random({rows, group, d}), k = random({keys, d}), v = random({keys, dv});
      for (const bool causal : {true, false})
        for (const bool pairs : {false, true})
          if (!pairs || can_pair())
            CHECK(near(flash_all(q, k, v, causal, pairs), plain(q, k, v, causal), 2e-2, 2e-2));
    }
  });
}

TEST_CASE("flash attention: strided operands, and a row's result does not depend on its neighbours") {
  on_every_target(flash::target_name, [] {
    const at::Tensor all = at::randn({150, 4, 3 * 24});
    const at::Tensor q = all.narrow(1, 0, 2).narrow(2, 0, 24), k = all.select(1, 2).narrow(1, 24, 24),
                     v = all.select(1, 3).narrow(1, 48, 24);
    const at::Tensor whole = flash_all(q, k, v, true);
    CHECK(near(whole, plain(q, k, v, true), 1e-5, 1e-5));
    for (const auto& [first, last] : {std::pair{0, 1}, {1, 50}, {50, 149}, {149, 150}}) {
      const at::Tensor part = flash_rows(q, k, v, true, first, last);
      CHECK(part.narrow(0, first, last - first).equal(whole.narrow(0, first, last - first)));
      CHECK(part.narrow(0, 0, first).abs().sum().item<float>() == 0);
    }
    const at::Tensor late = q.narrow(0, 90, 60).contiguous();  // rows that continue
    CHECK(flash_all(late, k, v, true).equal(whole.narrow(0, 90, 60)));
  });
}

TEST_CASE("flash attention in pairs: a row's result does not depend on its neighbours") {
  on_every_target(flash::target_name, [] {
    if (!can_pair()) return;
    const auto random = [](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); };
    const at::Tensor q = random({150, 2, 24}), k = random({150, 24}), v = random({150, 20});
    const at::Tensor whole = flash_all(q, k, v, true, true);
    CHECK_FALSE(whole.equal(flash_all(q, k, v, true)));  // it is another computation
    for (const auto& [first, last] : {std::pair{0, 1}, {1, 50}, {50, 149}, {149, 150}}) {
      const at::Tensor part = flash_rows(q, k, v, true, first, last, true);
      CHECK(part.narrow(0, first, last - first).equal(whole.narrow(0, first, last - first)));
    }
  });
}

TEST_CASE("flash attention: rows that see NaN are NaN, the others are not") {
  on_every_target(flash::target_name, [] {
    const at::Tensor q = at::randn({70, 1, 16}), k = at::randn({70, 16}), v = at::randn({70, 16});
    k[30][3] = NAN;
    const at::Tensor got = flash_all(q, k, v, true);
    CHECK(got.narrow(0, 0, 30).isfinite().all().item<bool>());
    CHECK(got.narrow(0, 30, 40).isnan().all().item<bool>());
  });
}

TEST_CASE("flash attention: large scores neither overflow nor vanish") {
  on_every_target(flash::target_name, [] {
    const at::Tensor q = at::randn({40, 1, 16}) * 300, k = at::randn({130, 16}) * 300,
                     v = at::randn({130, 16});
    CHECK(near(flash_all(q, k, v, false), plain(q, k, v, false), 1e-3, 1e-3));
    const at::Tensor falling = at::arange(130, 0, -1, at::kFloat).unsqueeze(1).expand({130, 16}).contiguous();
    CHECK(near(flash_all(q, falling, v, true), plain(q, falling, v, true), 1e-3, 1e-3));
  });
}
