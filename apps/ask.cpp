#include <fstream>
#include <iostream>

#include "flags.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/image/decode.h"
#include "glimpse/image/overlay.h"
#include "paths.h"

namespace glimpse::app {

namespace {

struct AskFlags {
  CommonFlags common;
  std::vector<std::string> images, boxes;
  std::string question, mask_out, overlay_out, scores_out;
  bool json = false, quiet = false;
};

// "x1,y1,x2,y2;..." in pixels of the image.
std::vector<Box> parse_boxes(const std::string& text, const Image& image) {
  std::vector<Box> boxes;
  std::istringstream all(text);
  for (std::string one; std::getline(all, one, ';');) {
    double v[4];
    char comma[3], rest;
    std::istringstream in(one);
    in >> v[0] >> comma[0] >> v[1] >> comma[1] >> v[2] >> comma[2] >> v[3];
    check(!in.fail() && comma[0] == ',' && comma[1] == ',' && comma[2] == ',' && !(in >> rest),
          "--reference-boxes: expected x1,y1,x2,y2 in pixels, boxes separated by ';', got '", one, "'");
    boxes.push_back(normalise_box({v[0], v[1], v[2], v[3]}, image.width, image.height));
  }
  return boxes;
}

void write_pictures(const AskFlags& flags, const Answer& answer, const std::vector<Image>& images) {
  for (size_t i = 0; i < images.size(); ++i) {
    const std::vector<KeptGrid> grids = kept_grids(answer.segments, answer.keep, static_cast<int64_t>(i));
    if (!flags.overlay_out.empty())
      save_png(draw_kept(images[i], grids), numbered(flags.overlay_out, i, images.size()));
    if (!flags.mask_out.empty())
      save_mask_png(grids, images[i].width, images[i].height, numbered(flags.mask_out, i, images.size()));
  }
}

// What is written, once there is an answer about `images` images.
std::vector<NamedPath> outputs_of(const AskFlags& flags, size_t images) {
  std::vector<NamedPath> outputs;
  for (const auto& [flag, file] :
       {std::pair("--overlay-out", flags.overlay_out), {"--mask-out", flags.mask_out}}) {
    if (file.empty()) continue;
    check(images > 0, flag, ": there is no image to draw; name one with --image");
    for (size_t i = 0; i < images; ++i) outputs.push_back({flag, numbered(file, i, images)});
  }
  if (!flags.scores_out.empty()) outputs.push_back({"--scores-out", flags.scores_out});
  return outputs;
}

// A grid of an image; where one has several it says whose it is.
nlohmann::json image_json(const Answer& answer, size_t i) {
  const Segment& grid = answer.segments[i];
  nlohmann::json out = {{"rows", grid.rows},
                        {"cols", grid.cols},
                        {"visual_tokens", grid.count()},
                        {"kept_tokens", answer.keep[i].size()},
                        {"keep", answer.keep[i]}};
  if (shares_media(answer.segments)) out["image"] = grid.medium;
  return out;
}

void write_scores(const std::string& path, const Answer& answer) {
  check(!answer.scores.empty(), "--scores-out: no method with scores ran (use --prune glimpse and an image)");
  nlohmann::json list = nlohmann::json::array();
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& image = answer.segments[i];
    const auto begin = answer.scores.begin() + image.first;
    nlohmann::json entry = image_json(answer, i);
    entry["probability"] = std::vector<float>(begin, begin + image.count());
    list.push_back(entry);
  }
  AtomicFile file(path);
  file.stream() << nlohmann::json{{"images", list}}.dump() << "\n";
  file.commit();
}

nlohmann::json answer_json(const Answer& answer) {
  nlohmann::json images = nlohmann::json::array();
  for (size_t i = 0; i < answer.segments.size(); ++i) images.push_back(image_json(answer, i));
  return {{"answer", answer.text},
          {"token_ids", answer.ids},
          {"finish_reason", answer.finish_reason},
          {"prompt_tokens", answer.prompt_tokens},
          {"cached_tokens", answer.cached_tokens},
          {"visual_tokens", answer.visual_tokens},
          {"kept_tokens", answer.kept_tokens},
          {"images", images},
          {"pruning", answer.pruning},
          {"times_ms", answer.times.to_json()},
          {"decode_tokens_per_s", answer.decode_rate()},
          {"kv_cache_bytes", answer.kv_bytes},
          {"peak_memory_mib", peak_memory_mib()}};
}

int run(AskFlags& flags, Interrupt& interrupt) {
  check(std::count(flags.images.begin(), flags.images.end(), "-") <= 1,
        "--image -: standard input holds one image");
  flags.common.check_used(!flags.images.empty());
  // An answer may take long: what cannot be written is better said before it.
  const std::vector<NamedPath> outputs = outputs_of(flags, flags.images.size());
  std::vector<NamedPath> inputs;
  for (const std::string& path : flags.images) inputs.push_back({"--image", path});
  check_outputs(outputs, inputs);
  for (const NamedPath& output : outputs) AtomicFile{output.path};
  std::vector<Image> images;
  for (const std::string& path : flags.images)
    images.push_back(load_image(path, flags.common.bounds.decode_options()));
  flags.common.fetching.provide(flags.common.engine, interrupt);
  EngineOptions options = flags.common.engine;
  if (!options.cache_dir.empty()) options.cache_mb = 1024;  // what goes to the disk is in memory first
  const auto engine = Engine::load(options);
  if (!flags.boxes.empty() && flags.common.prune == "auto") flags.common.prune = "reference";
  Request request = flags.common.request(*engine);
  Message& message = request.messages.emplace_back();
  message.role = "user";
  for (size_t i = 0; i < images.size(); ++i) message.parts.push_back({Part::Kind::image, {}});
  message.parts.push_back({Part::Kind::text, flags.question});
  request.images = images;
  if (!flags.boxes.empty()) {
    const auto pruners = make_pruners(request.prune, engine->pruner_context());
    check(
        std::any_of(pruners.begin(), pruners.end(), [](const auto& pruner) { return pruner->taps().boxes; }),
        "--reference-boxes belongs to the method reference; --prune ", request.prune, " would not read it");
    check(flags.boxes.size() == images.size(), "--reference-boxes: give it once per image: ", images.size(),
          " images, ", flags.boxes.size(), " lists of boxes");
    for (size_t i = 0; i < images.size(); ++i)
      request.boxes.push_back(parse_boxes(flags.boxes[i], images[i]));
  }
  request.stop = interrupt.arm();
  if (!flags.json) request.on_text = [](const std::string& text) { std::cout << text << std::flush; };

  const Answer answer = engine->ask(request);
  if (flags.json) {
    std::cout << answer_json(answer).dump(2) << std::endl;
  } else {
    std::cout << std::endl;
    if (!flags.quiet) std::cerr << summary(answer) << "\n" << cut_note(answer, request.max_new_tokens);
  }
  if (answer.finish_reason == "cancelled") {
    std::cerr << "glimpse: stopped\n";
    return 130;
  }
  write_pictures(flags, answer, images);
  if (!flags.scores_out.empty()) write_scores(flags.scores_out, answer);
  return 0;
}

}  // namespace

