#include <iostream>

#include "checkpoint_out.h"
#include "flags.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/engine/packed_copy.h"
#include "glimpse/models/vlm.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;

struct QuantizeFlags {
  Fetching fetching;
  std::string model, mmproj, out, weights = "int8";
  int64_t group = default_group;
  uint64_t max_shard_size = 5'000'000'000;
  int threads = 0;
  bool overwrite = false;
};

void note_in_config(const fs::path& dir, const QuantizeFlags& flags, int bits) {
  const fs::path path = dir / "config.json";
  nlohmann::json config = read_json(path);
  nlohmann::json& note = config["quantization_config"];
  note = {{"quant_method", "glimpse"}, {"bits", bits}};
  if (flags.weights == "int4") note["group_size"] = flags.group;
  AtomicFile file(path);
  file.stream() << config.dump(2) << "\n";
  file.commit();
}

int run(const QuantizeFlags& flags, Interrupt& interrupt) {
  check(flags.group == 32 || flags.group == 64, "--group: expected 32 or 64, got ", flags.group);
  const std::string model_name = flags.fetching.with_revision(flags.model);
  flags.fetching.provide({model_name}, interrupt);
  const std::unique_ptr<ModelSource> source = open_model(model_name, flags.mmproj);
  check_model_out(flags.out, flags.overwrite, {source->path(), source->mmproj()});
  const std::stop_token stop = interrupt.arm();
  set_threads(flags.threads);

  // Loading rounds the weights and says which tensors they were.
  std::map<std::string, LowBitWeight> rounded;
  LoadOptions load;
  load.dtype = checkpoint_dtype(source->config());
  load.weights.format = parse_weight_format(flags.weights);
  load.weights.group = flags.group;
  load.weights.on_rounded = [&](const std::string& name, const LowBitWeight& weight) {
    if (stop.stop_requested()) throw Cancelled();
    rounded.emplace(name + ".weight", weight);
  };
  try {
    load_vlm(*source, load);
  } catch (const Cancelled&) {
    std::cerr << "glimpse: stopped; nothing was written\n";
    return 130;
  }

  check(!rounded.empty(), source->path().string(),
        " has no layers in few bits to keep; round its weights with --weights int8 or int4");

  // A directory's tensors keep their names and types. Those of GGUF files get the published names, and the
  // type that they would be loaded in.
  const bool is_dir = source->mmproj().empty();
  const Weights weights = open_weights(*source);
  std::vector<TensorOut> tensors;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    tensors.push_back({name, tensor.nbytes(), [tensor] { return tensor; }});
  };
  for (const auto& [name, weight] : rounded) {
    const std::string in_file = is_dir && weights.contains(name) ? weights.name_in_file(name) : name;
    const std::string layer = in_file.substr(0, in_file.rfind(".weight"));
    for (const auto& [tensor_name, tensor] : tensors_of(layer, weight)) add(tensor_name, tensor);
  }
  for (const std::string& name : weights.names()) {
    if (rounded.contains(name)) continue;
    if (is_dir) {
      add(weights.name_in_file(name), weights.raw(name));
      continue;
    }
    const at::IntArrayRef shape = weights.shape(name);
    const uint64_t bytes = c10::multiply_integers(shape) * c10::elementSize(load.dtype);
    tensors.push_back({name, bytes, [&, name, shape] { return weights.take(name, shape, load.dtype); }});
  }
  const auto finish = [&](const fs::path& dir) {
    write_parts(*source, dir);
    int bits = 8;
    for (const auto& [name, weight] : rounded) bits = std::min(bits, weight.bits());
    note_in_config(dir, flags, bits);
  };
  if (write_model(flags.out, flags.overwrite, *source, tensors, flags.max_shard_size, stop, finish) > 0)
    return 0;
  std::cerr << "\nglimpse: stopped; nothing was written\n";
  return 130;
}

}  // namespace

std::function<int()> add_quantize(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<QuantizeFlags>();
  app.add_option("model", flags->model, "model: directory, hub id, or .gguf file")
      ->required()
      ->type_name("DIR");
  app.add_option("out", flags->out, "directory of the quantised checkpoint")->required()->type_name("OUT");
  app.add_option("--mmproj", flags->mmproj,
                 "the vision encoder's .gguf file, for a MODEL that is one (default: the one *mmproj* file "
                 "beside it)")
      ->type_name("FILE");
  app.add_option(
         "--weights", flags->weights,
         "int8 (one scale per output), int4 (and a multiple of it per group of inputs), or auto: layers "
         "that a GGUF, AWQ or GPTQ model has in few bits stay so, as --weights auto keeps them at load")
      ->type_name("BITS")
      ->check(CLI::IsMember({"int8", "int4", "auto"}).description(""))
      ->capture_default_str();
  app.add_option("--group", flags->group, "inputs that share a multiple in int4: 32 or 64")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--max-shard-size", flags->max_shard_size,
                 "write several files when one would be larger (bytes, or with a unit: 500MB, 5GB, 4GiB)")
      ->type_name("SIZE")
      ->transform(CLI::AsSizeValue(true).description(""))
      ->default_str("5GB");
  app.add_option("-t,--threads", flags->threads, "CPU threads (0: one per core)")
      ->type_name("N")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  flags->fetching.add(app, true, "Options");
  app.add_flag("--overwrite", flags->overwrite, "replace an earlier output");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
