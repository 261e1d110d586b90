#include "bench/first_token.h"

#include <cmath>

#include "glimpse/base/timer.h"
#include "glimpse/engine/prefill.h"

namespace glimpse::bench {

namespace {

// A way to the first token, and what it took.
struct Way {
  const char* name;
  PrunerChain pruners;
  bool budgeted = true;  // its last method keeps the share that was asked for
  Samples whole = {}, vision = {}, prefill = {}, prune = {};
  std::vector<int64_t> left = {};
};

void go(const Vlm& model, const Prompt& prompt, double keep, Way& way) {
  Sequence sequence;
  sequence.prompt = prompt;
  sequence.pruners = way.pruners;
  if (way.budgeted) sequence.budget.keep = keep;
  Sequence* const sequences[] = {&sequence};
  const Timer timer;
  prefill(model, sequences).argmax().item<int64_t>();
  way.whole.add(timer.ms());
  way.vision.add(sequence.times.vision);
  way.prefill.add(sequence.times.prefill);
  way.prune.add(sequence.times.prune);
  way.left = sequence.left;
  say(concat("first token, ", way.name, ": ", way.whole.values.back(), " ms"));
}

std::string seconds(const Samples& samples) {
  return concat(std::round(100 * samples.best()) / 1e5, " s");
}

}  // namespace

void time_first_token(const Prompt& prompt, double keep, int64_t rounds, const Engine& engine, Rows& rows) {
  const PrunerContext context = engine.pruner_context();
  std::vector<Way> ways = {{"none", {}, false}, {"glimpse", make_pruners("glimpse", context)}};
  if (context.modules.find_scout("")) {
    ways.push_back({"scout+glimpse", make_pruners("scout(threshold=1,floor=0.25)+glimpse", context)});
    ways.push_back({"scout", make_pruners("scout(threshold=1,floor=0.05)", context), false});
  }
  if (const auto scout = context.modules.find_encoder_scout("")) {
    const std::string cut = concat("scout(encoder=", scout->config().encoder, ",threshold=1,floor=0.3)");
    ways.push_back({"encoder+glimpse", make_pruners(cut + "+glimpse", context)});
  }
  for (int64_t round = 0; round < rounds; ++round)
    for (Way& way : ways) go(engine.model(), prompt, keep, way);

  const Way& none = ways[0];
  for (const Way& way : ways) {
    std::string left;
    for (const int64_t count : way.left) left += concat(left.empty() ? ", tokens left: " : ", ", count);
    rows.add({.name = concat("first_token_", way.name, "_ms"),
              .value = way.whole.best(),
              .unit = "ms",
              .median = way.whole.median(),
              .note = concat("encoder ", seconds(way.vision), ", language model ", seconds(way.prefill),
                             " (choosing ", seconds(way.prune), " of it)", left)});
  }
  const auto ratio = [&](const Way& way, const std::string& name, Samples Way::*part,
                         std::optional<Goal> goal) {
    rows.add({.name = name,
              .value = (way.*part).best() / (none.*part).best(),
              .unit = "x",
              .median = (way.*part).median() / (none.*part).median(),
              .note = "of the time without pruning",
              .goal = std::move(goal)});
  };
  for (const Way& way : std::span(ways).subspan(1)) {
    const std::string name = way.name;
    const bool scout = name == "scout+glimpse", within = name == "encoder+glimpse";
    ratio(way, concat("first_token_", name), &Way::whole,
          scout    ? std::optional(at_most(0.62))
          : within ? std::optional(at_most(0.40))
                   : std::nullopt);
    ratio(way, concat("prefill_", name), &Way::prefill, scout ? std::optional(at_most(0.25)) : std::nullopt);
    if (within) ratio(way, "encoder_cut", &Way::vision, at_most(0.55));
    if (name == "scout")
      rows.add({.name = "scout_cost",
                .value = way.prune.best() / none.prefill.best(),
                .unit = "x",
                .median = way.prune.median() / none.prefill.median(),
                .note = concat("of the prefill without pruning; ", std::round(way.prune.best()), " ms"),
                .goal = at_most(0.02)});
  }
}

}  // namespace glimpse::bench
