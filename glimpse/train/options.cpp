#include "glimpse/train/options.h"

#include "glimpse/base/check.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/io/yaml.h"

namespace glimpse {

using nlohmann::json;

Fields TrainOptions::fields() {
  Fields fields;
  fields
      .add("model", model,
           "model directory or hub id in the local Hugging Face cache (default: the built-in one)")
      .shown_as("DIR", 'm')
      .add("new_modules", new_modules, "go on from these modules (default: new ones)")
      .shown_as("DIR")
      .add("teacher", teacher, "modules that a scout learns from (default: the built-in model's)")
      .shown_as("DIR")
      .add("cache_mb", cache_mb,
           "MiB for what a scout's training keeps of pictures that several rows are about (0: none)",
           {0, 1e9})
      .add("cache_dir", cache_dir,
           "keep there what the frozen model makes of each row for a scout, for further epochs and trainings")
      .shown_as("DIR")
      .add("cache_disk_gb", cache_disk_gb, "size of --cache-dir, in GiB; what is more is made anew", {0, 1e6})
      .add("image_root", image_root, "folder of the images: <root>/cot/<dataset>/<image> or <root>/<image>")
      .shown_as("DIR")
      .add("dataset", dataset, "only the rows of this set")
      .add("samples", samples, "take so many random rows of each file (0: all)", {0, 1e12})
      .add("max_bad_share", max_bad_share, "give up when more of the rows than this are broken", {0, 1})
      .add("epochs", epochs, "passes over the rows", {1, 1e6})
      .add("batch", batch, "examples per process that run together", {1, 4096})
      .add("accumulation", accumulation, "batches per step of the optimiser", {1, 1e6})
      .add("max_steps", max_steps, "stop after so many steps (0: after the epochs)", {0, 1e12});
  for (const Fields& part : {optimiser.fields(), loss.fields()}) fields.append(part);
  fields.add("seed", seed, "seed of initial values, order, sampling and dropout", {0, 9e15})
      .add("dtype", dtype,
           "arithmetic of the frozen model; auto: fp32 for a checkpoint saved in it, else bf16")
      .one_of({"auto", "bf16", "fp32"})
      .add("device", device, "cpu, cuda or cuda:i")
      .add("threads", threads, "CPU threads (0: one per core)", {0, 4096})
      .shown_as("N", 't')
      .add("loader_threads", loader_threads, "threads that read and decode images", {0, 256})
      .add("min_pixels", min_pixels, "smaller images are enlarged to this", {1, 1e12})
      .add("max_pixels", max_pixels, "larger images are reduced to this", {1, 1e12})
      .add("log_every", log_every, "steps between log lines", {1, 1e9})
      .add("save_every", save_every, "steps between checkpoints", {1, 1e9})
      .add("overlay_every", overlay_every, "steps between pictures of what is kept (0: none)", {0, 1e9})
      .add("overlay_rows", overlay_rows, "rows in those pictures", {0, 64})
      .add("save_dtype", save_dtype, "type of the modules written at the end")
      .one_of({"fp32", "bf16"});
  return fields;
}

void TrainOptions::from_json(const json& given, const std::string& owner) {
  check(given.is_object(), owner, ": expected a mapping of settings");
  json flat = given;
  for (auto& [name, part] : {std::pair<const char*, json&>{"modules", modules}, {"scout", scout}})
    if (flat.contains(name)) {
      part = flat[name];
      check(part.is_object(), owner, ": ", name, ": expected a mapping of settings");
      flat.erase(name);
    }
  if (flat.contains("data")) {
    const json& files = flat["data"];
    data.clear();
    for (const json& file : files.is_array() ? files : json::array({files})) {
      check(file.is_string(), owner, ": data: expected a file name or a list of them, got ", files.dump());
      data.push_back(file.get<std::string>());
    }
    flat.erase("data");
  }
  fields().from_json(flat, owner);
}

json TrainOptions::to_json() {
  json out = fields().to_json();
  out["data"] = data;
  out["modules"] = modules;
  out["scout"] = scout;
  return out;
}

void TrainOptions::read_yaml(const std::filesystem::path& file) {
  from_json(glimpse::read_yaml(file), file.string());
}

}  // namespace glimpse
