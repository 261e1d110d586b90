#include <algorithm>
#include <iomanip>
#include <iostream>

#include "flags.h"
#include "glimpse/base/atomic_dir.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/io/safetensors.h"
#include "rows.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;

struct MergeFlags {
  std::string model, out;
  std::vector<std::string> adapters;
  uint64_t max_shard_size = 5'000'000'000;
  bool overwrite = false;
};

struct Shard {
  std::vector<std::string> names;  // canonical
  uint64_t bytes = 0;
};

std::vector<Shard> plan_shards(const Weights& weights, uint64_t max_bytes) {
  std::vector<Shard> shards(1);
  for (const std::string& name : weights.names()) {
    const uint64_t bytes = weights.bytes(name);
    if (!shards.back().names.empty() && shards.back().bytes + bytes > max_bytes) shards.emplace_back();
    shards.back().names.push_back(name);
    shards.back().bytes += bytes;
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

// Replacing removes what is there, so it must be an earlier output or empty, and no input.
void check_out(const MergeFlags& flags, const fs::path& model) {
  const fs::path out = flags.out;
  std::error_code ignored;
  if (!fs::exists(out, ignored)) return;
  check(flags.overwrite, "--out ", flags.out, " exists; name another one, or replace it with --overwrite");
  check(fs::is_directory(out) && (fs::is_empty(out, ignored) || fs::exists(out / "config.json", ignored)),
        "--out ", flags.out,
        " is no model directory (it has no config.json), so --overwrite does not replace it");
  const fs::path whole = fs::canonical(out) / "";
  std::vector<fs::path> inputs(flags.adapters.begin(), flags.adapters.end());
  inputs.push_back(model);
  for (const fs::path& input : inputs)
    check(!(fs::weakly_canonical(input) / "").string().starts_with(whole.string()), "--out ", flags.out,
          " is or holds ", input.string(), ", which is read");
}

// Everything that is read beside the weights: configurations, tokenizer, chat template.
void copy_companions(const fs::path& model, const fs::path& out) {
  for (const auto& entry : fs::directory_iterator(model)) {
    const std::string name = entry.path().filename().string(), ending = entry.path().extension().string();
    const bool wanted = ending == ".json" || ending == ".txt" || ending == ".model" || ending == ".jinja";
    if (!wanted || name.ends_with(".index.json") || !entry.is_regular_file()) continue;
    std::error_code error;
    fs::copy_file(entry.path(), out / name, error);
    check(!error, "cannot copy ", entry.path().string(), " to ", out.string(), ": ", error.message());
  }
}

void write_index(const Weights& weights, const std::vector<Shard>& shards, const fs::path& out) {
  nlohmann::json map = nlohmann::json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    total += shards[i].bytes;
    for (const std::string& name : shards[i].names)
      map[weights.name_in_file(name)] = shard_file(i, shards.size());
  }
  AtomicFile file(out / "model.safetensors.index.json");
  file.stream() << nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) << "\n";
  file.commit();
}

int run(const MergeFlags& flags, Interrupt& interrupt) {
  const fs::path model = resolve_model_dir(flags.model);
  check_out(flags, model);
  const std::stop_token stop = interrupt.arm();
  Weights weights = Weights::open(model, canonical_names(model));
  for (const std::string& adapter : flags.adapters) weights.merge_adapter(adapter);
  const std::vector<Shard> shards = plan_shards(weights, flags.max_shard_size);

  AtomicDirectory out(flags.out, flags.overwrite);
  std::error_code unknown;
  const fs::space_info disk = fs::space(out.temporary(), unknown);
  check(unknown || disk.available > weights.bytes(), "--out ", flags.out, " needs ",
        weights.bytes() / 1'000'000, " MB, and the disk has ", disk.available / 1'000'000, " MB left");
  size_t count = weights.names().size();
  {
    Progress progress(count, 0, "tensors");
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string file = shard_file(i, shards.size());
      std::map<std::string, at::Tensor> tensors;
      for (const std::string& name : shards[i].names) {
        if (stop.stop_requested()) {
          std::cerr << "\nglimpse: stopped; nothing was written\n";
          return 130;
        }
        tensors[weights.name_in_file(name)] = weights.raw(name);
        progress.step(file);
      }
      save_safetensors(out.temporary() / file, tensors, {{"format", "pt"}});
    }
  }
  if (shards.size() > 1) write_index(weights, shards, out.temporary());
  copy_companions(model, out.temporary());
  out.commit();
  std::cerr << flags.out << ": " << count << " tensors in " << shards.size()
            << (shards.size() == 1 ? " file, " : " files, ") << std::fixed << std::setprecision(2)
            << static_cast<double>(weights.bytes()) / 1e9 << " GB\n";
  return 0;
}

}  // namespace

std::function<int()> add_merge(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<MergeFlags>();
  app.add_option("-m,--model", flags->model,
                 "base model: directory, or hub id in the local Hugging Face cache")
      ->required()
      ->type_name("DIR")
      ->group("Model");
  app.add_option("--adapter", flags->adapters, "PEFT adapter directory to merge into the model (repeatable)")
      ->required()
      ->type_name("DIR")
      ->allow_extra_args(false)
      ->group("Model");
  app.add_option("-o,--out", flags->out, "directory of the merged checkpoint")
      ->required()
      ->type_name("DIR")
      ->group("Output");
  app.add_option("--max-shard-size", flags->max_shard_size,
                 "write several files when one would be larger (bytes, or with a unit: 500MB, 5GB, 4GiB)")
      ->type_name("SIZE")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->default_str("5GB")
      ->group("Output");
  app.add_flag("--overwrite", flags->overwrite, "replace an earlier output")->group("Output");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
