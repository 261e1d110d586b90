#pragma once

#include <functional>
#include <initializer_list>
#include <string>

#include "builtin.h"
#include "glimpse/base/check.h"
#include "glimpse/models/vlm.h"
#include "io/scratch.h"

namespace glimpse::test {

/// What loading it in float32 is answered with.
inline std::string error_of(const BrokenModel& model) {
  try {
    load_vlm(model.dir(), {.dtype = at::kFloat});
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// The same of the built-in model after a change to its config.json.
inline std::string with_config(const std::function<void(nlohmann::json&)>& edit) {
  const BrokenModel model;
  model.edit_json("config.json", edit);
  const std::string error = error_of(model);
  const bool named =
      error.find(model.dir().string()) != std::string::npos || error.starts_with("vision_config");
  CHECK_MESSAGE((error == "no error" || named), error);
  return error;
}

/// `error` holds all parts.
inline void contains(const std::string& error, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    CHECK_MESSAGE(error.find(part) != std::string::npos, error << " lacks: " << std::string(part));
}

}  // namespace glimpse::test
