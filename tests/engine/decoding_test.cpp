// Choosing tokens, streaming, ends and cancellation.
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/engine/stop_strings.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using test::row_request;
using test::tiny_engine;
using Ids = std::vector<int64_t>;

namespace {

// On the CPU everywhere: it is drawn from hundreds of thousands of times.
const at::Tensor kLogits = at::tensor({1.0f, 3.0f, -2.0f, 2.5f, 0.0f});

int64_t next(Sampler& sampler, const at::Tensor& logits, const Ids& seen = {}, int64_t answered = 0) {
  return sampler.draw(sampler.candidates(logits, seen, answered).cpu());
}

// How often each of the five tokens is drawn; of those seen the last `answered` are the answer's.
std::vector<double> frequencies(const SamplingOptions& options, const Ids& seen = {}, int64_t answered = 0) {
  Sampler sampler(options);
  std::vector<double> count(5);
  constexpr int draws = 20000;
  for (int i = 0; i < draws; ++i) count[next(sampler, kLogits, seen, answered)] += 1.0 / draws;
  return count;
}

void near(const std::vector<double>& got, const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    if (weights[i] == 0) CHECK(got[i] == 0);
    CHECK(std::abs(got[i] - weights[i] / sum) < 0.02);
  }
}

// A pruner that asks to stop when it is called: in the middle of a prefill.
class Stopping : public Pruner {
 public:
  explicit Stopping(std::stop_source& source) : source_(source) {}
  std::string name() const override { return "stopping"; }
  nlohmann::json settings() const override { return {}; }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, 1, true}}; }
  Selection select(const View& view, const Cut&, const Budget&) const override {
    source_.request_stop();
    Ids all(view.count());
    std::iota(all.begin(), all.end(), int64_t{0});
    return {all, {}, {}};
  }

 private:
  std::stop_source& source_;
};

}  // namespace

TEST_CASE("greedy takes the highest, the first of equals") {
  Sampler greedy({});
  CHECK(next(greedy, kLogits) == 1);
  CHECK(next(greedy, at::tensor({2.0f, 5.0f, 5.0f})) == 1);
  CHECK(next(greedy, kLogits.to(test::test_device())) == 1);
}

TEST_CASE("temperature, top-k and top-p") {
  std::vector<double> e, hot;
  for (int i = 0; i < 5; ++i) {
    e.push_back(std::exp(kLogits[i].item<double>()));
    hot.push_back(std::exp(kLogits[i].item<double>() / 3));
  }
  near(frequencies({.temperature = 1, .seed = 1}), e);
  near(frequencies({.temperature = 3, .seed = 1}), hot);
  near(frequencies({.temperature = 1, .top_k = 2, .seed = 1}), {0, e[1], 0, e[3], 0});
  near(frequencies({.temperature = 1, .top_k = 99, .seed = 1}), e);
  near(frequencies({.temperature = 5, .top_k = 1, .seed = 1}), {0, 1, 0, 0, 0});
  // p = 0.55, 0.33, 0.074, ...: the smallest set that reaches the mass
  near(frequencies({.temperature = 1, .top_p = 0.3, .seed = 1}), {0, 1, 0, 0, 0});
  near(frequencies({.temperature = 1, .top_p = 0.8, .seed = 1}), {0, e[1], 0, e[3], 0});
  near(frequencies({.temperature = 1, .top_p = 0.93, .seed = 1}), {e[0], e[1], 0, e[3], 0});
  near(frequencies({.temperature = 1, .top_p = 1e-9, .seed = 1}), {0, 1, 0, 0, 0});
  // top-k comes first: of the two left, p = 0.62 and 0.38
  near(frequencies({.temperature = 1, .top_p = 0.6, .top_k = 2, .seed = 1}), {0, 1, 0, 0, 0});
}

