// What a server needs of the scheduler: faults that stay with one request, several answers to one prompt,
// events, kinds of errors.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
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

// While it lives, the `nth` allocation of tensor memory from now on fails, once; counts them all.
class FailingMemory : public c10::Allocator {
 public:
  explicit FailingMemory(int64_t nth) : before_(c10::GetCPUAllocator()), nth_(nth) {
    c10::SetCPUAllocator(this, 100);
  }
  ~FailingMemory() override { c10::SetCPUAllocator(before_, 100); }
  c10::DataPtr allocate(size_t size) override {
    if (++count_ == nth_) throw std::bad_alloc();
    return before_->allocate(size);
  }
  c10::DeleterFnPtr raw_deleter() const override { return before_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }
  int64_t count() const { return count_; }

 private:
  c10::Allocator* const before_;
  const int64_t nth_;
  std::atomic<int64_t> count_ = 0;
};

std::vector<Request> three() {
  std::vector<Request> requests = {row_request(0), row_request(5, "none"), row_request(10, "divprune")};
  for (Request& request : requests) {
    request.max_new_tokens = 4;
    request.ignore_eos = true;
  }
  return requests;
}

bool is_empty(const Scheduler& scheduler) {
  const Scheduler::State state = scheduler.state();
  return state.waiting + state.running + state.kv_reserved + state.kv_used == 0;
}

}  // namespace

TEST_CASE("memory that runs out at any step ends at most one request; the others get their answers") {
  if (!test::test_device().is_cpu()) return;
  const std::vector<Request> requests = three();
  std::vector<Answer> alone;
  for (const Request& request : requests) alone.push_back(tiny_engine().ask(request));
  int64_t total = 0, failed = 0;
  const auto run = [&](int64_t nth) {
    Scheduler scheduler(tiny_engine(), {.chunk_rows = 2000});  // all three in one batch
    Futures futures;
    for (const Request& request : requests) futures.push_back(scheduler.submit(request));
    {
      const FailingMemory memory(nth);
      scheduler.run();
      total = memory.count();
    }
    int errors = 0;
    for (size_t i = 0; i < futures.size(); ++i) {
      REQUIRE(futures[i].wait_for(std::chrono::seconds(0)) == std::future_status::ready);
      std::string text;
      try {
        text = futures[i].get().text;
      } catch (const std::exception&) {
        ++errors;
        continue;
      }
      CHECK(text == alone[i].text);
    }
    failed += errors;
    CHECK(errors <= 1);
    CHECK(is_empty(scheduler));
    // and it answers the next
    std::future<Answer> next = scheduler.submit(requests[0]);
    scheduler.run();
    CHECK(next.get().text == alone[0].text);
    CHECK(is_empty(scheduler));
  };
  run(0);  // none fails
  CHECK(failed == 0);
  REQUIRE(total > 500);
  const int64_t all = total;
  for (int64_t nth = 1; nth <= all; nth += all / 40) {
    CAPTURE(nth);
    run(nth);
  }
  CHECK(failed > 5);
}

TEST_CASE("a callback that throws at any call ends its own request only") {
  const std::vector<Request> requests = three();
  const Answer expected = tiny_engine().ask(requests[1]);
  for (int64_t nth = 1; nth <= 4; ++nth) {
    Scheduler scheduler(tiny_engine());
    Request throwing = requests[0];
    int64_t calls = 0;
    throwing.on_text = [&](const std::string&) {
      if (++calls == nth) throw std::runtime_error("not listening");
    };
    std::future<Answer> first = scheduler.submit(throwing), second = scheduler.submit(requests[1]);
    scheduler.run();
    CHECK(second.get().text == expected.text);
    if (calls >= nth) CHECK_THROWS_WITH_AS(first.get(), "not listening", std::runtime_error);
    CHECK(is_empty(scheduler));
  }
}

TEST_CASE("several answers to one request: as many as asked for, each as with its own seed") {
  Request request = row_request(0);
  request.sampling = {.temperature = 5, .seed = 40};
  request.max_new_tokens = 12;
  request.ignore_eos = true;
  std::vector<Answer> alone;
  for (int64_t choice = 0; choice < 4; ++choice) {
    Request one = request;
    one.sampling.seed = 40 + choice;
    alone.push_back(tiny_engine().ask(one));
  }
  CHECK(alone[0].ids != alone[1].ids);
  Scheduler scheduler(tiny_engine(), {.max_sequences = 5});
  Futures other, choices = scheduler.submit(request, 4);
  other.push_back(scheduler.submit(row_request(5)));
  other.push_back(scheduler.submit(row_request(10)));
  size_t most = 0;
  while (scheduler.step()) most = std::max(most, scheduler.state().running);
  CHECK(most == 5);
  for (size_t choice = 0; choice < 4; ++choice) {
    const Answer answer = choices[choice].get();
    CHECK(answer.ids == alone[choice].ids);
    CHECK(answer.keep == alone[choice].keep);
    CHECK(answer.prompt_tokens == alone[choice].prompt_tokens);
  }
  for (auto& future : other) CHECK(!future.get().text.empty());
  CHECK(is_empty(scheduler));
  CHECK_THROWS_AS(scheduler.submit(request, 6), Error);
  CHECK_THROWS_AS(scheduler.submit(request, 0), Error);

  std::stop_source stop;
  request.stop = stop.get_token();
  Futures cancelled = scheduler.submit(request, 3);
  scheduler.step();
  stop.request_stop();
  scheduler.run();
  for (auto& future : cancelled) CHECK(future.get().finish_reason == "cancelled");
  CHECK(is_empty(scheduler));
}

