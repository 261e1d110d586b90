// Writes with this library what check_written.py then reads with PyTorch, PEFT and transformers: adapters of
// the random checkpoints with their logits and gradients, and the golden new modules.
#include "glimpse/engine/sequence.h"
#include "glimpse/io/torch_zip.h"
#include "glimpse/nn/forward.h"
#include "glimpse/train/lora.h"
#include "parity/checkpoints.h"

using namespace glimpse;
using namespace glimpse::test;
namespace fs = std::filesystem;

namespace {

fs::path written() {
  return fs::path(required("GLIMPSE_WRITTEN_DIR", "must name the folder to write to"));
}

/// [T, V] of a case's whole prompt.
at::Tensor all_logits(const Vlm& model, const GoldenCase& parity) {
  const Prompt prompt = model.prompt(parity.integers("input_ids"), patches_of(parity));
  const at::Tensor x = embed_prompt(model, prompt, {}).rows;
  KvCache cache(model.decoder().config().layers);
  const RaggedBatch batch{{{&cache, x.size(0)}}, model.rope(prompt.position_ids)};
  return model.decoder().logits(Forward(model.decoder(), x, batch).run());
}

void write_adapter(const fs::path& shape, uint64_t seed) {
  const fs::path out = written() / shape.filename();
  const GoldenCase parity(shape / "cases/one_image.json");
  const auto model = load_vlm(shape / "model", {.dtype = at::kFloat});
  const LoraAdapter adapter =
      LoraAdapter::fresh(model->mutable_decoder(), {.r = 4, .alpha = 10, .dropout = 0}, seed);
  at::manual_seed(seed);
  for (const auto& [name, leaf] : adapter.parameters())
    if (name.ends_with(".lora_B.weight")) at::Tensor(leaf.detach()).normal_(0, 0.1);
  adapter.attach(model->mutable_decoder());
  const at::Tensor logits = all_logits(*model, parity);
  const int64_t last = logits.size(0) - 1;
  const at::Tensor loss =
      at::cross_entropy_loss(logits.narrow(0, 0, last), parity["input_ids"].to(at::kLong).narrow(0, 1, last));
  loss.backward();
  std::map<std::string, at::Tensor> expected = {{"logits", logits}, {"loss", loss}};
  for (const auto& [name, leaf] : adapter.parameters()) expected["gradient." + name] = leaf.grad();
  adapter.save(out / "adapter");
  save_safetensors(out / "expected.safetensors", expected);

  CHECK(difference(logits, parity["all_logits"]) > 0.1);
  const auto merged = load_vlm(shape / "model", {.dtype = at::kFloat, .adapters = {out / "adapter"}});
  CHECK(difference(all_logits(*merged, parity), logits) < 1e-4);
}

}  // namespace

TEST_CASE("adapters for PEFT") {
  uint64_t seed = 0;
  for (const char* shape : {"gqa", "one_kv_tied", "sharded"}) {
    INFO(shape);
    write_adapter(checkpoints() / shape, ++seed);
  }
}

TEST_CASE("new modules for torch.load") {
  int count = 0;
  for (const auto& file : fs::recursive_directory_iterator(golden_dir())) {
    if (file.path().filename() != "new_modules_gp.pt") continue;
    const fs::path out = written() / fs::relative(file.path(), golden_dir());
    fs::create_directories(out.parent_path());
    save_torch_zip(out, load_torch_zip(file.path()), {"attn_fuser", "le_proj", "le_norm"});
    ++count;
  }
  CHECK(count >= 8);
}
