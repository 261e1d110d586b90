#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/checkpoint.h"
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
    fail(where, ": ", key, " has an unexpected value ", json_text(*found).substr(0, 200));
  }
}

/// The same, or `fallback` when it is missing.
template <class T>
T setting(const nlohmann::json& object, const char* key, T fallback, const std::string& where) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? fallback : need<T>(object, key, where);
}

/// f(), with `where` before what an Error of it says.
template <class Function>
auto named(const std::string& where, Function f) {
  try {
    return f();
  } catch (const Error& error) {
    fail(where, ": ", error.what());
  }
}

/// Said of a model that is asked about an image without telling how it wants images prepared.
inline constexpr const char* no_preprocessor =
    ": neither preprocessor_config.json nor processor_config.json with an image_processor says how images "
    "are "
    "prepared; take the file from the model's publisher";

/// `value` without the members that are null, at any depth: there null means that something is not set.
nlohmann::json without_nulls(nlohmann::json value);

/// The rotary embedding's settings of the language model's part `text` of the config `top`, or else of `top`
/// itself: the member rope_parameters or, as older files call it, rope_scaling; an empty object if neither is
/// there. Error when both are there and only one of them scales.
nlohmann::json rope_settings(const nlohmann::json& text, const nlohmann::json& top, const std::string& where);

/// Whether they are of a kind that scales the embedding.
bool scales_rope(const nlohmann::json& rope);

/// DecoderConfig::windows of a language model of so many layers for at most `context` tokens: sliding_window
/// of the layers that layer_types or else use_sliding_window and max_window_layers name; a window that is
/// null or missing is none.
std::vector<int64_t> sliding_windows(const nlohmann::json& text, int64_t layers, int64_t context,
                                     const std::string& where);

/// Whether the output head is the input embedding.
bool tied_head(const nlohmann::json& text, const nlohmann::json& top);

/// The ids that end an answer, "eos_token_id" of config.json or generation_config.json: one, several or none.
std::vector<int64_t> end_ids(const nlohmann::json& config, const std::string& where);

/// Merges PEFT adapters. Returns whether head and embedding, `tied` before, are still one; see
/// Weights::merge_adapters.
bool merge_adapters(Weights& weights, const std::vector<std::filesystem::path>& adapters, bool tied);

/// The language model's shape from its part `text` of the config `top`. Biases are left to the family.
DecoderConfig decoder_config(const nlohmann::json& text, const nlohmann::json& top, const std::string& where);

}  // namespace glimpse