TEST_CASE("a fork's caches share memory until one of them grows, and neither sees the other's rows") {
  Sequence first;
  const Request request = row_request(0);
  first.prompt = tiny_engine().model().prompt(request.messages, request.media, {});
  Sequence* const one[] = {&first};
  prefill(tiny_engine().model(), one);
  Sequence fork = first;
  const auto memory = [](const Sequence& s) { return s.cache.layers[0].memory().keys; };
  CHECK(memory(fork) == memory(first));
  Sequence* const other[] = {&fork};
  const at::Tensor here = decode_step(tiny_engine().model(), one, {5}),
                   there = decode_step(tiny_engine().model(), other, {9});
  CHECK(memory(fork) != memory(first));
  Sequence again;
  again.prompt = first.prompt;
  Sequence* const fresh[] = {&again};
  prefill(tiny_engine().model(), fresh);
  const at::Tensor expected = decode_step(tiny_engine().model(), fresh, {9});
  CHECK((there - expected).abs().max().item<double>() < 1e-4 * test::fp32_slack());
  CHECK((here - expected).abs().max().item<double>() > 1e-3);
}

TEST_CASE("events: what was kept, each token, the end; a reader that never comes holds nobody up") {
  Request request = row_request(0);
  request.logprobs = 2;
  const auto queue = std::make_shared<EventQueue>();
  request.events = queue;
  Request unread = row_request(5);
  unread.events = std::make_shared<EventQueue>();
  Scheduler scheduler(tiny_engine());
  std::future<Answer> future = scheduler.submit(request), other = scheduler.submit(unread);
  std::string text;
  std::vector<int64_t> ids;
  bool prefilled = false, ended = false;
  std::jthread reader([&] {
    while (!ended) {
      const auto event = queue->pop(std::chrono::seconds(60));
      if (!event) break;
      if (const auto* done = std::get_if<PrefillDone>(&*event)) {
        prefilled = ids.empty();
        CHECK(done->answer->kept_tokens > 0);
        CHECK(std::ssize(done->answer->scores) == done->answer->visual_tokens);
        CHECK(done->answer->keep.size() == 1);
      } else if (const auto* token = std::get_if<NextToken>(&*event)) {
        ids.push_back(token->token.id);
        text += token->text;
        CHECK(token->token.top.size() == 2);
      } else {
        const auto& end = std::get<Ended>(*event);
        text += end.text;
        ended = true;
        CHECK(end.answer->finish_reason == "stop");
      }
    }
  });
  scheduler.run();
  reader.join();
  const Answer answer = future.get();
  CHECK(prefilled);
  CHECK(ended);
  CHECK(ids == answer.ids);
  CHECK(text == answer.text);
  CHECK(other.get().text == tiny_engine().ask(row_request(5)).text);
  CHECK(!EventQueue().pop(std::chrono::milliseconds(1)));
}

TEST_CASE("kinds of errors") {
  using Kind = Error::Kind;
  const auto kind = [](const auto& work) {
    try {
      work();
    } catch (...) {
      return kind_of(std::current_exception());
    }
    return Kind::cancelled;
  };
  Request text;
  text.messages = {test::user("What is it?")};
  Request wrong = text;
  wrong.prune = "nothing";
  Request huge = text;
  huge.messages = {test::user(std::string(100000, '7'))};
  CHECK(kind([&] { tiny_engine().ask(wrong); }) == Kind::wrong);
  CHECK(kind([&] { tiny_engine().ask(huge); }) == Kind::too_large);
  CHECK(kind([] { throw std::bad_alloc(); }) == Kind::internal);
  Scheduler small(tiny_engine(), {.kv_bytes = 1000}), full(tiny_engine(), {.max_waiting = 2});
  CHECK(kind([&] { small.submit(text); }) == Kind::too_large);
  Futures waiting;
  for (int i = 0; i < 2; ++i) waiting.push_back(full.submit(text));
  CHECK(kind([&] { full.submit(text); }) == Kind::busy);
  full.run();
  waiting.push_back(full.submit(text));
  full.run();
  for (auto& future : waiting) CHECK(!future.get().text.empty());
}

TEST_CASE("of several requests together, a wrong one does not keep the others from their answers") {
  std::vector<Request> requests = three();
  requests[1].prune = "nothing";
  int answered = 0;
  for (Request& request : requests) request.on_text = [&](const std::string&) { ++answered; };
  CHECK_THROWS_AS(tiny_engine().ask(requests), Error);
  CHECK(answered > 2);
}
