// Choices among so many tokens that a matrix of all pairs would take 1 GiB.
#include "memory.h"

#include "glimpse/prune/divprune.h"
#include "glimpse/prune/registry.h"
#include "prune/views.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

TEST_CASE("no method needs a matrix of all pairs" * doctest::skip(!test::kMeasuresMemory)) {
  constexpr int64_t side = 128, n = side * side, width = 32;
  at::manual_seed(1);
  test::Views views({{side, side}});
  View& view = views.view;
  view.hidden = at::randn({n, width});
  view.text_hidden = at::randn({40, width});
  view.question = at::arange(20, at::kLong);
  view.ahead = at::rand({n});
  view.vision_attention = {{at::rand({n}), at::randn({n, width})}, {at::rand({n}), at::randn({n, width})}};
  views.set_boxes({{{0.1, 0.1, 0.4, 0.4}}});
  // That is what would be seen:
  CHECK(test::grown_mib([&] { divprune_order(view.hidden, 2, n); }) > 1000);
  for (const std::string method :
       {"divprune(keep=0.01)", "cdpruner(keep=0.01)", "dart", "visionzip",
        "visionzip(dominant=100,contextual=10)", "vscan(layers=none,layer_keep=none)",
        "pyramiddrop(layers=4,keep=0.1)", "random", "reference"}) {
    CAPTURE(method);
    const PrunerChain chain = make_pruners(method, {28, nullptr, 7});
    Selection selection;
    CHECK(test::grown_mib([&] { selection = chain.at(0)->select(view, chain.at(0)->cuts()[0], {}); }) < 128);
    CHECK(!selection.keep.empty());
    CHECK(std::ssize(selection.keep) < n / 2);
  }
}
