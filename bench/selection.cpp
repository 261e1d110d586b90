#include "bench/selection.h"

#include "glimpse/base/timer.h"
#include "glimpse/nn/attention.h"
#include "glimpse/prune/cdpruner.h"
#include "glimpse/prune/dart.h"
#include "glimpse/prune/divprune.h"
#include "glimpse/prune/visionzip.h"
#include "glimpse/prune/vscan.h"

namespace glimpse::bench {

void time_selection(int64_t hidden, const VisionShape& shape, const Grid& grid, int rounds, Rows& rows) {
  constexpr int64_t visual = 4096, count = 4096 * 111 / 1000;
  at::manual_seed(0);
  const at::Tensor x = at::randn({visual, hidden}), text = at::randn({64, hidden}),
                   scores = at::rand({visual});
  const at::Tensor keys = at::randn({visual, shape.hidden / shape.heads});
  const auto time = [&](const char* name, const auto& run, std::optional<Goal> goal = {}) {
    Samples samples;
    for (int round = 0; round < rounds; ++round) {
      const Timer timer;
      run();
      samples.add(timer.ms());
    }
    rows.add({.name = name, .value = samples.best(), .unit = "ms", .median = samples.median(), .goal = goal});
  };
  time(
      "select_divprune_ms", [&] { divprune_order(x, count); }, at_most(500));
  time(
      "select_cdpruner_ms",
      [&] { cdpruner_order(x, cdpruner_relevance(x, text.mean(0, true), false), count); }, at_most(500));
  time("select_dart_ms", [&] { dart_tokens(x, text, count, {}); });
  time("select_visionzip_ms", [&] {
    const int64_t contextual = count / 2;
    visionzip_merge(x, visionzip_choice(scores, keys, count - contextual, contextual));
  });
  time("select_vscan_ms", [&] { vscan_merge(x, vscan_global(scores, {}, count)); });
  const int64_t patches = int64_t{grid.h} * grid.w, head = shape.hidden / shape.heads;
  const at::Tensor q = at::randn({patches, shape.heads, head}), k = at::randn({patches, shape.heads, head});
  time("encoder_column_sums_ms", [&] { received_attention(q, k, {patches}); });
}

}  // namespace glimpse::bench
