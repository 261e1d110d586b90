#include "glimpse/base/web_page.h"

#include <algorithm>

#include "glimpse/base/chart.h"
#include "glimpse/base/check.h"
#include "glimpse/base/web_text.h"

namespace glimpse {

using nlohmann::json;

namespace {

const char* const kPageStyle = R"css(
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b2230; --soft: #5b6576; --line: #dfe3ea; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151b; --card: #1b2029; --text: #e8ebf1; --soft: #9aa5b8; --line: #303846; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.15rem; }
.soft { margin: .2rem 0 0; color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; min-width: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .8rem; margin-top: 1.4rem; }
.tiles .card { padding: .7rem 1rem; }
.tiles b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 500; }
th:first-child, .settings td { text-align: left; }
.settings td { overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; }
.example p { margin: 0 0 .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
.pair figure { margin: 0; }
.pair img { width: 100%; border-radius: 6px; display: block; }
.pair figcaption { color: var(--soft); font-size: .85rem; }
)css";

}  // namespace

std::string section(const std::string& title, const std::string& body) {
  return body.empty() ? "" : concat("<h2>", title, "</h2>\n", body);
}

std::string settings_table(const json& settings) {
  if (settings.empty()) return "";
  const json flat = settings.flatten();
  std::string rows;
  for (const auto& [key, value] : flat.items()) {
    // "/data/0" is "data.0".
    std::string name = key.substr(std::min<size_t>(1, key.size()));
    std::replace(name.begin(), name.end(), '/', '.');
    rows += concat("<tr><th>", escape_html(name), "</th><td>",
                   escape_html(value.is_string() ? value.get<std::string>() : value.dump()), "</td></tr>\n");
  }
  return rows.empty() ? ""
                      : "<div class='card scroll'><table class='settings'>\n" + rows + "</table></div>\n";
}

std::string web_page(const std::string& title, const std::string& heading, const std::string& subtitle,
                     const std::string& body, const std::string& more_style) {
  return concat("<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n",
                "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<title>", title,
                "</title>\n<style>", kPageStyle, kChartStyle, more_style, "</style></head><body>\n<h1>",
                heading, "</h1>\n<p class='soft'>", subtitle, "</p>\n", body, "</body></html>\n");
}

}  // namespace glimpse
