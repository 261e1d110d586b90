// What an accelerator and its host wait for each other: copies between them, counted on the emulated device.
#include "builtin.h"
#include "glimpse/engine/scheduler.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::Transfers;
using test::transfers;

namespace {

const Engine& emulated_engine() {
  test::register_emulated_device();
  static const std::unique_ptr<Engine> engine = Engine::load({.model = test::tiny_dir() / "model",
                                                              .new_modules = test::tiny_dir() / "new_modules",
                                                              .dtype = "fp32",
                                                              .device = test::kEmulated});
  return *engine;
}

std::string text(const Transfers& t) {
  return std::to_string(t.to_host) + "/" + std::to_string(t.to_device);
}

}  // namespace

TEST_CASE("transfers") {
  const Engine& engine = emulated_engine();
  for (const char* prune :
       {"glimpse", "none", "divprune", "cdpruner", "dart", "visionzip", "vscan", "pyramiddrop", "random"}) {
    Sequence sequences[2];
    for (int i = 0; i < 2; ++i) {
      const Request request = row_request(9 * i);
      sequences[i].prompt = engine.model().prompt(request.messages, request.images, {});
      sequences[i].pruners = make_pruners(prune, engine.pruner_context());
    }
    Transfers last = transfers();
    std::string all;
    at::Tensor logits = prefill(engine.model(), std::vector<Sequence*>{&sequences[0], &sequences[1]},
                                [&](int64_t, const at::Tensor&) {
                                  all += text(transfers() - last) + " ";
                                  last = transfers();
                                });
    all += "finish " + text(transfers() - last);
    last = transfers();
    logits = decode_step(engine.model(), std::vector<Sequence*>{&sequences[0], &sequences[1]}, {5, 6});
    all += " decode " + text(transfers() - last);
    MESSAGE(prune << ": " << all);
  }
  Scheduler scheduler(engine);
  std::vector<std::future<Answer>> futures;
  for (int row : {0, 1, 2}) {
    Request request = row_request(row);
    request.ignore_eos = true;
    futures.push_back(scheduler.submit(request));
  }
  for (int step = 0; step < 40; ++step) {
    const Transfers last = transfers();
    scheduler.step();
    MESSAGE("step " << text(transfers() - last));
  }
}
