#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "glimpse/base/check.h"
#include "glimpse/nn/decoder.h"

namespace glimpse {

/// The member `key` of a config.json; `where` names the file. Error when it is missing or of another type.
template <class T>
T need(const nlohmann::json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  check(found != object.end() && !found->is_null(), where, ": ", key, " is missing");
  try {
    return found->get<T>();
  } catch (const nlohmann::json::exception&) {
    fail(where, ": ", key, " has an unexpected value ",
         found->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).substr(0, 200));
  }
}

/// The language model's shape from its part `text` of the config `top`. Biases are left to the family.
DecoderConfig decoder_config(const nlohmann::json& text, const nlohmann::json& top, const std::string& where);

}  // namespace glimpse
