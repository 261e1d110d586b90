#include <iostream>

#include "checkpoint_out.h"
#include "flags.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/io/quantization.h"
#include "glimpse/models/config.h"
#include "glimpse/models/vision_shape.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;

struct MergeFlags {
  Fetching fetching;
  std::string model, out;
  std::vector<std::string> adapters;
  uint64_t max_shard_size = 5'000'000'000;
  bool overwrite = false;
};

// The output head is written beside the embedding: they are no longer one.
void untie(const fs::path& file) {
  nlohmann::json config = read_json(file);
  config["tie_word_embeddings"] = false;
  if (config.contains("text_config")) config["text_config"]["tie_word_embeddings"] = false;
  AtomicFile out(file);
  out.stream() << config.dump(2) << "\n";
  out.commit();
}

int run(const MergeFlags& flags, Interrupt& interrupt) {
  const std::string model_name = flags.fetching.with_revision(flags.model);
  std::vector<std::string> names = flags.adapters;
  names.push_back(model_name);
  flags.fetching.provide(names, interrupt);
  const fs::path model = resolve_model_dir(model_name);
  std::vector<fs::path> inputs;
  for (const std::string& adapter : flags.adapters) inputs.push_back(resolve_model_dir(adapter));
  const std::vector<fs::path> adapters = inputs;
  inputs.push_back(model);
  check_model_out(flags.out, flags.overwrite, inputs);
  const std::stop_token stop = interrupt.arm();
  const std::unique_ptr<ModelSource> source = open_model_dir(model);
  const nlohmann::json config = source->config();
  const Quantization packing = Quantization::of(config, source->where("config.json"));
  check(!packing.is_packed(), model.string(), " is quantised (", packing.text(),
        "): merge into the model that it was made from, or name the adapter with --adapter when it runs");
  Weights weights = Weights::open(model, canonical_names(model));
  const bool tied = tied_head(text_config(config), config);
  const bool still_tied = merge_adapters(weights, adapters, tied);
  std::vector<TensorOut> tensors;
  for (const std::string& name : weights.names())
    tensors.push_back(
        {weights.name_in_file(name), weights.bytes(name), [&weights, name] { return weights.raw(name); }});
  const auto finish = [&](const fs::path& dir) {
    if (tied && !still_tied) untie(dir / "config.json");
  };
  if (write_model(flags.out, flags.overwrite, *source, tensors, flags.max_shard_size, stop, finish) > 0)
    return 0;
  std::cerr << "\nglimpse: stopped; nothing was written\n";
  return 130;
}

}  // namespace

std::function<int()> add_merge(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<MergeFlags>();
  app.add_option("-m,--model", flags->model, "base model: directory, or hub id")
      ->required()
      ->type_name("DIR")
      ->group("Model");
  app.add_option("--adapter", flags->adapters, "PEFT adapter directory to merge into the model (repeatable)")
      ->required()
      ->type_name("DIR")
      ->allow_extra_args(false)
      ->group("Model");
  flags->fetching.add(app);
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
