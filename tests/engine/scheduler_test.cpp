// Requests that come, run side by side and end: each answer is that of the request alone.
#include <thread>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/scheduler.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;
using Futures = std::vector<std::future<Answer>>;

namespace {

// Requests of many lengths, methods and numbers of images.
std::vector<Request> mixed() {
  std::vector<Request> requests;
  const char* methods[] = {"glimpse", "none", "divprune", "pyramiddrop", "vscan", "random", "cdpruner"};
  for (int i = 0; i < 7; ++i) requests.push_back(row_request(5 * i, methods[i]));
  requests[1].ignore_eos = true;
  requests[1].max_new_tokens = 50;
  requests[3].max_new_tokens = 1;
  Request two = row_request(0);
  two.images.push_back(row_request(24).images[0]);
  two.messages = {test::user("What letter is on the orange square?", 2)};
  requests.push_back(two);
  Request text;
  text.messages = {test::user("What is it?")};
  text.max_new_tokens = 20;
  requests.push_back(text);
  return requests;
}

void same(const Answer& got, const Answer& expected) {
  CHECK(got.ids == expected.ids);
  CHECK(got.text == expected.text);
  CHECK(got.keep == expected.keep);
  CHECK(got.finish_reason == expected.finish_reason);
  CHECK(got.kv_bytes == expected.kv_bytes);
}

bool ready(const std::future<Answer>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

size_t most_kv_bytes(const Request& request) {
  return Scheduler(tiny_engine()).most_kv_bytes(Job(tiny_engine(), request));
}

Request endless(int row, std::stop_token stop) {
  Request request = row_request(row);
  request.ignore_eos = true;
  request.max_new_tokens = 3000;
  request.stop = std::move(stop);
  return request;
}

// Fails when it is asked.
class Wrong : public Pruner {
 public:
  std::string name() const override { return "wrong"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, 2, true}}; }
  Selection select(const View&, const Cut&, const Budget&) const override { fail("nothing fits"); }
};

}  // namespace

TEST_CASE("mixed requests, in chunks of any size and any number at once, equal one by one") {
  const std::vector<Request> requests = mixed();
  std::vector<Answer> alone;
  for (const Request& request : requests) alone.push_back(tiny_engine().ask(request));
  for (const auto& [sequences, chunk] : {std::pair{1, 512}, {3, 64}, {4, 100000}, {20, 1}}) {
    CAPTURE(sequences);
    Scheduler scheduler(tiny_engine(), {.max_sequences = sequences, .chunk_rows = chunk});
    Futures futures;
    // Half of them come while the others are under way.
    for (size_t i = 0; i < requests.size(); ++i) {
      futures.push_back(scheduler.submit(requests[i]));
      for (int step = 0; i >= requests.size() / 2 && step < 3; ++step) scheduler.step();
      CHECK(scheduler.state().running <= static_cast<size_t>(sequences));
    }
    scheduler.run();
    for (size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(i);
      same(futures[i].get(), alone[i]);
    }
    CHECK(scheduler.state().waiting + scheduler.state().running == 0);
  }
}

TEST_CASE("a long prompt does not keep the others from their tokens") {
  Request running = row_request(1, "none");
  running.ignore_eos = true;
  running.max_new_tokens = 40;
  const auto steps = [&](bool disturbed) {
    Scheduler scheduler(tiny_engine(), {.chunk_rows = 50});
    std::future<Answer> first = scheduler.submit(running), second;
    int count = 0, came = 0;
    for (; !ready(first); ++count) {
      if (disturbed && count == 15) second = scheduler.submit(row_request(8));
      scheduler.step();
      if (second.valid() && !ready(second)) came = count;
    }
    // After its image, its first four layers of some 220 rows take a step each.
    if (disturbed) {
      CHECK(came >= 15 + 4);
      CHECK(ready(second));
      same(second.get(), tiny_engine().ask(row_request(8)));
    }
    same(first.get(), tiny_engine().ask(running));
    return count;
  };
  CHECK(steps(true) == steps(false));  // a token in every step all the same
}

