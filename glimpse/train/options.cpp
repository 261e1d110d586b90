#include "glimpse/train/options.h"

#include "glimpse/base/check.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/io/yaml.h"
#include "glimpse/score/answer_score.h"

namespace glimpse {

using nlohmann::json;

Fields TuneOptions::fields() {
  Fields fields;
  fields.add("stage", stage, "rl: drawn answers and their scores; sft: the rows' own answers")
      .one_of({"rl", "sft"})
      .add("adapter", adapter, "go on from this PEFT directory (default: a new adapter)")
      .shown_as("DIR")
      .append(lora.fields())
      .append(group.fields())
      .append(rollout.fields())
      .add("logprob", logprob,
           "what scores an answer's tokens: published (the dropped tokens absent from the first layer on) or "
           "sampled (as "
           "they were drawn)")
      .one_of({"published", "sampled"})
      .add("cut_layer", cut_layer,
           "prune behind this layer (none: that of --new-modules, else two thirds of them)", {0, 1e6})
      .add("max_seq_length", max_seq_length, "tokens of a pruned prompt and its answer that count", {2, 1e9})
      .add("recompute", recompute,
           "run each layer again for its gradients: memory does not grow with the layers, a step takes up to "
           "half as long again")
      .add("max_prompt", max_prompt, "leave out rows with longer prompts, in tokens", {1, 1e9})
      .add("max_pruned_prompt", max_pruned_prompt, "leave out rows whose pruned prompts are longer", {1, 1e9})
      .add("scores", scores,
           "score functions of rows without a member \"score\", which add up: llm, precision_match, "
           "precision_match_or_llm, single_choice, one_box_iou, one_box_format, command, ...")
      .add("judge_url", judge.url, "OpenAI-compatible server that scores free-form answers")
      .shown_as("URL")
      .add("judge_model", judge.model, "the judge's model as that server calls it")
      .add("judge_key_env", judge_key_env, "environment variable that holds the server's key")
      .add("judge_jobs", judge.jobs, "requests to the judge at a time", {1, 1024})
      .add("judge_tries", judge.tries, "tries per answer before giving up", {1, 1000})
      .add("judge_timeout", judge.timeout_s, "seconds to wait for a reply, per try", {0.001, 86400})
      .append(command.fields())
      .add("held_out", held_out,
           "rows that are not trained on but answered before and after, for the report; at most a tenth of "
           "all",
           {0, 64});
  return fields;
}

void TuneOptions::check_for(int64_t layers) const {
  check(!cut_layer || *cut_layer < layers, "cut_layer: is ", cut_layer.value_or(0), ", but the model has ",
        layers, " layers");
  check(!scores.empty(), "scores: name at least one");
  const auto& known = answer_score_names();
  for (const std::string& name : scores)
    check(std::ranges::count(known, name) > 0, "scores: '", name, "' is unknown");
}

Fields TrainOptions::fields() {
  Fields fields;
  fields.add("model", model, "model directory or hub id (default: the built-in one)").shown_as("DIR", 'm');
  if (tune) {
    fields.append(tune->fields())
        .add("new_modules", new_modules,
             "glimpse token and predictor that prune the prompts of rows without boxes, the adapter off")
        .shown_as("DIR")
        .add("cache_mb", cache_mb,
             "MiB for what the frozen encoder gives for pictures, which come again (0: none)", {0, 1e9})
        .add("cache_dir", cache_dir, "keep it there, too, for further epochs and runs")
        .shown_as("DIR")
        .add("cache_disk_gb", cache_disk_gb,
             "size of --cache-dir, in GiB; what was used least recently leaves", {0, 1e6});
  } else {
    fields.add("new_modules", new_modules, "go on from these modules (default: new ones)")
        .shown_as("DIR")
        .add("teacher", teacher, "modules that a scout learns from (default: the built-in model's)")
        .shown_as("DIR")
        .add("cache_mb", cache_mb,
             "MiB for what a scout's training keeps of pictures that several rows are about (0: none)",
             {0, 1e9})
        .add("cache_dir", cache_dir,
             "keep there what the frozen model makes of each row for a scout, for further epochs and "
             "trainings")
        .shown_as("DIR")
        .add("cache_disk_gb", cache_disk_gb, "size of --cache-dir, in GiB; what is more is made anew",
             {0, 1e6});
  }
  fields.add("image_root", image_root, "folder of the images: <root>/cot/<dataset>/<image> or <root>/<image>")
      .shown_as("DIR")
      .add("dataset", dataset, "only the rows of this set")
      .add("samples", samples, "take so many random rows of each file (0: all)", {0, 1e12})
      .add("max_bad_share", max_bad_share, "give up when more of the rows than this are broken", {0, 1})
      .add("epochs", epochs, "passes over the rows", {1, 1e6})
      .add("batch", batch, "examples per process that run together", {1, 4096})
      .add("accumulation", accumulation, "batches per step of the optimiser", {1, 1e6})
      .add("max_steps", max_steps, "stop after so many steps (0: after the epochs)", {0, 1e12});
  fields.append(optimiser.fields());
  if (!tune) fields.append(loss.fields());
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
      .add("save_every", save_every, "steps between checkpoints", {1, 1e9});
  if (tune) return fields;
  fields.add("overlay_every", overlay_every, "steps between pictures of what is kept (0: none)", {0, 1e9})
      .add("overlay_rows", overlay_rows, "rows in those pictures", {0, 64})
      .add("save_dtype", save_dtype, "type of the modules written at the end")
      .one_of({"fp32", "bf16"});
  return fields;
}

void TrainOptions::from_json(const json& given, const std::string& owner) {
  check(given.is_object(), owner, ": expected a mapping of settings");
  json flat = given;
  for (auto& [name, part] : {std::pair<const char*, json&>{"modules", modules}, {"scout", scout}})
    if (!tune && flat.contains(name)) {
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
  if (flat.contains("video")) {
    video.fields().from_json(flat["video"], owner + ": video");
    flat.erase("video");
  }
  fields().from_json(flat, owner);
}

json TrainOptions::to_json() {
  json out = fields().to_json();
  out["data"] = data;
  out["video"] = video.fields().to_json();
  if (tune) return out;
  out["modules"] = modules;
  out["scout"] = scout;
  return out;
}

void TrainOptions::read_yaml(const std::filesystem::path& file) {
  from_json(glimpse::read_yaml(file), file.string());
}

}  // namespace glimpse
