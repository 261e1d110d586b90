#include "glimpse/base/options.h"

#include <algorithm>

namespace glimpse {

namespace {

// As the command line spells a value.
std::string spelled(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.is_null() ? "none" : json_text(value);
  std::string all;
  for (const auto& item : value) {
    if (!all.empty()) all += '+';
    all += spelled(item);
  }
  return all.empty() ? "none" : all;
}

}  // namespace

std::string detail::in_words(Range range) {
  constexpr double large = 1e6;
  const bool positive = range.low > 0 && range.low < 1e-6;
  if (range.high < large)
    return positive ? concat("above 0, at most ", range.high) : concat(range.low, " to ", range.high);
  return positive ? "above 0" : range.low > -large ? concat("at least ", range.low) : "";
}

std::string Field::about(std::string_view else_where) const {
  const nlohmann::json now = get();
  const bool own = now != "" && (else_where.empty() || !now.is_null());
  std::string words = allowed;
  if (own || !else_where.empty())
    words += concat(words.empty() ? "" : "; ", "default ", else_where,
                    own && !else_where.empty() ? ", else " : "", own ? spelled(now) : "");
  return words.empty() ? help : concat(help, " [", words, "]");
}

Fields& Fields::shown_as(std::string kind, char letter, bool repeats) {
  list_.back().kind = std::move(kind);
  list_.back().letter = letter;
  list_.back().repeats = repeats;
  return *this;
}

Fields& Fields::one_of(const std::vector<std::string>& names) {
  Field& field = list_.back();
  for (size_t i = 0; i < names.size(); ++i)
    field.allowed += concat(i == 0 ? "" : i + 1 < names.size() ? ", " : " or ", names[i]);
  field.set = [names, name = field.name, words = field.allowed,
               set = field.set](const nlohmann::json& value) {
    for (const nlohmann::json& one : value.is_array() ? value : nlohmann::json::array({value}))
      check(one.is_null() || std::any_of(names.begin(), names.end(),
                                         [&](const std::string& known) { return one == known; }),
            name, ": expected ", words, ", got ",
            one.is_string() ? concat("'", one.get<std::string>(), "'") : json_text(one));
    set(value);
  };
  return *this;
}

Fields& Fields::append(const Fields& part) {
  list_.insert(list_.end(), part.list_.begin(), part.list_.end());
  return *this;
}

nlohmann::json Fields::to_json() const {
  nlohmann::json object = nlohmann::json::object();
  for (const Field& field : list_) object[field.name] = field.get();
  return object;
}

const Field& Fields::find(std::string_view name, std::string_view owner) const {
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '-', '_');
  std::vector<std::string> known;
  for (const Field& field : list_) {
    if (field.name == wanted) return field;
    known.push_back(field.name);
  }
  const std::string near = nearest(wanted, known);
  std::string all;
  for (const std::string& each : known) all += (all.empty() ? "" : ", ") + each;
  fail(owner, ": unknown setting '", name, "'", near.empty() ? "" : "; did you mean '" + near + "'?",
       " (known: ", all.empty() ? "none" : all, ")");
}

void Fields::from_json(const nlohmann::json& object, std::string_view owner) {
  check(object.is_object(), owner, ": expected an object of settings, got ", json_text(object));
  for (const auto& [key, value] : object.items()) {
    const Field& field = find(key, owner);
    try {
      field.set(value);
    } catch (const Error& error) {
      fail(owner, ": ", error.what());
    }
  }
}

void Fields::set(std::string_view name, std::string_view text, std::string_view owner) {
  const Field& field = find(name, owner);
  const auto attempt = [&](const nlohmann::json& value) {
    try {
      field.set(value);
      return std::string();
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  // The text is tried as JSON (numbers, booleans), then as text, then as a '+'-separated list of either.
  nlohmann::json parsed =
      text == "none" ? nlohmann::json(nullptr) : nlohmann::json::parse(text, nullptr, false);
  std::string problem;
  if (!parsed.is_discarded() && (problem = attempt(parsed)).empty()) return;
  std::string as_text = attempt(std::string(text));
  if (as_text.empty()) return;
  nlohmann::json items = nlohmann::json::array(), numbers = items;
  std::istringstream stream{std::string(text)};
  for (std::string item; std::getline(stream, item, '+');) {
    items.push_back(item);
    numbers.push_back(nlohmann::json::parse(item, nullptr, false));
  }
  if (attempt(items).empty() || attempt(numbers).empty()) return;
  fail(owner, ": ", problem.empty() ? as_text : problem);
}

}  // namespace glimpse
