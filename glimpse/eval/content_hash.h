#pragma once

#include <string>
#include <string_view>

namespace glimpse {

/// 16 hexadecimal digits that name these bytes, on every machine the same (XXH3).
std::string content_hash(std::string_view bytes);

}  // namespace glimpse
