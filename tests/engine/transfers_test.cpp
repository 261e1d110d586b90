// What an accelerator and its host wait for each other, on the emulated device: nothing between layers, one
// answer of the device per decision that the host has to know, none that could be put together with another.
#include <map>

#include "builtin.h"
#include "emulated_device.h"
#include "glimpse/engine/scheduler.h"
#include "glimpse/nn/ops.h"
#include "glimpse/prune/cdpruner.h"
#include "glimpse/prune/dart.h"
#include "glimpse/prune/divprune.h"

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

at::Device emulated() {
  test::register_emulated_device();
  return at::Device(test::kEmulated);
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

std::ostream& operator<<(std::ostream& out, const Transfers& t) {
  return out << t.to_host << " to the host, " << t.to_device << " to the device, " << t.blocking << " waited for";
}

}  // namespace

TEST_CASE("the emulated device is a device") {
  const at::Device device = emulated();
  const at::Tensor host = at::arange(6, at::kFloat), x = host.to(device);
  CHECK(!x.is_cpu());
  CHECK(!has_kernel(x));
  CHECK(reinterpret_cast<uintptr_t>(x.data_ptr()) >> 57 != 0);  // no address of this process
  for (const auto& mixed : std::vector<std::function<at::Tensor()>>{
           [&] { return x + host; }, [&] { return host * x; }, [&] { return at::cat({x, host}); },
           [&] { return x.index_select(0, at::tensor({1}, at::kLong)); },
           [&] { return host.index_select(0, at::tensor({1}, at::kLong).to(device)); }})
    CHECK_THROWS_WITH_AS(mixed(), doctest::Contains("expected all tensors on the emulated device"), c10::Error);
  CHECK(at::equal((x + host[5]).cpu(), host + 5));
  at::Tensor view = x.view({2, 3}).t().narrow(0, 1, 1);
  view.add_(10);
  CHECK(at::equal(x.cpu(), at::tensor({0.f, 11.f, 2.f, 3.f, 14.f, 5.f})));
  at::Tensor grown = at::empty({0}, x.options());
  at::cat_out(grown, {x, x});
  CHECK(at::equal(grown.cpu(), at::cat({x.cpu(), x.cpu()})));
  const at::Tensor weight = at::ones({3}, device).requires_grad_();
  (x.view({2, 3}) * weight).square().sum().backward();
  CHECK(at::equal(weight.grad().cpu(), at::tensor({18.f, 634.f, 58.f})));

  CHECK(during([&] { x.cpu(); }) == Transfers{1, 0, 0});
  CHECK(during([&] { x[3].item(); }) == Transfers{1, 0, 0});
  CHECK(during([&] { x.nonzero(); }) == Transfers{1, 0, 0});
  CHECK(during([&] { host.to(device); }) == Transfers{0, 1, 1});
  CHECK(during([&] { to_device(host, device); }) == Transfers{0, 1, 0});
  CHECK(during([&] { (x * 2 + x.sum()).softmax(0).argmax(); }) == Transfers{});
}

TEST_CASE("layers and decoding steps") {
  for (const char* prune : {"none", "glimpse", "divprune", "cdpruner", "dart", "visionzip", "vscan", "pyramiddrop", "random"}) {
    Sequence sequence = sequence_of(0, prune);
    std::ostringstream all;
    for (const auto& t : by_layer(sequence)) all << t << "; ";
    all << " decode: " << during([&] { decode_step(emulated_engine().model(), std::vector<Sequence*>{&sequence}, {5}); });
    MESSAGE(std::string(prune) << ": " << all.str());
  }
}

TEST_CASE("tokens of several sequences come to the host together") {
  Scheduler scheduler(emulated_engine());
  std::vector<std::future<Answer>> futures;
  for (const int row : {0, 9, 16}) {
    Request request = row_request(row);
    request.ignore_eos = true;
    if (row == 9) request.sampling = {.temperature = 2, .top_p = 0.9, .top_k = 20, .repetition_penalty = 1.1, .seed = 1};
    futures.push_back(scheduler.submit(request));
  }
  while (scheduler.state().waiting > 0 || true) {
    const Transfers t = during([&] { scheduler.step(); });
    std::ostringstream s; s << t;
    MESSAGE(s.str());
    if (scheduler.state().waiting + scheduler.state().running == 0) break;
  }
}