TEST_CASE("repetition penalty: positive scores are divided, negative multiplied, once per token") {
  const auto penalised = [](int64_t i, bool seen) {
    const double x = kLogits[i].item<double>();
    return std::exp(!seen ? x : x > 0 ? x / 1.5 : x * 1.5);
  };
  std::vector<double> expected;
  for (int64_t i = 0; i < 5; ++i) expected.push_back(penalised(i, i == 1 || i == 2));
  near(frequencies({.temperature = 1, .repetition_penalty = 1.5, .seed = 1}, {1, 2, 1, 1}), expected);
  Sampler greedy({.repetition_penalty = 1.5});
  CHECK(next(greedy, kLogits, {1}) == 3);
  CHECK(next(greedy, kLogits.to(test::test_device()), {1}) == 3);
  CHECK(next(greedy, kLogits) == 1);
  CHECK(kLogits[1].item<float>() == 3.0f);  // the logits are not changed
}

TEST_CASE("a temperature near 0 is greedy, not a quotient of infinities") {
  for (const double temperature : {1e-30, 1e-300, 5e-324}) {
    CAPTURE(temperature);
    near(frequencies({.temperature = temperature, .seed = 1}), {0, 1, 0, 0, 0});
  }
}

TEST_CASE("min-p, penalties of the answer's tokens, biases") {
  std::vector<double> e;
  for (int i = 0; i < 5; ++i) e.push_back(std::exp(kLogits[i].item<double>()));
  // p of the likeliest is e^3: e^2.5 is 0.61 of it, e^1 0.135, e^0 0.05
  near(frequencies({.temperature = 1, .min_p = 0.1, .seed = 1}), {e[0], e[1], 0, e[3], 0});
  near(frequencies({.temperature = 1, .min_p = 0.7, .seed = 1}), {0, 1, 0, 0, 0});
  // Token 3 in the prompt does not count; token 1 twice and token 0 once in the answer do.
  const Ids seen = {3, 3, 1, 0, 1};
  const auto expected = [&](double presence, double frequency) {
    std::vector<double> out = e;
    out[1] *= std::exp(-presence - 2 * frequency);
    out[0] *= std::exp(-presence - frequency);
    return out;
  };
  near(frequencies({.temperature = 1, .presence_penalty = 1.5, .seed = 1}, seen, 3), expected(1.5, 0));
  near(frequencies({.temperature = 1, .frequency_penalty = -0.7, .seed = 1}, seen, 3), expected(0, -0.7));
  Sampler pushed({.logit_bias = {{2, 100}}}), barred({.logit_bias = {{1, -100}}});
  CHECK(next(pushed, kLogits) == 2);
  CHECK(next(barred, kLogits) == 3);
  Sampler outside({.logit_bias = {{5, 1}}});
  CHECK_THROWS_WITH_AS(next(outside, kLogits), "logit_bias: token 5 is outside the vocabulary of 5", Error);
}

TEST_CASE("logits that are no numbers are an error that says where in the model they began") {
  for (const double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
    at::Tensor logits = kLogits.clone();
    logits[2] = bad;
    for (const SamplingOptions& options :
         {SamplingOptions{.repetition_penalty = 1.1}, SamplingOptions{.temperature = 1, .seed = 1}}) {
      Sampler sampler(options);
      CHECK_THROWS_WITH_AS(next(sampler, logits), "the logits of the next token are no numbers", Error);
    }
  }
  const auto engine = Engine::load({.model = test::tiny_dir() / "model",
                                    .new_modules = {(test::tiny_dir() / "new_modules").string()},
                                    .dtype = "fp32",
                                    .device = test::device_name()});
  const_cast<Vlm&>(engine->model())
      .mutable_decoder()
      .visit_linears([](const std::string& name, Linear& layer) {
        if (name.ends_with("layers.2.mlp.up_proj")) layer.weight[0].fill_(std::nan(""));
      });
  for (const double temperature : {0.0, 0.7}) {
    Request request = row_request(0, "none");
    request.sampling.temperature = temperature;
    std::string what;
    try {
      engine->ask(request);
    } catch (const Error& error) {
      what = error.what();
      CHECK(error.kind() == Error::Kind::internal);
    }
    CHECK(what.find("layer 2 or layer 3's projections") != std::string::npos);
  }
}

