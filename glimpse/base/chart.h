#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace glimpse {

/// A number over another one, in the order in which the line connects them.
struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< x, value; values that are not finite leave a gap
  std::vector<std::string> notes = {};            ///< what a point's tooltip adds, if given one for each
};

/// What the axes of a chart mean.
struct ChartAxes {
  std::optional<double> top = {};         ///< the vertical axis holds this
  bool zero = true;                       ///< the vertical axis holds 0 too
  std::string x_name = "optimiser step";  ///< below the horizontal axis
  std::string x_unit = "step";            ///< in tooltips: "at step 5"
  bool whole_x = true;                    ///< marks at whole numbers only
  bool last_values = true;                ///< the legend shows each curve's last value
};

/// An HTML figure: the curves as inline SVG over one pair of axes, and a legend. "" when there is nothing to
/// draw. Colours come from kChartStyle.
std::string draw_chart(const std::string& title, const std::vector<Curve>& curves, const ChartAxes& axes);
inline std::string draw_chart(const std::string& title, const std::vector<Curve>& curves,
                              std::optional<double> top = {}) {
  return draw_chart(title, curves, ChartAxes{.top = top});
}

/// The style sheet that draw_chart() counts on; it takes --text, --soft and --line from the page and defines
/// the curves' colours for light and dark screens.
extern const char* const kChartStyle;

/// Four significant digits, shortest form: "0.0125", "1e-05"; "–" for what is not finite.
std::string short_number(double value);

}  // namespace glimpse
