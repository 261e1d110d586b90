// What GGUF models lose when they stay in few bits instead of being widened (make_gguf.py).
#include <set>

#include "glimpse/engine/engine.h"
#include "glimpse/image/decode.h"
#include "glimpse/io/gguf.h"
#include "glimpse/io/rows.h"
#include "parity/checkpoints.h"

using namespace glimpse;

namespace {

std::filesystem::path folder() {
  return test::required("GLIMPSE_GGUF_DIR", "must name the folder that make_gguf.py wrote");
}

// A tensor of blocks.gguf as a matrix of one block per row.
FewBits one_block_rows(const Gguf& gguf, const std::string& name, int64_t in) {
  const FewBits stored = *gguf.few_bits(name);
  const int64_t rows = gguf.entries().at(name).shape[0];
  const auto narrow = [](const at::Tensor& t, int64_t first, int64_t count) {
    return t.narrow(0, first, count).contiguous();
  };
  FewBits out = stored;
  const at::Tensor values = stored.rows(0, rows).view({-1, in});
  out.rows = [=](int64_t first, int64_t count) { return narrow(values, first, count); };
  if (!stored.steps) return out;
  const Steps all = stored.steps(0, rows);
  out.steps = [=](int64_t first, int64_t count) {
    return Steps{narrow(all.step.view({-1, in}), first, count),
                 narrow(all.scale.view({-1, in / stored.group}), first, count),
                 narrow(all.offset.view({-1, in / stored.group}), first, count)};
  };
  return out;
}

std::vector<Request> questions(size_t count) {
  const std::filesystem::path root = builtin_model_dir() / "test";
  std::vector<Request> out;
  visit_lines(root / "rows.jsonl", [&](const std::string& text, size_t) {
    const QuestionRow row = parse_question_row(text);
    Request& request = out.emplace_back();
    Message message{"user", {}};
    for (const std::string& name : row.images) {
      request.media.push_back(load_image(find_image(root, row.dataset, name)));
      message.parts.push_back({Part::Kind::image, {}});
    }
    message.parts.push_back({Part::Kind::text, row.question});
    request.messages.push_back(std::move(message));
    request.max_new_tokens = 1;
    request.logits = true;
    return out.size() < count;
  });
  return out;
}

struct Loss {
  double divergence = 0;    // mean KL of the widened model's first token
  double kept_in_both = 0;  // mean intersection over union of the kept sets
};

Loss loss_of(const std::string& kind) {
  EngineOptions options;
  options.model = (folder() / kind / "model.gguf").string();
  options.new_modules = {(builtin_model_dir() / "new_modules").string()};
  const auto kept = Engine::load(options);
  options.weights = "bf16";
  options.dtype = "fp32";
  const auto wide = Engine::load(options);
  Loss loss;
  const std::vector<Request> all = questions(12);
  for (const Request& request : all) {
    const Answer ours = kept->ask(request), theirs = wide->ask(request);
    const at::Tensor p = theirs.logits[0].to(at::kDouble).log_softmax(0),
                     q = ours.logits[0].to(at::kDouble).log_softmax(0);
    loss.divergence += (p.exp() * (p - q)).sum().item<double>() / static_cast<double>(all.size());
    const std::set<int64_t> mine(ours.keep[0].begin(), ours.keep[0].end());
    std::set<int64_t> either = mine;
    double both = 0;
    for (const int64_t token : theirs.keep[0]) {
      both += static_cast<double>(mine.count(token));
      either.insert(token);
    }
    const double share = either.empty() ? 1 : both / static_cast<double>(either.size());
    loss.kept_in_both += share / static_cast<double>(all.size());
  }
  return loss;
}

}  // namespace

TEST_CASE("what each block type loses when it is kept in 4 or 8 bits") {
  // Steps whose scales (and zeros) have 11 digits lose nothing, others what float16 rounds off; types of more
  // bits are rounded to 8 with one scale per output, here of a single block.
  const std::map<std::string, double> limits = {
      {"Q4_0", 1e-6},   {"IQ4_NL", 1e-6}, {"Q4_1", 3e-4}, {"Q2_K", 5e-4}, {"Q3_K", 3e-4}, {"Q4_K", 5e-4},
      {"IQ4_XS", 3e-4}, {"Q5_0", 6e-3},   {"Q5_1", 6e-3}, {"Q5_K", 9e-3}, {"Q6_K", 9e-3}, {"Q8_0", 6e-3}};
  const Gguf gguf = Gguf::open(folder() / "blocks.gguf");
  for (const auto& [name, limit] : limits) {
    const int64_t in = gguf.entries().at(name).type->values;
    const FewBits stored = one_block_rows(gguf, name, in);
    const at::Tensor values = stored.rows(0, 2100);
    const LowBitWeight kept = keep_few_bits(2100, in, stored);
    const double error = ((kept.dequantised() - values).norm() / values.norm()).item<double>();
    INFO(name << ": " << kept.bits() << " bits, relative error " << error);
    MESSAGE(name << ": " << kept.bits() << " bits, relative error " << error);
    CHECK(kept.is_stepped() == (stored.group > 0));
    CHECK(error < limit);
  }
}

TEST_CASE("a model that is kept in few bits keeps the tokens and the answers of the widened one") {
  for (const char* kind : {"q8_0", "q4_0", "iq4_nl", "mixed"}) {
    const Loss loss = loss_of(kind);
    MESSAGE(std::string(kind) << ": KL " << loss.divergence << ", kept in both " << loss.kept_in_both);
    CHECK(loss.divergence < 1e-4);
    CHECK(loss.kept_in_both > 0.98);
  }
}
