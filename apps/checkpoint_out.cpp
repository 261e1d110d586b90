#include "checkpoint_out.h"

#include <iomanip>
#include <iostream>
#include <map>
#include <sstream>

#include "glimpse/base/atomic_dir.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/file_fetch.h"
#include "glimpse/io/safetensors.h"
#include "rows.h"

namespace glimpse::app {

namespace fs = std::filesystem;

namespace {

using Shard = std::vector<const TensorOut*>;

std::vector<Shard> plan_shards(const std::vector<TensorOut>& tensors, uint64_t max_bytes) {
  std::vector<Shard> shards(1);
  uint64_t filled = 0;
  for (const TensorOut& tensor : tensors) {
    if (!shards.back().empty() && filled + tensor.bytes > max_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(&tensor);
    filled += tensor.bytes;
  }
  return shards;
}

std::string shard_file(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  std::ostringstream name;
  name << std::setfill('0') << "model-" << std::setw(5) << index + 1 << "-of-" << std::setw(5) << count
       << ".safetensors";
  return name.str();
}

void write_index(const std::vector<Shard>& shards, uint64_t total, const fs::path& out) {
  nlohmann::json map = nlohmann::json::object();
  for (size_t i = 0; i < shards.size(); ++i)
    for (const TensorOut* tensor : shards[i]) map[tensor->name] = shard_file(i, shards.size());
  AtomicFile file(out / "model.safetensors.index.json");
  file.stream() << nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) << "\n";
  file.commit();
}

}  // namespace

void check_model_out(const fs::path& out, bool overwrite, const std::vector<fs::path>& inputs) {
  std::error_code ignored;
  if (!fs::exists(out, ignored)) return;
  check(overwrite, "--out ", out.string(), " exists; name another one, or replace it with --overwrite");
  check(fs::is_directory(out) && (fs::is_empty(out, ignored) || fs::exists(out / "config.json", ignored)),
        "--out ", out.string(),
        " is no model directory (it has no config.json), so --overwrite does not replace it");
  const fs::path whole = fs::canonical(out) / "";
  for (const fs::path& input : inputs)
    check(!(fs::weakly_canonical(input) / "").string().starts_with(whole.string()), "--out ", out.string(),
          " is or holds ", input.string(), ", which is read");
}

size_t write_model(const fs::path& out, bool overwrite, const ModelSource& model,
                   const std::vector<TensorOut>& tensors, uint64_t max_shard_size,
                   const std::stop_token& stop, const std::function<void(const fs::path&)>& finish) {
  const std::vector<Shard> shards = plan_shards(tensors, max_shard_size);
  uint64_t total = 0;
  for (const TensorOut& tensor : tensors) total += tensor.bytes;
  AtomicDirectory folder(out, overwrite);
  const uint64_t room = free_bytes(folder.temporary());
  check(room > total, "--out ", out.string(), " needs ", total / 1'000'000, " MB, and the disk has ",
        room / 1'000'000, " MB left");
  {
    Progress progress(tensors.size(), 0, "tensors");
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string file = shard_file(i, shards.size());
      std::map<std::string, at::Tensor> made;
      for (const TensorOut* tensor : shards[i]) {
        if (stop.stop_requested()) return 0;
        made[tensor->name] = tensor->make();
        progress.step(file);
      }
      save_safetensors(folder.temporary() / file, made, {{"format", "pt"}});
    }
  }
  if (shards.size() > 1) write_index(shards, total, folder.temporary());
  model.write_companions(folder.temporary());
  if (finish) finish(folder.temporary());
  folder.commit();
  std::cerr << out.string() << ": " << tensors.size() << " tensors in " << shards.size()
            << (shards.size() == 1 ? " file, " : " files, ") << std::fixed << std::setprecision(2)
            << static_cast<double>(total) / 1e9 << " GB\n";
  return shards.size();
}

}  // namespace glimpse::app
