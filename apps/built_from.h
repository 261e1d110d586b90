#pragma once

namespace glimpse::app {

/// The commit that the program was built from, "+" and a mark if its sources had changed since; its version
/// where there is no git (cmake/built_from.cmake).
extern const char* const kBuiltFrom;

}  // namespace glimpse::app
