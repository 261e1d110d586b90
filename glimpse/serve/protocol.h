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

/// A picture as the client names it.
struct PictureSource {
  std::string url;   ///< data:, file:, http: or https:, or "" if its uuid must do
  std::string uuid;  ///< under which it may be named again, or ""
};

/// What is served, as far as a request's meaning depends on it.
struct Served {
  const Engine* engine = nullptr;
  std::string name;                            ///< the model's id
  std::map<std::string, std::string> presets;  ///< further ids -> compositions
  int64_t max_images = 16;                     ///< of a request
  int64_t max_choices = 16;
  int64_t max_new_tokens = 512;  ///< where the client asks for no number

  std::vector<std::string> ids() const;
  /// Throws ApiError (404), which names the ids that there are, if this is none.
  void check_id(const std::string& id) const;
};

/// A body of /v1/chat/completions, understood.
struct ChatCall {
  Request request;                      ///< all but pictures and where its events go
  std::vector<PictureSource> pictures;  ///< one per image part
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

/// Visual tokens of all and kept, per image the grid and what was asked for, times of the stages.
nlohmann::json kept_json(const Answer& answer, const std::set<std::string>& wants);

/// Bytes of a base64 text (both alphabets, padding optional, white space allowed). Error if it is none.
std::string decode_base64(std::string_view text);

}  // namespace glimpse::serve
