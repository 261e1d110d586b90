// Requests that come, run side by side and end: each answer is that of the request alone.
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
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
  two.media.push_back(row_request(24).media[0]);
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
    int count = 0, waited = 0;
    for (; !ready(first); ++count) {
      if (disturbed && count == 15) second = scheduler.submit(row_request(8));
      scheduler.step();
      waited += second.valid() && !ready(second);
    }
    // The encoder's six blocks and the first four layers of some 220 rows take a step each.
    if (disturbed) {
      CHECK(waited >= 6 + 4);
      CHECK(ready(second));
      same(second.get(), tiny_engine().ask(row_request(8)));
    }
    same(first.get(), tiny_engine().ask(running));
    return count;
  };
  CHECK(steps(true) == steps(false));  // a token in every step all the same
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

TEST_CASE("stops that come at any moment: everything is freed, the others' answers stay") {
  const int rounds = 3, row_count = 10, text_count = 1500;
  std::vector<Answer> alone;
  for (int row = 0; row < row_count; ++row) alone.push_back(tiny_engine().ask(row_request(row)));
  for (int round = 0; round < rounds; ++round) {
    CAPTURE(round);
    Scheduler scheduler(tiny_engine(), {.max_sequences = 6, .chunk_rows = 64});
    std::vector<std::stop_source> stops(row_count + text_count);
    Futures futures;
    for (int i = 0; i < std::ssize(stops); ++i) {
      Request request = row_request(i % row_count);
      if (i >= row_count) {  // they fill the queue
        request.media.clear();
        request.messages = {test::user("What is it?")};
      }
      request.stop = stops[i].get_token();
      futures.push_back(scheduler.submit(request));
    }
    {
      std::jthread stopping([&] {
        std::mt19937 random(round);
        std::vector<int> order(text_count);
        std::iota(order.begin(), order.end(), row_count);
        for (int i = 1; i < row_count; i += 2) order.push_back(i);
        std::shuffle(order.begin(), order.end(), random);
        for (const int i : order) {
          stops[i].request_stop();
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
        }
      });
      scheduler.run();
    }
    CHECK(scheduler.state().kv_reserved == 0);
    CHECK(scheduler.state().kv_used == 0);
    for (int i = 0; i < std::ssize(futures); ++i) {
      const Answer answer = futures[i].get();
      if (i < row_count && answer.finish_reason != "cancelled") same(answer, alone[i]);
      if (i < row_count && i % 2 == 0) CHECK(answer.finish_reason == "stop");
    }
  }
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
}

TEST_CASE("a slow listener hears all of its text, and the others' answers are what they are") {
  std::vector<Request> plain = {row_request(0), row_request(1), row_request(2)};
  plain[1].ignore_eos = true;
  plain[1].max_new_tokens = 8;
  std::vector<Request> requests = plain;
  std::string heard;
  int64_t pieces = 0;
  requests[1].on_text = [&](const std::string& text) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    heard += text;
    ++pieces;
  };
  Scheduler scheduler(tiny_engine());
  Futures futures;
  for (const Request& request : requests) futures.push_back(scheduler.submit(request));
  scheduler.run();
  std::vector<Answer> answers;
  for (auto& future : futures) answers.push_back(future.get());
  for (size_t i = 0; i < plain.size(); ++i) same(answers[i], tiny_engine().ask(plain[i]));
  CHECK(heard == answers[1].text);
  CHECK(pieces > 1);
  CHECK(scheduler.state().kv_reserved == 0);
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
  request.max_new_tokens = std::numeric_limits<int64_t>::max();
  // The context is the bound, in which an image takes less room than its rows.
  CHECK(most_kv_bytes(request) < size_t{6 * 2 * 2 * 64 * 4} * (4096 + 256) * 5 / 4);
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

TEST_CASE("a short prompt waits for one chunk of a long one, and a long one does not join short ones") {
  Request brief;
  brief.messages = {test::user("What is it?")};
  brief.max_new_tokens = 1;
  Request lengthy = brief;
  lengthy.messages = {test::user(std::string(3900, '7'))};
  const int64_t chunk = 64, long_steps = 3900 / chunk;
  for (const bool long_first : {true, false}) {
    CAPTURE(long_first);
    Scheduler scheduler(tiny_engine(), {.chunk_rows = chunk});
    std::future<Answer> first = scheduler.submit(long_first ? lengthy : brief);
    if (long_first) scheduler.step();
    std::future<Answer> second = scheduler.submit(long_first ? brief : lengthy);
    std::future<Answer>&short_one = long_first ? second : first, &long_one = long_first ? first : second;
    for (int i = 0; i < (long_first ? 2 : 1); ++i) scheduler.step();
    CHECK(ready(short_one));
    int steps = 0;
    for (; !ready(long_one); ++steps) {  // others come all the time, but it has every other chunk
      if (steps % 2 == 0) scheduler.submit(brief);
      scheduler.step();
    }
    CHECK(steps > long_steps / 2);
    CHECK(2 * steps < 5 * long_steps);
    scheduler.run();
    same(short_one.get(), tiny_engine().ask(brief));
    same(long_one.get(), tiny_engine().ask(lengthy));
  }
}

TEST_CASE("requests that wait are bounded by their patches") {
  const Request request = row_request(0);
  const size_t patches = Job(tiny_engine(), request).patch_bytes();
  CHECK(patches == 4 * 256 * size_t{3 * 2 * 14 * 14} * 4);
  Scheduler scheduler(tiny_engine(), {.max_sequences = 1, .waiting_bytes = 2 * patches});
  Futures futures;
  for (int i = 0; i < 2; ++i) futures.push_back(scheduler.submit(request));
  CHECK_THROWS_WITH_AS(
      scheduler.submit(request),
      "2 requests wait with 9.2 MiB of patches; another 4.6 MiB are more than the 9.2 MiB of "
      "waiting_bytes; submit the request again later",
      Error);
  Request text;
  text.messages = {test::user("What is it?")};
  futures.push_back(scheduler.submit(text));
  scheduler.step();  // one does not wait any more
  futures.push_back(scheduler.submit(request));
  scheduler.run();
  for (std::future<Answer>& future : futures) CHECK(future.get().finish_reason != "cancelled");
  Scheduler tight(tiny_engine(), {.waiting_bytes = 1});
  std::future<Answer> alone = tight.submit(request);  // where nobody waits there is always room
  tight.run();
  same(alone.get(), tiny_engine().ask(request));
}

TEST_CASE("what comes when the server has stopped is not begun") {
  for (int round = 0; round < 10; ++round) {
    Scheduler scheduler(tiny_engine());
    std::vector<std::future<Answer>> futures;
    std::mutex mutex;
    std::jthread client([&](std::stop_token stop) {
      while (!stop.stop_requested()) {
        Request text;
        text.messages = {test::user("What is it?")};
        const std::lock_guard lock(mutex);
        futures.push_back(scheduler.submit(text));
      }
    });
    std::jthread server([&](std::stop_token stop) { scheduler.serve(std::move(stop)); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    server.request_stop();
    server.join();
    CHECK(scheduler.state().running == 0);
    CHECK(scheduler.state().kv_reserved == 0);
  }
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
