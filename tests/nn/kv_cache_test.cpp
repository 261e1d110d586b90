// Copies of a cache share memory and never see each other's rows.
#include "glimpse/nn/kv_cache.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

TEST_CASE("copies are independent of what is appended, dropped and kept elsewhere") {
  const auto rows = [](int64_t count, float value) { return at::full({count, 2, 4}, value); };
  LayerCache cache;
  cache.append(rows(5, 1), rows(5, -1));
  const LayerCache copy = cache;
  CHECK(copy.keys().const_data_ptr() == cache.keys().const_data_ptr());  // shared until one changes
  LayerCache longer = copy, shorter = copy;
  longer.append(rows(2, 2), rows(2, -2));
  cache.append(rows(1, 3), rows(1, -3));
  shorter.drop_last(2);
  shorter.append(rows(1, 4), rows(1, -4));
  CHECK(copy.length() == 5);
  CHECK(at::equal(copy.keys(), rows(5, 1).transpose(0, 1)));
  CHECK(at::equal(copy.values(), rows(5, -1).transpose(0, 1)));
  CHECK(at::equal(cache.keys(), at::cat({rows(5, 1), rows(1, 3)}).transpose(0, 1)));
  CHECK(at::equal(longer.values(), at::cat({rows(5, -1), rows(2, -2)}).transpose(0, 1)));
  CHECK(at::equal(shorter.keys(), at::cat({rows(3, 1), rows(1, 4)}).transpose(0, 1)));
  const void* const own = longer.keys().const_data_ptr();
  longer.append(rows(1, 5), rows(1, -5));
  CHECK(longer.keys().const_data_ptr() == own);  // no copy has it: it grows in place
}

TEST_CASE("the first rows, in memory of their size; the bound on what a cache has allocated") {
  LayerCache cache;
  cache.append(at::randn({40, 2, 4}), at::randn({40, 2, 4}));
  const LayerCache first = cache.first(30);
  CHECK(first.length() == 30);
  CHECK(at::equal(first.keys(), cache.keys().narrow(1, 0, 30)));
  CHECK(first.bytes() == 2 * 30 * 2 * 4 * sizeof(float));
  for (int i = 0; i < 1000; ++i) {
    cache.append(at::zeros({1, 2, 4}), at::zeros({1, 2, 4}));
    CHECK(cache.bytes() <= LayerCache::capacity_of(cache.length()) * 2 * 2 * 4 * sizeof(float));
  }
}
