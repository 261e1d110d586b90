#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "glimpse/engine/engine.h"

namespace glimpse::serve {

/// What is told to the client instead of an answer, in OpenAI's words.
struct ApiError : std::runtime_error {
  ApiError(int http_status, std::string error_type, const std::string& text, std::string error_code = "",
           std::string error_param = "")
      : std::runtime_error(text),
        status(http_status),
        type(std::move(error_type)),
        code(std::move(error_code)),
        param(std::move(error_param)) {}
  int status;
  std::string type, code, param;
};
/// The body of an error: {"error": {"message", "type", "param", "code"}}.
nlohmann::json error_json(const ApiError& error);
/// The same for anything that was thrown: what the engine says of a request has its kind's status.
ApiError api_error(const std::exception_ptr& error);

/// A picture or a video as the client names it.
struct MediumSource {
  std::string url;   ///< data:, file:, http: or https:, or "" if its uuid must do
  std::string uuid;  ///< under which it may be named again, or ""
  bool video = false;

  std::string noun() const { return video ? "video" : "picture"; }
};

/// What is served, as far as a request's meaning depends on it.
struct Served {
  const Engine* engine = nullptr;
  std::string name;                                     ///< the model's id
  std::map<std::string, std::string> presets;           ///< further ids -> compositions
  bool videos = true;                                   ///< whether the model knows them
  int64_t max_images = 16, max_videos = 4;              ///< of a request
  int64_t max_frames = VideoOptions::usual_max_frames;  ///< of a video
  VideoOptions video;                                   ///< as the model wants them shown
  int64_t max_choices = 16;
  int64_t max_new_tokens = 512;  ///< where the client asks for no number

  std::vector<std::string> ids() const;
  /// Throws ApiError (404), which names the ids that there are, if this is none.
  void check_id(const std::string& id) const;
};

/// A body of /v1/chat/completions, understood.
struct ChatCall {
  Request request;                  ///< all but media and where its events go
  std::vector<MediumSource> media;  ///< one per part that is no text
  VideoOptions video;               ///< of every video
  std::vector<double> fps;          ///< of each video, if clients say it of each
  int64_t choices = 1;
  bool stream = false, include_usage = false, logprobs = false;
  std::string model;            ///< the id asked for
  std::set<std::string> wants;  ///< of keep, scores, overlay
};

/// A request's body: a JSON object whose values are nested no deeper than any request's meaning is, so that
/// nothing that walks through it runs out of stack. Errors: ApiError.
nlohmann::json parse_body(const std::string& text);

/// Errors: ApiError, which says which field is wrong and what is allowed.
ChatCall read_chat(const nlohmann::json& body, const Served& served);

/// Visual tokens of all and kept, per grid of an image or video its size and what was asked for, times of the
/// stages.
nlohmann::json kept_json(const Answer& answer, const ChatCall& call);

/// Bytes of a base64 text (both alphabets, padding optional, white space allowed). Error if it is none.
std::string decode_base64(std::string_view text);

}  // namespace glimpse::serve
