#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace glimpse {

/// A page on its own, without scripts, that follows the screen's light or dark setting: a heading, a line
/// below it, and the body. All are HTML already. The body may use charts (base/chart.h) and these classes:
/// card, tiles, grid2 (cards side by side), scroll, soft, pair.
std::string web_page(const std::string& title, const std::string& heading, const std::string& subtitle,
                     const std::string& body, const std::string& more_style = "");

/// A heading and what belongs to it; "" when that is empty.
std::string section(const std::string& title, const std::string& body);

/// Settings of any depth, one a row: "data.0" and its value.
std::string settings_table(const nlohmann::json& settings);

}  // namespace glimpse