std::function<int()> add_ask(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<AskFlags>();
  app.add_option("question", flags->question, "what to ask")->required();
  app.add_option("-i,--image", flags->images, "image file, repeatable; - reads standard input")
      ->type_name("FILE")
      ->allow_extra_args(false)
      ->group("Images");
  flags->common.add(app);
  add_cache_dir_flags(app, flags->common.engine);
  app.add_option("--reference-boxes", flags->boxes,
                 "keep the tokens inside these boxes instead of asking the predictor: x1,y1,x2,y2[;...] in "
                 "pixels, once "
                 "per image")
      ->type_name("BOXES")
      ->allow_extra_args(false)
      ->group("Pruning");
  app.add_option("--overlay-out", flags->overlay_out, "write the image with the kept tokens marked (PNG)")
      ->type_name("FILE")
      ->group("Output");
  app.add_option("--mask-out", flags->mask_out, "write the kept tokens as a black and white mask (PNG)")
      ->type_name("FILE")
      ->group("Output");
  app.add_option("--scores-out", flags->scores_out, "write each visual token's probability (JSON)")
      ->type_name("FILE")
      ->group("Output");
  app.add_flag("--json", flags->json, "print one JSON object instead of streaming the answer")
      ->group("Output");
  app.add_flag("-q,--quiet", flags->quiet, "print the answer only")->group("Output");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
