#include "glimpse/serve/media_fields.h"

#include <algorithm>
#include <boost/algorithm/string/case_conv.hpp>

#include "glimpse/base/json_file.h"
#include "glimpse/serve/body_fields.h"

namespace glimpse::serve {

using nlohmann::json;

MediumSource medium_of(const json& part, const std::string& field, const std::string& where) {
  MediumSource source{{}, {}, field == "video_url"};
  const auto no_url = [&] {
    wrong(where + "." + field, std::string("expected {\"url\": \"data:") +
                                   (source.video ? "video/mp4" : "image/...") + ";base64,...\"}");
  };
  if (given(part, field.c_str())) {
    const json& named = part[field];
    const json& url = named.is_object() ? member(named, "url") : named;
    if (!url.is_string() && !url.is_null()) no_url();
    if (url.is_string()) source.url = url.get<std::string>();
    // Schemes are the same in capitals.
    const size_t scheme = std::min({source.url.find(':'), source.url.size(), size_t{8}});
    boost::algorithm::to_lower_copy(source.url.begin(), std::string_view(source.url).substr(0, scheme));
  }
  if (given(part, "uuid")) {
    if (!part["uuid"].is_string() || part["uuid"].get<std::string>().size() > 256)
      wrong(where + ".uuid", "expected a text of at most 256 characters");
    source.uuid = part["uuid"].get<std::string>();
  }
  if (source.url.empty() && source.uuid.empty()) no_url();
  return source;
}

int64_t videos_of(const ChatCall& call) {
  return std::ranges::count(call.media, true, &MediumSource::video);
}

namespace {

// A picture may be enlarged up to there: more visual tokens than any model has room for.
constexpr int64_t kMostPixels = int64_t{16} << 20;

// The settings of a video as vLLM, SGLang and transformers call them, and as they are called here.
constexpr std::pair<const char*, const char*> kVideoSettings[] = {{"num_frames", "frames"},
                                                                  {"min_frames", "min_frames"},
                                                                  {"max_frames", "max_frames"},
                                                                  {"total_pixels", "total_pixels"},
                                                                  {"video_start", "start"},
                                                                  {"video_end", "end"},
                                                                  {"fps", "fps"}};

// How frames are taken of videos, from the object `where`.
void read_video_settings(const json& from, const std::string& where, const Served& served, ChatCall& call) {
  const Fields fields = call.video.fields();
  const auto set = [&](const char* own, const char* name, const json& value) {
    const auto field =
        std::ranges::find_if(fields.list(), [&](const Field& each) { return each.name == own; });
    in_field(where + name, [&] { field->set(value); });
  };
  for (const auto& [name, own] : kVideoSettings) {
    if (!given(from, name)) continue;
    if (name != std::string_view("fps") || !from[name].is_array()) {
      set(own, name, from[name]);
      continue;
    }
    const json& list = from[name];  // as qwen-vl-utils gives them
    if (list.empty() || (std::ssize(list) != 1 && std::ssize(list) != videos_of(call)))
      wrong(where + name, concat("expected a number, or one for each of the ", videos_of(call), " videos"));
    for (const json& each : list) {
      set(own, name, each);
      call.fps.push_back(call.video.fps.value_or(0));
    }
  }
  for (const auto& [name, frames] :
       {std::pair("num_frames", call.video.frames), std::pair("max_frames", call.video.max_frames)})
    if (frames.value_or(0) > served.max_frames)
      wrong(where + name, concat("at most ", served.max_frames, " frames are taken here"));
}

void read_given(const json& body, const Served& served, ChatCall& call) {
  constexpr const char* where = "mm_processor_kwargs";
  if (given(body, "media_io_kwargs")) {  // vLLM's
    const json& io = body["media_io_kwargs"];
    if (!io.is_object()) wrong("media_io_kwargs", "expected an object");
    if (given(io, "video")) {
      if (!io["video"].is_object()) wrong("media_io_kwargs.video", "expected an object");
      json from = io["video"];
      for (const char* key : {"num_frames", "fps"})
        if (given(from, key) && from[key] == -1) from.erase(key);  // no bound
      read_video_settings(from, "media_io_kwargs.video.", served, call);
    }
  }
  if (!given(body, where)) return;
  const json& from = body[where];
  if (!from.is_object()) wrong(where, "expected an object");
  const Fields fields = call.request.bounds.fields();
  for (const Field& field : fields.list())
    if (given(from, field.name.c_str()))
      in_field(concat(where, ".", field.name), [&] { field.set(from[field.name]); });
  for (const auto& [key, pixels] : {std::pair("min_pixels", call.request.bounds.min_pixels),
                                    std::pair("max_pixels", call.request.bounds.max_pixels)})
    if (pixels.value_or(0) > kMostPixels)
      wrong(concat(where, ".", key), concat("at most ", kMostPixels, " pixels are allowed"));
  const auto& [least, most, preprocessing] = call.request.bounds;
  in_field(concat(where, least  ? ".min_pixels"
                         : most ? ".max_pixels"
                                : ".preprocessing"),
           [&] { served.engine->model().pixel_range(call.request.bounds); });
  read_video_settings(from, concat(where, "."), served, call);
  call.video.min_pixels = call.request.bounds.min_pixels;
  call.video.max_pixels = call.request.bounds.max_pixels;
}

}  // namespace

void read_preparation(const json& body, const Served& served, ChatCall& call) {
  read_given(body, served, call);
  call.video = call.video.or_else(served.video);
  call.video.max_frames =
      std::min(call.video.max_frames.value_or(VideoOptions::usual_max_frames), served.max_frames);
}

}  // namespace glimpse::serve
