#pragma once

#include <string_view>

namespace glimpse::serve {

/// The page at /: page.html, which asks for nothing from elsewhere.
extern const std::string_view kPage;

}  // namespace glimpse::serve
