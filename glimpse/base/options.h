#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"

namespace glimpse {

/// Allowed values of a number, both ends included.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
};

/// One setting of a component: its name, its meaning in one line, and access to the value as JSON.
struct Field {
  std::string name;  ///< snake_case; flags spell it with '-'
  std::string help;
  std::function<nlohmann::json()> get;
  std::function<void(const nlohmann::json&)> set;  ///< throws Error on a wrong type or range
  std::string kind;      ///< what a value looks like to people: N, NUMBER, TEXT, true|false, A+B for lists
  std::string allowed;   ///< values that it may have, in words, or ""
  char letter = 0;       ///< of its short flag, or 0
  bool repeats = false;  ///< its flag is given once per value

  /// Meaning, allowed values and the value that it has now, which is the default unless it was set: "longest
  /// answer [at least 1; default 512]". `else_where` says where a default comes from before that one.
  std::string about(std::string_view else_where = "") const;
};

/// The settings of a component. A component lists each once; JSON, composition strings, flags, --help and the
/// record in results all come from that list.
class Fields {
 public:
  /// `value` (bool, integer, floating point, string, optional of one, or vector of strings or numbers)
  /// must outlive the list.
  template <class T>
  Fields& add(std::string name, T& value, std::string help, Range range = {});

  /// How the setting added last appears as a flag.
  Fields& shown_as(std::string kind, char letter = 0, bool repeats = false);
  /// The setting added last, a text, is one of these.
  Fields& one_of(const std::vector<std::string>& names);

  /// Adds the settings of a part.
  Fields& append(const Fields& part);

  const std::vector<Field>& list() const { return list_; }
  nlohmann::json to_json() const;
  /// Sets every key of the object; an unknown key is an error that names the nearest known one. `owner` is
  /// used in errors.
  void from_json(const nlohmann::json& object, std::string_view owner);
  /// Sets one field from text ("0.5", "true", "tl+tr", "8+16"; "none" empties an optional or a list).
  void set(std::string_view name, std::string_view text, std::string_view owner);

 private:
  const Field& find(std::string_view name, std::string_view owner) const;
  std::vector<Field> list_;
};

namespace detail {

template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <class T>
void read_value(const nlohmann::json& json, T& value, const std::string& name, Range range) {
  if constexpr (IsOptional<T>::value) {
    if (json.is_null()) return value.reset();
    typename T::value_type inner{};
    read_value(json, inner, name, range);
    value = inner;
  } else if constexpr (std::is_same_v<T, bool>) {
    check(json.is_boolean(), name, ": expected true or false, got ", json_text(json));
    value = json.get<bool>();
  } else if constexpr (std::is_arithmetic_v<T>) {
    check(json.is_number() && (!std::is_integral_v<T> || json.is_number_integer()), name, ": expected ",
          std::is_integral_v<T> ? "an integer" : "a number", ", got ", json_text(json));
    const double number = json.get<double>();
    check(number >= range.low && number <= range.high, name, ": ", json_text(json), " is outside [",
          range.low, ", ", range.high, "]");
    value = json.get<T>();
  } else if constexpr (std::is_same_v<T, std::string>) {
    check(json.is_string(), name, ": expected text, got ", json_text(json));
    value = json.get<std::string>();
  } else {
    using Item = typename T::value_type;
    constexpr bool texts = std::is_same_v<Item, std::string>;
    value.clear();
    if (json.is_null()) return;
    check(json.is_array(), name, ": expected a list of ", texts ? "texts" : "numbers", ", got ",
          json_text(json));
    for (const auto& item : json) {
      check(item.is_string() == texts, name, ": expected a list of ", texts ? "texts" : "numbers", ", got ",
            json_text(json));
      read_value(item, value.emplace_back(), name, range);
    }
  }
}

template <class T>
std::string kind_of() {
  if constexpr (IsOptional<T>::value)
    return kind_of<typename T::value_type>();
  else if constexpr (std::is_same_v<T, bool>)
    return "true|false";
  else if constexpr (std::is_integral_v<T>)
    return "N";
  else if constexpr (std::is_floating_point_v<T>)
    return "NUMBER";
  else if constexpr (std::is_same_v<T, std::string>)
    return "TEXT";
  else
    return kind_of<typename T::value_type>() + "+...";
}

/// "0 to 1", "at least 1", or "" for any. Bounds that only keep numbers from overflowing are left out.
std::string in_words(Range range);

template <class T>
nlohmann::json write_value(const T& value) {
  if constexpr (IsOptional<T>::value)
    return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
  else
    return value;
}

}  // namespace detail

template <class T>
Fields& Fields::add(std::string name, T& value, std::string help, Range range) {
  list_.push_back(
      {name, std::move(help), [&value] { return detail::write_value(value); },
       [&value, name, range](const nlohmann::json& json) { detail::read_value(json, value, name, range); },
       detail::kind_of<T>(), detail::in_words(range)});
  return *this;
}

}  // namespace glimpse