TEST_CASE("prefill in chunks equals prefill at once") {
  const Request request = row_request(4);
  const auto logits = [&](bool leave) {
    Sequence sequence, other;
    for (Sequence* each : {&sequence, &other}) {
      each->prompt = tiny_engine().model().prompt(request.messages, request.images, {});
      each->pruners = make_pruners("glimpse", tiny_engine().pruner_context());
    }
    PrefillBatch batch(tiny_engine().model());
    if (leave) batch.add(other);
    batch.add(sequence);
    CHECK(batch.rows() == (leave ? 2 : 1) * (std::ssize(sequence.prompt.ids) + 1));
    while (!batch.done()) {
      CHECK(batch.step().empty());
      if (leave) batch.remove(other);  // after the first layer
      leave = false;
    }
    return batch.finish();
  };
  Sequence whole;
  whole.prompt = tiny_engine().model().prompt(request.messages, request.images, {});
  whole.pruners = make_pruners("glimpse", tiny_engine().pruner_context());
  const at::Tensor expected = prefill(tiny_engine().model(), std::vector<Sequence*>{&whole});
  CHECK(at::equal(logits(false), expected));
  CHECK((logits(true) - expected).abs().max().item<double>() < 1e-4);  // products of other sizes
}

TEST_CASE("cancelled while waiting, in the prefill and while decoding: the others go on") {
  std::stop_source waiting, prefilling, decoding;
  Request request = row_request(5);
  request.ignore_eos = true;
  request.max_new_tokens = 60;
  const Answer alone = tiny_engine().ask(request);
  Scheduler scheduler(tiny_engine(), {.max_sequences = 3, .chunk_rows = 50});
  std::future<Answer> stays = scheduler.submit(request),
                      decoded = scheduler.submit(endless(6, decoding.get_token()));
  for (int i = 0; i < 20; ++i) scheduler.step();  // both prefills, and some tokens
  REQUIRE(scheduler.state().running == 2);
  std::future<Answer> prefilled = scheduler.submit(endless(7, prefilling.get_token()));
  std::future<Answer> waited = scheduler.submit(endless(8, waiting.get_token()));
  scheduler.step();
  scheduler.step();
  const size_t reserved = scheduler.state().kv_reserved;
  prefilling.request_stop();
  waiting.request_stop();
  scheduler.step();
  REQUIRE(ready(prefilled));
  REQUIRE(ready(waited));
  CHECK(scheduler.state().kv_reserved < reserved);
  const Answer early = prefilled.get();
  CHECK(early.finish_reason == "cancelled");
  CHECK(early.ids.empty());
  CHECK(early.kv_bytes == 0);
  CHECK(waited.get().finish_reason == "cancelled");
  CHECK(!ready(decoded));
  while (!ready(stays)) scheduler.step();
  same(stays.get(), alone);
  decoding.request_stop();
  scheduler.run();
  const Answer late = decoded.get();
  CHECK(late.finish_reason == "cancelled");
  CHECK(!late.ids.empty());
  CHECK(late.ids.size() < 3000);
  CHECK(scheduler.state().kv_reserved == 0);
  CHECK(scheduler.state().kv_used == 0);
}

TEST_CASE("a cancelled request leaves the rest of its batch alone") {
  std::stop_source source;
  source.request_stop();
  std::vector<Request> requests = {row_request(0), row_request(1), row_request(2)};
  requests[1].stop = source.get_token();
  const std::vector<Answer> answers = tiny_engine().ask(std::span<const Request>(requests));
  CHECK(answers[1].finish_reason == "cancelled");
  for (const size_t i : {0, 2}) same(answers[i], tiny_engine().ask(requests[i]));
}

TEST_CASE("what fails alone fails alone") {
  std::vector<Request> requests = {row_request(0), row_request(1, "reference"), row_request(2),
                                   row_request(3)};
  requests[2].on_text = [](const std::string&) { fail("no one listens"); };
  Scheduler scheduler(tiny_engine());
  Futures futures;
  for (const Request& request : requests) futures.push_back(scheduler.submit(request));
  scheduler.run();
  CHECK_THROWS_WITH_AS(futures[1].get(), doctest::Contains("needs a list of boxes"), Error);
  CHECK_THROWS_WITH_AS(futures[2].get(), "no one listens", Error);
  for (const size_t i : {0, 3}) same(futures[i].get(), tiny_engine().ask(requests[i]));
  CHECK(scheduler.state().kv_reserved == 0);
  CHECK_THROWS_AS(scheduler.submit(row_request(0, "unheard-of")), Error);

  Sequence wrong, right;
  for (Sequence* each : {&wrong, &right})
    each->prompt = tiny_engine().model().prompt(requests[0].messages, requests[0].images, {});
  wrong.pruners = {std::make_shared<Wrong>()};
  PrefillBatch batch(tiny_engine().model());
  batch.add(wrong);
  batch.add(right);
  size_t failures = 0;
  while (!batch.done())
    for (const auto& failure : batch.step()) {
      ++failures;
      CHECK(failure.sequence == &wrong);
      CHECK_THROWS_WITH_AS(std::rethrow_exception(failure.error), "nothing fits", Error);
    }
  CHECK(failures == 1);
  CHECK(batch.finish().size(0) == 1);
}

