#pragma once

#include <string>
#include <string_view>

namespace glimpse {

/// The text as it may stand in HTML, in an attribute's quotes too.
std::string escape_html(std::string_view text);

/// RFC 4648, with padding.
std::string base64(std::string_view bytes);

}  // namespace glimpse
