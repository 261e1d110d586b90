#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace glimpse {

/// A number over the steps of a run, in the order of the steps.
struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< step, value; values that are not finite leave a gap
};

/// An HTML figure: the curves as inline SVG over one pair of axes, and a legend with each one's last value.
/// The vertical axis holds 0 and, if given, `top`. "" when there is nothing to draw. Colours come from
/// kChartStyle.
std::string draw_chart(const std::string& title, const std::vector<Curve>& curves,
                       std::optional<double> top = {});

/// The style sheet that draw_chart() counts on; it takes --text, --soft and --line from the page and defines
/// the curves' colours for light and dark screens.
extern const char* const kChartStyle;

/// Four significant digits, shortest form: "0.0125", "1e-05"; "–" for what is not finite.
std::string short_number(double value);

}  // namespace glimpse