TEST_CASE("many requests through a small pool: all finish, within the bound, nothing stays") {
  size_t largest = 0;
  const std::vector<Request> requests = mixed();
  for (const Request& request : requests) largest = std::max(largest, most_kv_bytes(request));
  for (const size_t bound : {largest, 2 * largest}) {
    Scheduler scheduler(tiny_engine(), {.max_sequences = 16, .kv_bytes = bound, .chunk_rows = 128});
    Futures futures;
    for (int round = 0; round < 3; ++round)
      for (const Request& request : requests) futures.push_back(scheduler.submit(request));
    size_t used = 0, together = 0;
    do {
      const Scheduler::State state = scheduler.state();
      CHECK(state.kv_reserved <= bound);
      CHECK(state.kv_used <= state.kv_reserved);
      used = std::max(used, state.kv_used);
      together = std::max(together, state.running);
    } while (scheduler.step());
    CHECK(used > 0);
    CHECK(together > 1);  // what the cuts free lets others in
    CHECK(scheduler.state().kv_reserved == 0);
    CHECK(scheduler.state().kv_used == 0);
    for (size_t i = 0; i < futures.size(); ++i)
      same(futures[i].get(), tiny_engine().ask(requests[i % requests.size()]));
  }
}

TEST_CASE("a request that can never fit is refused with its numbers") {
  Request request = row_request(0);
  request.max_new_tokens = 100;
  // 6 layers of 2 heads of 64, keys and values, float32: 285 + 1 + 100 rows and 96 more, a quarter of them
  const size_t needed = 6 * 2 * 2 * 64 * 4 * (386 + 96);
  CHECK(most_kv_bytes(request) == needed);
  Scheduler tight(tiny_engine(), {.kv_bytes = needed - 1}), enough(tiny_engine(), {.kv_bytes = needed});
  CHECK_THROWS_WITH_AS(tight.submit(request),
                       "this request may need 2.8 MiB of KV cache (a prompt of 285 tokens and up to 100 new "
                       "ones), but all requests together have 2.8 MiB",
                       Error);
  CHECK(tight.state().waiting == 0);
  std::future<Answer> answer = enough.submit(request);
  enough.run();
  CHECK(answer.get().finish_reason == "stop");
  CHECK_THROWS_AS(Scheduler(tiny_engine(), {.max_sequences = 0}), Error);
  CHECK_THROWS_AS(Scheduler(tiny_engine(), {.chunk_rows = 0}), Error);
}

TEST_CASE("served from one thread, asked from several") {
  std::vector<Answer> expected, got(8);
  for (int row = 0; row < 8; ++row) expected.push_back(tiny_engine().ask(row_request(row)));
  Scheduler scheduler(tiny_engine(), {.max_sequences = 3});
  std::future<Answer> left;
  {
    std::jthread server([&](std::stop_token stop) { scheduler.serve(std::move(stop)); });
    {
      std::vector<std::jthread> clients;
      for (int c = 0; c < 4; ++c)
        clients.emplace_back([&, c] {
          for (int row = 2 * c; row < 2 * c + 2; ++row) got[row] = scheduler.submit(row_request(row)).get();
        });
    }
    left = scheduler.submit(endless(9, {}));
    while (scheduler.state().running == 0) std::this_thread::yield();
  }  // the server stops: what is left is cancelled
  for (int row = 0; row < 8; ++row) same(got[row], expected[row]);
  CHECK(left.get().finish_reason == "cancelled");
  CHECK(scheduler.state().kv_reserved == 0);
}
