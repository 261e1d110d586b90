// Random checkpoints of every family, layout, scaling of positions and packing of weights against
// transformers: the folder that make_checkpoints.py, make_llava.py, make_llava_next.py, make_qwen3.py,
// make_sliding.py and make_quantised.py wrote.
#include "glimpse/engine/sequence.h"
#include "parity/checkpoints.h"

using namespace glimpse;
using test::difference;
using test::GoldenCase;
using test::patches_of;

namespace {

void compare(const char* what, const at::Tensor& got, const at::Tensor& expected) {
  const double limit = std::max(5e-4, 1e-3 * expected.abs().max().item<double>());
  const double d = difference(got, expected);
  CHECK_MESSAGE(d <= limit, what << ": differs by " << d << ", limit " << limit << ", shape " << got.sizes());
}

void run_case(const Vlm& model, const GoldenCase& parity) {
  Sequence sequence;
  sequence.prompt = model.prompt(parity.integers("input_ids"), patches_of(parity));
  CHECK(difference(sequence.prompt.position_ids.squeeze(0), parity["position_ids"]) == 0);
  const int64_t rows = parity["input_ids"].numel();
  CHECK(sequence.prompt.next_position - rows == parity.integers("rope_deltas")[0]);
  if (parity.has("image_embeds") || parity.has("video_embeds"))
    compare("image_embeds", model.project(model.encode(sequence.prompt.patches, {}).embeds),
            test::embeds_of(parity));

  const std::vector<Sequence*> one = {&sequence};
  int64_t last = -1;
  at::Tensor step = prefill(model, one, [&](int64_t layer, const at::Tensor& hidden) {
    CHECK(layer == ++last);
    if (layer + 1 == model.decoder().config().layers)
      compare("all_logits", model.decoder().logits(hidden), parity["all_logits"]);
  });
  CHECK(last + 1 == model.decoder().config().layers);
  compare("first_logits", step[0], parity["first_logits"]);

  std::vector<int64_t> ids;
  const std::vector<int64_t> expected = parity.integers("generated_ids");
  CHECK(expected.size() == 32);
  for (size_t i = 0; i < expected.size(); ++i) {
    compare("step_top2", std::get<0>(step[0].topk(2)), parity["step_top2"][static_cast<int64_t>(i)]);
    ids.push_back(step[0].argmax().item<int64_t>());
    step = decode_step(model, one, {ids.back()});
  }
  CHECK(ids == expected);
}

}  // namespace

TEST_CASE("random checkpoints equal those of transformers") {
  int run = 0;
  for (const auto& shape : std::filesystem::directory_iterator(test::checkpoints())) {
    LoadOptions options{.dtype = at::kFloat};
    options.weights.keep = false;  // layers in few bits are widened, as what they are compared with
    const auto model = load_vlm(shape.path() / "model", options);
    for (const GoldenCase& parity : test::golden_cases(shape.path() / "cases")) {
      INFO(shape.path().filename().string() << " " << parity.name);
      run_case(*model, parity);
      ++run;
    }
  }
  CHECK(run >= 188);
}
