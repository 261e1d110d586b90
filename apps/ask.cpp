#include <fstream>
#include <iostream>

#include "flags.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/engine/kept_pictures.h"
#include "glimpse/engine/row_media.h"
#include "glimpse/image/video_out.h"
#include "glimpse/io/row_box.h"
#include "media.h"
#include "paths.h"

namespace glimpse::app {

namespace {

struct AskFlags {
  CommonFlags common;
  std::vector<MediumFile> media;
  std::vector<std::string> boxes;
  std::string question, mask_out, overlay_out, scores_out;
  bool json = false, quiet = false;
};

// Numbers with commas between them; none if it is anything else.
std::vector<double> numbers_in(const std::string& text) {
  std::vector<double> numbers;
  std::istringstream in(text);
  char comma = ',';
  for (double number; comma == ',' && in >> number;) {
    numbers.push_back(number);
    if (!(in >> comma)) return numbers;
  }
  return {};
}

// "x1,y1,x2,y2;..." in pixels of the picture, or "x1,y1,x2,y2,from,to;..." with seconds of the video.
std::vector<Box> parse_boxes(const std::string& text, const Medium& medium) {
  const bool video = is_video(medium);
  const Size size = size_of(medium);
  std::vector<Box> boxes;
  std::istringstream all(text);
  for (std::string one; std::getline(all, one, ';');) {
    const std::vector<double> v = numbers_in(one);
    check(v.size() == 4 || (video && v.size() == 6), "--reference-boxes: expected x1,y1,x2,y2",
          video ? "[,from,to]" : "", " in pixels", video ? " and seconds" : "",
          ", boxes separated by ';', got '", one, "'");
    check(v.size() == 4 || v[4] <= v[5], "--reference-boxes: a box ends before it begins: '", one, "'");
    boxes.push_back(normalise_box(parse_box(v), size.width, size.height));
  }
  return boxes;
}

void write_pictures(const AskFlags& flags, const Answer& answer, const std::vector<Medium>& media) {
  for (size_t i = 0; i < media.size(); ++i) {
    const std::vector<KeptGrid> grids = kept_grids(answer.segments, answer.keep, static_cast<int64_t>(i));
    for (const auto& [file, style] :
         {std::pair(flags.overlay_out, KeptStyle::overlay), {flags.mask_out, KeptStyle::mask}})
      if (!file.empty()) save_kept(media[i], grids, style, numbered(file, i, media.size()));
  }
}

// What is written, once there is an answer about the media.
std::vector<NamedPath> outputs_of(const AskFlags& flags) {
  std::vector<NamedPath> outputs;
  for (const auto& [flag, file] :
       {std::pair("--overlay-out", flags.overlay_out), {"--mask-out", flags.mask_out}}) {
    if (file.empty()) continue;
    check(!flags.media.empty(), flag,
          ": there is no image to draw; name one with --image, or a video with --video");
    for (size_t i = 0; i < flags.media.size(); ++i) {
      check(flags.media[i].video || !is_video_name(file), flag, " ", file, ": ", flags.media[i].path,
            " is a picture, which is not drawn into a video; name a .png file");
      outputs.push_back({flag, numbered(file, i, flags.media.size())});
    }
  }
  if (!flags.scores_out.empty()) outputs.push_back({"--scores-out", flags.scores_out});
  return outputs;
}

// Whether a list of grids has to say whose each is.
bool says_media(const Answer& answer, const std::vector<Medium>& media) {
  return shares_media(answer.segments) || std::ranges::any_of(media, is_video);
}

// A grid of an image, or what a video shows at a time.
nlohmann::json grid_json(const Answer& answer, const std::vector<Medium>& media, size_t i) {
  const Segment& grid = answer.segments[i];
  nlohmann::json out = {{"rows", grid.rows},
                        {"cols", grid.cols},
                        {"visual_tokens", grid.count()},
                        {"kept_tokens", answer.keep[i].size()},
                        {"keep", answer.keep[i]}};
  const bool video = is_video(media[grid.medium]);
  if (says_media(answer, media)) out[video ? "video" : "image"] = grid.medium;
  if (video) out["seconds"] = grid.seconds;
  return out;
}

// Of all grids of each medium.
nlohmann::json media_json(const Answer& answer, const std::vector<Medium>& media) {
  nlohmann::json list = nlohmann::json::array();
  for (size_t i = 0; i < media.size(); ++i) {
    const auto [kept, all] = count_kept(answer, i);
    nlohmann::json& out = list.emplace_back(nlohmann::json{{"visual_tokens", all}, {"kept_tokens", kept}});
    const auto* const video = std::get_if<Video>(&media[i]);
    out[video ? "video" : "image"] = i;
    if (!video) continue;
    const ShownFrames shown = shown_frames(*video);
    out["frames"] = shown.indices;
    out["frames_per_second"] = shown.fps;
  }
  return list;
}

void write_scores(const std::string& path, const Answer& answer, const std::vector<Medium>& media) {
  check(!answer.scores.empty(), "--scores-out: no method with scores ran (use --prune glimpse and an image)");
  nlohmann::json list = nlohmann::json::array();
  for (size_t i = 0; i < answer.segments.size(); ++i) {
    const Segment& grid = answer.segments[i];
    const auto begin = answer.scores.begin() + grid.first;
    nlohmann::json entry = grid_json(answer, media, i);
    entry["probability"] = std::vector<float>(begin, begin + grid.count());
    list.push_back(entry);
  }
  nlohmann::json out = {{"images", list}};
  if (says_media(answer, media)) out["media"] = media_json(answer, media);
  AtomicFile file(path);
  file.stream() << out.dump() << "\n";
  file.commit();
}

nlohmann::json answer_json(const Answer& answer, const std::vector<Medium>& media) {
  nlohmann::json images = nlohmann::json::array();
  for (size_t i = 0; i < answer.segments.size(); ++i) images.push_back(grid_json(answer, media, i));
  nlohmann::json out = {{"answer", answer.text},
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
  if (says_media(answer, media)) out["media"] = media_json(answer, media);
  return out;
}

// A box list for each medium, for the method that reads them.
std::vector<std::vector<Box>> reference_boxes(const AskFlags& flags, const Engine& engine,
                                              const Request& request) {
  const auto pruners = make_pruners(request.prune, engine.pruner_context());
  check(std::ranges::any_of(pruners, [](const auto& pruner) { return pruner->taps().boxes; }),
        "--reference-boxes belongs to the method reference; --prune ", request.prune, " would not read it");
  const std::vector<Medium>& media = request.media;
  check(flags.boxes.size() == media.size(), "--reference-boxes: give it once per ",
        has_video(flags.media) ? "image and video" : "image", ": ", media.size(),
        has_video(flags.media) ? " of them, " : " images, ", flags.boxes.size(), " lists of boxes");
  std::vector<std::vector<Box>> boxes;
  for (size_t i = 0; i < media.size(); ++i) boxes.push_back(parse_boxes(flags.boxes[i], media[i]));
  return boxes;
}

int run(AskFlags& flags, Interrupt& interrupt) {
  check(std::ranges::count(flags.media, MediumFile{false, "-"}) <= 1,
        "--image -: standard input holds one image");
  flags.common.check_used(!flags.media.empty(), has_video(flags.media));
  // An answer may take long: what cannot be written is better said before it.
  const std::vector<NamedPath> outputs = outputs_of(flags);
  std::vector<NamedPath> inputs;
  for (const MediumFile& file : flags.media) inputs.push_back({file.flag(), file.path});
  check_outputs(outputs, inputs);
  for (const NamedPath& output : outputs) AtomicFile{output.path};
  std::vector<Medium> opened;
  for (const MediumFile& file : flags.media) opened.push_back(open_medium(file, flags.common));
  flags.common.provide(interrupt);
  for (Medium& medium : opened)
    if (auto* const video = std::get_if<Video>(&medium)) video->options = flags.common.video;
  EngineOptions options = flags.common.engine;
  if (!options.cache_dir.empty()) options.cache_mb = 1024;  // what goes to the disk is in memory first
  flags.common.asks_once = options.cache_dir.empty();
  const auto engine = Engine::load(options);
  if (!flags.boxes.empty() && flags.common.prune == "auto") flags.common.prune = "reference";
  Request request = flags.common.request(*engine);
  Message& message = request.messages.emplace_back();
  message.role = "user";
  request.media = std::move(opened);
  const std::vector<Medium>& media = request.media;
  for (const Medium& medium : media) message.parts.push_back(part_of(medium));
  message.parts.push_back({Part::Kind::text, flags.question});
  if (!flags.boxes.empty()) request.boxes = reference_boxes(flags, *engine, request);
  request.stop = interrupt.arm();
  if (!flags.json) request.on_text = [](const std::string& text) { std::cout << text << std::flush; };

  const Answer answer = engine->ask(request);
  if (flags.json) {
    std::cout << answer_json(answer, media).dump(2) << std::endl;
  } else {
    std::cout << std::endl;
    if (!flags.quiet)
      std::cerr << video_lines(answer, media) << summary(answer) << "\n"
                << cut_note(answer, request.max_new_tokens);
  }
  if (answer.finish_reason == "cancelled") {
    std::cerr << "glimpse: stopped\n";
    return 130;
  }
  write_pictures(flags, answer, media);
  if (!flags.scores_out.empty()) write_scores(flags.scores_out, answer, media);
  return 0;
}

}  // namespace

std::function<int()> add_ask(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<AskFlags>();
  app.add_option("question", flags->question, "what to ask")->required();
  add_media_flags(
      app, flags->media, "image file, repeatable; - reads standard input",
      "video file, or folder of its frames as pictures, repeatable; images and videos stand before "
      "the question in the order of these flags");
  flags->common.add(app);
  add_cache_dir_flags(app, flags->common.engine);
  app.add_option("--reference-boxes", flags->boxes,
                 "keep the tokens inside these boxes instead of asking the predictor: x1,y1,x2,y2[;...] in "
                 "pixels, of videos x1,y1,x2,y2[,from,to][;...] with seconds; once per image and video")
      ->type_name("BOXES")
      ->allow_extra_args(false)
      ->group("Pruning");
  app.add_option("--overlay-out", flags->overlay_out,
                 "write the image with the kept tokens marked (PNG); of a video a sheet of its frames "
                 "(.png), or a video (.mp4, .mov, .mkv)")
      ->type_name("FILE")
      ->group("Output");
  app.add_option("--mask-out", flags->mask_out,
                 "write the kept tokens as a black and white mask, in the same forms")
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
