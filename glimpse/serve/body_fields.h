#pragma once

#include "glimpse/base/options.h"
#include "glimpse/serve/protocol.h"

/// How fields of a request's body are read.
namespace glimpse::serve {

/// Throws ApiError (400): what is wrong with the field `param`.
[[noreturn]] inline void wrong(const std::string& param, std::string text) {
  // What comes from a list of settings names the field already.
  const std::string own = param.substr(param.rfind('.') + 1) + ": ";
  if (text.starts_with(own)) text.erase(0, own.size());
  throw ApiError(400, "invalid_request_error", param.empty() ? text : param + ": " + text, "", param);
}

/// Runs what throws Error for a field and names the field.
template <class Run>
void in_field(const std::string& param, const Run& run) {
  try {
    run();
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    wrong(param, error.what());
  } catch (const nlohmann::json::exception& error) {
    wrong(param, error.what());
  }
}

/// Whether it is there and not null.
inline bool given(const nlohmann::json& body, const char* key) {
  const auto found = body.find(key);
  return found != body.end() && !found->is_null();
}

/// A number within bounds.
template <class T>
T number(const nlohmann::json& body, const char* key, T low, T high, T otherwise) {
  if (!given(body, key)) return otherwise;
  T value{};
  in_field(key, [&] {
    detail::read_value(body[key], value, key, {static_cast<double>(low), static_cast<double>(high)});
  });
  return value;
}

/// `within`: where the body is, as in "stream_options.".
inline bool flag(const nlohmann::json& body, const char* key, const std::string& within = "") {
  if (!given(body, key)) return false;
  if (!body[key].is_boolean()) wrong(within + key, "expected true or false");
  return body[key].get<bool>();
}

}  // namespace glimpse::serve
