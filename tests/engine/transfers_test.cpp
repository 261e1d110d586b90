// What an accelerator and its host wait for each other, on the emulated device: nothing between layers, one
// answer of the device for a decision that the host has to know.
#include "builtin.h"
#include "emulated_device.h"

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

// What happens during f().
template <class Function>
Transfers during(Function f) {
  const Transfers before = transfers();
  f();
  return transfers() - before;
}

Sequence sequence_of(int row, const std::string& prune) {
  const Engine& engine = emulated_engine();
  const Request request = row_request(row);
  Sequence sequence;
  sequence.prompt = engine.model().prompt(request.messages, request.images, {});
  sequence.pruners = make_pruners(prune, engine.pruner_context());
  return sequence;
}

// What happens up to the end of each layer, from that of the one before on: the first with the encoder, each
// with the cuts before it and those after the one before; last what comes after the layers.
std::vector<Transfers> by_layer(Sequence& sequence) {
  std::vector<Transfers> out;
  Transfers last = transfers();
  const auto note = [&] {
    out.push_back(transfers() - last);
    last = transfers();
  };
  prefill(emulated_engine().model(), std::vector<Sequence*>{&sequence},
          [&](int64_t, const at::Tensor&) { note(); });
  note();
  return out;
}

}  // namespace

TEST_CASE("no layer waits for the device, a cut asks it once") {
  for (const std::string prune : {"none", "glimpse"}) {
    CAPTURE(prune);
    Sequence first = sequence_of(0, prune), sequence = sequence_of(0, prune);
    by_layer(first);  // sets up what is kept on the device
    const std::vector<Transfers> parts = by_layer(sequence);
    REQUIRE(std::ssize(parts) == emulated_engine().model().decoder().config().layers + 1);
    int64_t answers = 0;
    for (size_t layer = 1; layer + 1 < parts.size(); ++layer) {
      CHECK(parts[layer].blocking == 0);
      answers += parts[layer].to_host;
    }
    CHECK(answers == (prune == "none" ? 0 : 1));
    CHECK(!sequence.kept.empty());
    const Transfers step =
        during([&] { decode_step(emulated_engine().model(), std::vector<Sequence*>{&sequence}, {5}); });
    CHECK(step.to_host == 0);
    CHECK(step.blocking == 0);
  }
}

TEST_CASE("the emulated device refuses what CUDA refuses") {
  test::register_emulated_device();
  const at::Tensor host = at::arange(6, at::kFloat), x = host.to(at::Device(test::kEmulated));
  CHECK_THROWS_AS(x + host, c10::Error);
  CHECK(at::equal((x + 1).cpu(), host + 1));
  CHECK(during([&] { x.cpu(); }).to_host == 1);
  CHECK(during([&] { x.sum().item(); }).to_host == 1);
  CHECK(during([&] { x.softmax(0); }) == Transfers{});
}
