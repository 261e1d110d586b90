#pragma once

#include <exception>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace glimpse {

/// A mistake of the caller or in the data it gave: bad file, bad option, impossible request. Its text says
/// what was expected, what came, and where. Programs print it and exit with a non-zero status.
class Error : public std::runtime_error {
 public:
  /// What who answers for others (a server) has to tell apart.
  enum class Kind {
    wrong,      ///< the request cannot be answered as it is
    too_large,  ///< it is more than fits here
    busy,       ///< it may be asked again later
    cancelled,  ///< somebody stopped it
    internal    ///< not the caller's mistake
  };
  explicit Error(const std::string& text, Kind kind = Kind::wrong) : std::runtime_error(text), kind_(kind) {}
  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

/// The kind of any exception: of an Error its own, else internal.
Error::Kind kind_of(const std::exception_ptr& error);

/// Joins `parts` with operator<<.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws Error with the joined parts.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

/// Throws Error with the joined parts unless `condition` holds.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw Error(concat(parts...));
}

/// The same with a kind.
template <class... Parts>
[[noreturn]] void fail_as(Error::Kind kind, const Parts&... parts) {
  throw Error(concat(parts...), kind);
}
template <class... Parts>
void check_as(Error::Kind kind, bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw Error(concat(parts...), kind);
}

/// For mistakes of this program itself: throws std::logic_error naming the place.
inline void invariant(bool condition, std::string_view what,
                      std::source_location at = std::source_location::current()) {
  if (!condition) [[unlikely]]
    throw std::logic_error(concat("internal error at ", at.file_name(), ":", at.line(), ": ", what));
}

/// The candidate nearest to `name` (edit distance), or "" when none is near: for "did you mean" messages.
template <class Names>
std::string nearest(std::string_view name, const Names& candidates);

size_t edit_distance(std::string_view a, std::string_view b);

template <class Names>
std::string nearest(std::string_view name, const Names& candidates) {
  std::string best;
  size_t distance = name.size() / 2 + 1;
  for (const auto& candidate : candidates) {
    const size_t d = edit_distance(name, candidate);
    if (d < distance) {
      distance = d;
      best = candidate;
    }
  }
  return best;
}

}  // namespace glimpse