TEST_CASE("log-probabilities: of each token and the likeliest, and the chosen among these when greedy") {
  Request request = row_request(0);
  request.logprobs = 3;
  const Answer answer = tiny_engine().ask(request);
  REQUIRE(answer.tokens.size() == answer.ids.size());
  for (size_t i = 0; i < answer.ids.size(); ++i) {
    const TokenInfo& token = answer.tokens[i];
    CHECK(token.id == answer.ids[i]);
    REQUIRE(token.top.size() == 3);
    CHECK(token.top[0].first == token.id);
    CHECK(token.top[0].second == *token.logprob);
    CHECK(token.top[0].second >= token.top[1].second);
    CHECK(*token.logprob <= 0);
  }
  CHECK(tiny_engine().ask(row_request(0)).ids == answer.ids);
}

TEST_CASE("stop strings: found across pieces, never shown, the first of several") {
  const auto run = [](const std::vector<std::string>& strings, const std::vector<std::string>& pieces) {
    StopStrings stop(strings);
    std::string shown;
    for (const std::string& piece : pieces) shown += stop.push(piece) + "|";
    return std::make_pair(shown + stop.flush(), stop.found());
  };
  using Result = std::pair<std::string, bool>;
  CHECK(run({}, {"ab", "c"}) == Result{"ab|c|", false});
  CHECK(run({"END"}, {"abE", "N", "Dxyz", "more"}) == Result{"ab||||", true});
  CHECK(run({"END"}, {"abE", "NX", "E"}) == Result{"ab|ENX||E", false});
  CHECK(run({"b", "ab"}, {"xaby"}) == Result{"x|", true});
  CHECK(run({"cd", "bcde"}, {"abc", "d"}) == Result{"a|b|", true});
  CHECK(run({"aab"}, {"aa", "aa", "b"}) == Result{"|aa||", true});
  CHECK_THROWS_AS(StopStrings({""}), Error);

  const Answer whole = tiny_engine().ask(row_request(0));
  REQUIRE(whole.text.size() > 3);
  Request request = row_request(0);
  request.stop_strings = {whole.text.substr(1, 2)};
  std::string streamed;
  request.on_text = [&](const std::string& text) { streamed += text; };
  const Answer cut = tiny_engine().ask(request);
  CHECK(cut.text == whole.text.substr(0, whole.text.find(request.stop_strings[0])));
  CHECK(streamed == cut.text);
  CHECK(cut.finish_reason == "stop");
}

TEST_CASE("a seed makes sampling reproducible") {
  Request request = row_request(0);
  request.sampling = {.temperature = 8, .seed = 3};
  const Answer a = tiny_engine().ask(request), b = tiny_engine().ask(request);
  CHECK(a.ids == b.ids);
  request.sampling.seed = 4;
  CHECK(tiny_engine().ask(request).ids != a.ids);
  request.sampling = {.temperature = 8, .top_k = 1};
  CHECK(tiny_engine().ask(request).ids == tiny_engine().ask(row_request(0)).ids);
}

TEST_CASE("the pieces of the stream joined are the answer") {
  for (const double temperature : {0.0, 8.0}) {  // hot: broken characters and all
    Request request = row_request(5);
    request.sampling = {.temperature = temperature, .seed = 11};
    request.max_new_tokens = 60;
    std::string joined;
    request.on_text = [&](const std::string& piece) {
      CHECK_FALSE(piece.empty());
      joined += piece;
    };
    const Answer answer = tiny_engine().ask(request);
    CHECK(joined == answer.text);
    CHECK(answer.text == tiny_engine().model().tokenizer().decode(answer.ids));
  }
}

TEST_CASE("ends: a stop token or the length") {
  Request request = row_request(0);
  const Answer whole = tiny_engine().ask(request);
  CHECK(whole.finish_reason == "stop");
  for (const int64_t id : whole.ids) CHECK((id != 556 && id != 554));
  request.max_new_tokens = 3;
  const Answer cut = tiny_engine().ask(request);
  CHECK(cut.finish_reason == "length");
  CHECK(cut.ids == Ids(whole.ids.begin(), whole.ids.begin() + 3));
  request.max_new_tokens = static_cast<int64_t>(whole.ids.size());
  CHECK(tiny_engine().ask(request).finish_reason == "length");
  request.max_new_tokens = static_cast<int64_t>(whole.ids.size()) + 4;
  request.ignore_eos = true;
  const Answer on = tiny_engine().ask(request);
  CHECK(on.ids.size() == whole.ids.size() + 4);
  CHECK(on.ids[whole.ids.size()] == 556);
  CHECK(on.finish_reason == "length");
}

