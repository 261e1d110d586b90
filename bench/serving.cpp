#include "bench/serving.h"

#include <cmath>

#include "glimpse/base/timer.h"
#include "glimpse/engine/engine.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/engine/prefix_cache.h"
#include "glimpse/nn/attention.h"

namespace glimpse::bench {

namespace {

constexpr int64_t kTogether = 8, kSteps = 16;

}  // namespace

void time_flash(const DecoderConfig& c, int rounds, const Limits& limits, Rows& rows) {
  constexpr int64_t length = 4096;
  const auto random = [&](int64_t heads) { return at::randn({length, heads, c.head_dim}).to(at::kBFloat16); };
  const at::Tensor q = random(c.heads);
  LayerCache cache;
  cache.append(random(c.kv_heads), random(c.kv_heads));
  Samples times;
  for (int round = 0; round < 2 * rounds; ++round) {
    const Timer timer;
    causal_attention(q, cache);
    times.add(timer.ms());
  }
  const double flops = 2.0 * static_cast<double>(c.heads * c.head_dim * length) * (length + 1);
  rows.add({"flash_4096_ms",
            times.best(),
            "ms",
            times.median(),
            limits.share_of_flops(flops, times.best()),
            {},
            concat("causal, ", c.heads, "/", c.kv_heads, " heads of ", c.head_dim),
            share_at_least(0.6)});
}

void time_kv(const DecoderConfig& c, int rounds, Rows& rows) {
  const auto random = [&](int64_t count, int64_t heads) {
    return at::randn({count, heads, c.head_dim}).to(at::kBFloat16);
  };
  const at::Tensor q = random(1, c.heads);
  for (const int64_t length : {4096, 32768}) {
    // As many layers as together leave no level of the machine's caches a chance.
    const auto row_bytes = 2 * c.kv_heads * c.head_dim * 2;
    const int64_t layers = std::max<int64_t>(2, (int64_t{256} << 20) / (length * row_bytes));
    const at::Tensor k = random(length, c.kv_heads), v = random(length, c.kv_heads);
    struct Kind {
      const char* name;
      KvFormat format;
      std::vector<LayerCache> caches = {};
      Samples times = {};
    };
    std::vector<Kind> kinds = {{"bf16", KvFormat::plain}, {"int8", KvFormat::int8}, {"int4", KvFormat::int4}};
    for (Kind& kind : kinds)
      for (int64_t layer = 0; layer < layers; ++layer) {
        kind.caches.emplace_back(kind.format).append(k, v);
        kind.caches.back().close();
      }
    for (int round = 0; round < 2 * rounds; ++round)
      for (Kind& kind : kinds) {  // by turns, as other programs may come in between
        const Timer timer;
        for (const LayerCache& cache : kind.caches) causal_attention(q, cache);
        kind.times.add(timer.ms() / static_cast<double>(layers));
      }
    for (const Kind& kind : kinds)
      rows.add(
          {.name = concat("kv_", kind.name, "_", length, "_ms"),
           .value = kind.times.best(),
           .unit = "ms",
           .median = kind.times.median(),
           .note = concat("one row, one layer, ", c.heads, "/", c.kv_heads, " heads of ", c.head_dim, ": ",
                          2 * c.kv_heads * LayerCache::row_bytes(kind.format, c.head_dim, 2),
                          " bytes per token and layer"),
           .goal = kind.format == KvFormat::plain ? std::optional<Goal>() : at_most(kinds[0].times.best())});
  }
}

namespace {

// A sequence and what its prefill gave.
struct Prefilled {
  Sequence sequence;
  int64_t next = 0;
  double ms = 0;  // to the first token
};

Prefilled prefilled(const Vlm& model, const Prompt& prompt, const PrunerChain& pruners, double keep,
                    PrefixCache* cache) {
  Prefilled out;
  out.sequence.prompt = prompt;
  out.sequence.pruners = pruners;
  out.sequence.budget.keep = keep;
  const Timer timer;
  if (const auto end = prefix_end(prompt, pruners, model.decoder().config().layers); cache && end)
    out.sequence.prefix_key = prefix_key(out.sequence, *end, model.weights_version());
  PrefillBatch batch(model, cache);
  batch.add(out.sequence);
  while (!batch.done())
    for (const PrefillBatch::Failure& failure : batch.step()) std::rethrow_exception(failure.error);
  out.next = batch.finish().argmax().item<int64_t>();
  out.ms = timer.ms();
  return out;
}

// ms of a few steps of `count` copies of a sequence.
double decoding_ms(const Vlm& model, const Prefilled& first, int64_t count) {
  std::vector<Sequence> copies(count, first.sequence);
  std::vector<Sequence*> sequences;
  sequences.reserve(count);
  for (Sequence& copy : copies) sequences.push_back(&copy);
  std::vector<int64_t> tokens(count, first.next);
  decode_step(model, sequences, tokens);  // the copies get memory of their own
  const Timer timer;
  for (int64_t step = 0; step < kSteps; ++step) {
    const at::Tensor next = decode_step(model, sequences, tokens).argmax(1);
    tokens.assign(next.const_data_ptr<int64_t>(), next.const_data_ptr<int64_t>() + count);
  }
  return timer.ms();
}

Prompt other_question(Prompt prompt) {
  for (size_t i = static_cast<size_t>(prompt.visual_rows.back()) + 2; i < prompt.ids.size(); ++i)
    prompt.ids[i] = (prompt.ids[i] + 7 * static_cast<int64_t>(i)) % 500;
  return prompt;
}

}  // namespace

void time_questions(const Question& question, const Engine& engine, Rows& rows) {
  const Vlm& model = engine.model();
  const PrunerChain pruners = make_pruners("glimpse", engine.pruner_context());
  const Prompt prompt = make_prompt(question, model), other = other_question(prompt);
  Samples first, second;
  double cached_mib = 0;
  for (int round = 0; round < question.rounds; ++round) {
    PrefixCache cache(size_t{8} << 30);
    first.add(prefilled(model, prompt, pruners, question.keep, &cache).ms);
    second.add(prefilled(model, other, pruners, question.keep, &cache).ms);
    cached_mib = static_cast<double>(cache.bytes()) / 1048576;
    say(concat("first question ", first.values.back(), " ms, second ", second.values.back(), " ms"));
  }
  rows.add({"first_question_ms",
            first.best(),
            "ms",
            first.median(),
            {},
            {},
            "to the first token, encoder included"});
  rows.add({"second_question_ms",
            second.best(),
            "ms",
            second.median(),
            {},
            {},
            concat("the same image: cached prefix of ", std::round(cached_mib), " MiB")});
  rows.add({.name = "second_question_share",
            .value = second.best() / first.best(),
            .unit = "of the first",
            .goal = at_most(0.15)});
}

void time_batch(const Question& question, const Engine& engine, Rows& rows) {
  const Vlm& model = engine.model();
  const Prefilled first = prefilled(model, make_text_prompt(question, model), {}, 1, nullptr);
  Samples one, many;
  for (int round = 0; round < question.rounds; ++round) {
    one.add(decoding_ms(model, first, 1));
    many.add(decoding_ms(model, first, kTogether));
    say(concat("decoding ", kSteps, " steps: alone ", one.values.back(), " ms, ", kTogether, " together ",
               many.values.back(), " ms"));
  }
  const auto rate = [&](double ms, int64_t count) { return static_cast<double>(count * kSteps) / ms * 1e3; };
  rows.add({"decode_alone_tokens_per_s", rate(one.best(), 1), "tokens/s", rate(one.median(), 1)});
  rows.add({"decode_batch_tokens_per_s",
            rate(many.best(), kTogether),
            "tokens/s",
            rate(many.median(), kTogether),
            {},
            {},
            concat(kTogether, " sequences together")});
  rows.add({.name = "decode_batch_gain",
            .value = rate(many.best(), kTogether) / rate(one.best(), 1),
            .unit = "x",
            .goal = question.goals().batch});
}

void time_sizes(Question question, const std::vector<int64_t>& sizes, const Engine& engine, Rows& rows) {
  const Vlm& model = engine.model();
  const PrunerChain pruners = make_pruners("glimpse", engine.pruner_context());
  const auto run = [&](int64_t visual) {
    question.visual = visual;
    Memory::trim_and_reset_peak();
    const double before = Memory::now().own_mib;
    const double ms = prefilled(model, make_prompt(question, model), pruners, question.keep, nullptr).ms;
    const Memory after = Memory::now();
    return std::pair(ms, after.peak_mib - after.files_mib - before);
  };
  run(sizes.front());  // maps the weights, so that from here on only the images' own memory grows
  double last_ms = 0, last_tokens = 0, last_kib = 0;
  for (const int64_t visual : sizes) {
    const auto tokens = static_cast<double>(visual);
    // Operations grow by the tokens, in part by their square.
    if (const double ratio = tokens / last_tokens; last_ms * ratio > 60'000)
      say(concat(visual, " visual tokens: this takes about ", std::round(last_ms * ratio / 60'000), " to ",
                 std::round(last_ms * ratio * ratio / 60'000), " minutes"));
    const auto [ms, mib] = run(visual);
    const double kib = 1024 * mib / tokens;
    say(concat(visual, " visual tokens: ", ms, " ms, ", mib, " MiB"));
    const std::string name = concat("visual_", visual);
    rows.add({.name = name + "_ms", .value = ms, .unit = "ms", .note = "to the first token, pruned"});
    rows.add({.name = name + "_memory_mib", .value = mib, .unit = "MiB", .note = "peak above the weights"});
    rows.add({.name = name + "_memory_per_token", .value = kib, .unit = "KiB"});
    if (visual == sizes.back() && last_tokens > 0)
      rows.add({.name = "visual_memory_growth",
                .value = kib / last_kib,
                .unit = "x",
                .note = concat("memory per token at ", visual, " over that at ", last_tokens,
                               "; 1 or less: it grows linearly"),
                .goal = at_most(1.3)});
    last_ms = ms, last_tokens = tokens, last_kib = kib;
  }
}

}  // namespace glimpse::bench
