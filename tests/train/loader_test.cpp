#include "glimpse/train/loader.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using namespace std::chrono_literals;

namespace {

std::vector<size_t> reversed(size_t count) {
  std::vector<size_t> order(count);
  std::iota(order.rbegin(), order.rend(), size_t{0});
  return order;
}

}  // namespace

TEST_CASE("items come in the order asked for, whoever makes them") {
  for (const int threads : {0, 1, 2, 5})
    for (const size_t ahead : {0, 1, 3, 100}) {
      Loader<int> loader(
          reversed(60),
          [](size_t i) {
            if (i % 3 == 0) std::this_thread::sleep_for(300us);
            check(i % 10 != 4, "item ", i, " is broken");
            return static_cast<int>(i * i);
          },
          threads, ahead);
      for (size_t i = 60; i-- > 0;) {
        const std::optional<Loaded<int>> next = loader.next();
        REQUIRE(next);
        CHECK(next->index == i);
        CHECK(next->item.has_value() == (i % 10 != 4));
        if (next->item)
          CHECK(*next->item == static_cast<int>(i * i));
        else
          CHECK(next->problem == concat("item ", i, " is broken"));
      }
      CHECK(!loader.next());
      CHECK(!loader.next());
    }
}

TEST_CASE("other exceptions come out where their item would") {
  for (const int threads : {0, 2}) {
    Loader<int> loader(
        {0, 1, 2}, [](size_t i) -> int { return i == 1 ? throw std::logic_error("bug") : 5; }, threads, 3);
    CHECK(loader.next()->item == 5);
    CHECK_THROWS_WITH_AS(loader.next(), "bug", std::logic_error);
    CHECK(loader.next()->index == 2);
    CHECK(!loader.next());
  }
}

TEST_CASE("no more items are made than may wait") {
  std::atomic<size_t> made = 0;
  const auto make = [&](size_t i) { return ++made, i; };
  {
    Loader<size_t> loader(reversed(100), make, 3, 4);
    for (size_t taken = 0; taken < 20; ++taken) {
      std::this_thread::sleep_for(1ms);
      CHECK(made <= taken + 4);
      loader.next();
    }
  }
  made = 0;
  const Loader<size_t> on_demand(reversed(100), make, 0, 4);
  CHECK(made == 0);
}

TEST_CASE("items are made at the same time") {
  // Each waits until the other has begun.
  std::atomic<int> begun = 0;
  Loader<int> loader(
      {0, 1},
      [&](size_t) {
        ++begun;
        const auto end = std::chrono::steady_clock::now() + 20s;
        while (begun < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        return begun.load();
      },
      2, 2);
  CHECK(loader.next()->item == 2);
}

TEST_CASE("a loader can be left at any time") {
  std::atomic<size_t> made = 0;
  const auto make = [&](size_t i) {
    std::this_thread::sleep_for(2ms);
    return ++made, std::vector<size_t>(1000, i);
  };
  { const Loader<std::vector<size_t>> unused(reversed(100000), make, 2, 100000); }
  { const Loader<std::vector<size_t>> empty({}, make, 2, 3); }
  {
    Loader<std::vector<size_t>> loader(reversed(100000), make, 2, 100000);
    loader.next();
  }
  CHECK(made < 1000);
  CHECK_THROWS_AS(Loader<int>(
                      {}, [](size_t) { return 0; }, -1, 1),
                  Error);
}

TEST_CASE("workers start no threads of their own") {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  Loader<int> loader(
      {0}, [](size_t) { return at::get_num_threads(); }, 1, 1);
  CHECK(loader.next()->item == 1);
  CHECK(at::get_num_threads() == 3);
  at::set_num_threads(before);
}