TEST_CASE("decoding ends at the model's context") {
  Request request;
  request.ignore_eos = true;
  request.max_new_tokens = 100;
  request.messages = {test::user("")};
  const auto fixed = static_cast<int64_t>(tiny_engine().model().prompt(request.messages, {}, {}).ids.size());
  std::vector<int64_t> one = tiny_engine().model().tokenizer().encode("7");
  REQUIRE(one.size() == 1);
  request.messages = {test::user(std::string(4096 - fixed - 10, '7'))};
  const Answer answer = tiny_engine().ask(request);
  CHECK(answer.finish_reason == "length");
  // The last id is never fed, so that it has no position.
  CHECK(answer.prompt_tokens == 4096 - 10);
  CHECK(answer.ids.size() == 10 + 1);
}

TEST_CASE("cancelled before it starts") {
  std::stop_source source;
  source.request_stop();
  Request request = row_request(0);
  request.stop = source.get_token();
  const Answer answer = tiny_engine().ask(request);
  CHECK(answer.finish_reason == "cancelled");
  CHECK(answer.ids.empty());
}

TEST_CASE("cancelled during prefill") {
  std::stop_source source;
  const Request request = row_request(0);
  Sequence sequence;
  sequence.prompt = tiny_engine().model().prompt(request.messages, request.media, {});
  sequence.pruners = {std::make_shared<Stopping>(source)};
  sequence.stop = source.get_token();
  const std::vector<Sequence*> one = {&sequence};
  int64_t last = -1;
  CHECK_THROWS_AS(
      prefill(tiny_engine().model(), one, [&](int64_t layer, const at::Tensor&) { last = layer; }),
      Cancelled);
  CHECK(last == 1);  // no further layer was run
}

TEST_CASE("cancelled during decoding, from the stream and from another thread") {
  std::stop_source source;
  Request request = row_request(0);
  request.ignore_eos = true;
  request.max_new_tokens = 3000;
  request.stop = source.get_token();
  std::string seen;
  request.on_text = [&](const std::string& piece) {
    seen += piece;
    if (seen.size() > 10) source.request_stop();
  };
  const Answer answer = tiny_engine().ask(request);
  CHECK(answer.finish_reason == "cancelled");
  CHECK(!answer.ids.empty());
  CHECK(answer.ids.size() < 30);
  CHECK(answer.text == seen);

  std::stop_source other;
  request.stop = other.get_token();
  request.on_text = {};
  std::jthread thread([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    other.request_stop();
  });
  const Answer late = tiny_engine().ask(request);
  CHECK(late.finish_reason == "cancelled");
  CHECK(late.ids.size() < 3000);
}

TEST_CASE("engine options: errors") {
  const auto load = [](EngineOptions options) { return Engine::load(options); };
  CHECK_THROWS_WITH_AS(load({.dtype = "int8"}), "dtype: expected auto, bf16 or fp32, got 'int8'", Error);
  for (const char* device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""})
    CHECK_THROWS_WITH_AS(parse_device(device), doctest::Contains("device: expected cpu, cuda or cuda:i"),
                         Error);
  CHECK(parse_device("cpu").is_cpu());
  CHECK_THROWS_AS(load({.model = "/nowhere/at/all"}), Error);
  CHECK_THROWS_AS(
      load({.model = test::tiny_dir() / "model", .new_modules = {(test::tiny_dir() / "model").string()}}),
      Error);
  CHECK(std::filesystem::exists(builtin_model_dir() / "model/config.json"));
  CHECK(tiny_engine().default_prune() == "glimpse");
  CHECK(Engine::load({.model = test::tiny_dir() / "model"})->default_prune() == "none");
}
