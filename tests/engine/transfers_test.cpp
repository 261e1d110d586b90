// What an accelerator and its host wait for each other, on the emulated device: nothing between layers, one
// answer of the device for a decision that the host has to know.
#include <functional>

#include "builtin.h"
#include "emulated_device.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/ops.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::Transfers;
using test::transfers;

namespace {

const Engine& emulated_engine() {
  test::register_emulated_device();
  static const std::unique_ptr<Engine> engine =
      Engine::load({.model = test::tiny_dir() / "model",
                    .new_modules = {(test::tiny_dir() / "new_modules").string()},
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
  sequence.prompt = engine.model().prompt(request.messages, request.media, {});
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

TEST_CASE("what each method asks the device for") {
  const std::pair<const char*, int64_t> answers[] = {
      {"none", 0},
      {"random", 0},
      {"random(layer=-1)", 0},
      {"divprune", 1},
      {"cdpruner", 1},
      {"dart", 2},                                // lengths, then cosines with the pivots
      {"visionzip", 2},                           // scores, then where the others merge
      {"vscan(layers=none,layer_keep=none)", 3},  // two scores, then where the others merge
      {"pyramiddrop(layers=2+4,keep=0.5+0.2)", 2},
      {"divprune(keep=0.5)+glimpse", 2}};
  for (const auto& [prune, expected] : answers) {
    CAPTURE(prune);
    Sequence sequence = sequence_of(0, prune);
    int64_t asked = 0;
    const std::vector<Transfers> parts = by_layer(sequence);
    for (const Transfers& part : parts) asked += part.to_host;
    for (size_t layer = 1; layer < parts.size(); ++layer) CHECK(parts[layer].blocking == 0);
    CHECK(asked == expected);
  }
}

TEST_CASE("the next tokens of all sequences come to the host in one copy") {
  Scheduler scheduler(emulated_engine());
  std::vector<std::future<Answer>> answers;
  for (const int row : {0, 9, 16}) {
    Request request = row_request(row);
    request.ignore_eos = true;
    if (row == 9)
      request.sampling = {.temperature = 2, .top_p = 0.9, .top_k = 20, .repetition_penalty = 1.1, .seed = 1};
    answers.push_back(scheduler.submit(request));
  }
  for (int i = 0; i < 10; ++i) scheduler.step();  // the prefills, and some tokens
  CHECK(scheduler.state().running == 3);
  for (int i = 0; i < 5; ++i)  // down go tokens and positions, and what the penalty is for
    CHECK(during([&] { scheduler.step(); }) == Transfers{.to_host = 1, .to_device = 2, .blocking = 0});
  scheduler.run();
}

TEST_CASE("the emulated device refuses what CUDA refuses") {
  test::register_emulated_device();
  const at::Device device(test::kEmulated);
  const at::Tensor host = at::arange(6, at::kFloat), x = host.to(device), index = at::tensor({1}, at::kLong);
  CHECK(!has_kernel(x));
  CHECK((reinterpret_cast<uintptr_t>(x.data_ptr()) >> 57) != 0);  // no address of a process
  for (const std::function<at::Tensor()>& mixed : std::vector<std::function<at::Tensor()>>{
           [&] { return x + host; },
           [&] {
             return at::cat({x, host});
           },
           [&] { return x.index_select(0, index); }, [&] { return host.index_select(0, index.to(device)); }})
    CHECK_THROWS_WITH_AS(mixed(), doctest::Contains("xpected all tensors"), c10::Error);
  CHECK(at::equal((x + host[5]).cpu(), host + 5));
  CHECK(during([&] { x.cpu(); }) == Transfers{1, 0, 0});
  CHECK(during([&] { x.sum().item(); }) == Transfers{1, 0, 0});
  CHECK(during([&] { x.nonzero(); }) == Transfers{1, 0, 0});
  CHECK(during([&] { host.to(device); }) == Transfers{0, 1, 1});
  CHECK(during([&] { to_device(host, device); }) == Transfers{0, 1, 0});
  CHECK(during([&] { x.softmax(0).argmax(); }) == Transfers{});
}

TEST_CASE("views, results that grow and gradients on the emulated device") {
  test::register_emulated_device();
  const at::Tensor x = at::arange(6, at::kFloat).to(at::Device(test::kEmulated));
  x.view({2, 3}).t().narrow(0, 1, 1).add_(10);
  CHECK(at::equal(x.cpu(), at::tensor({0.f, 11.f, 2.f, 3.f, 14.f, 5.f})));
  at::Tensor grown = at::empty({0}, x.options());
  at::cat_out(grown, {x, x});
  CHECK(at::equal(grown.cpu(), at::cat({x.cpu(), x.cpu()})));
  const at::Tensor weight = at::ones({3}, x.options()).requires_grad_();
  (x.view({2, 3}) * weight).square().sum().backward();
  CHECK(at::equal(weight.grad().cpu(), at::tensor({18.f, 634.f, 58.f})));
}
