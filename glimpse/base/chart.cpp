#include "glimpse/base/chart.h"

#include <algorithm>
#include <cmath>
#include <iomanip>

#include "glimpse/base/check.h"
#include "glimpse/base/web_text.h"

namespace glimpse {

const char* const kChartStyle = R"css(
:root { --c0: #1f66d1; --c1: #d1490c; --c2: #1e8449; --c3: #8e36b0; --c4: #a17a00; --c5: #0e8a93;
  --c6: #c2185b; --c7: #6d6f00; --c8: #7a4b2a; --c9: #66717f; --c10: #0b5fa5; --c11: #b8860b; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #74a9ff; --c1: #ff9a62; --c2: #6fd08c; --c3: #d494f0; --c4: #e6c14c; --c5: #5fd3dc;
    --c6: #ff86b0; --c7: #c3c64a; --c8: #d3a27d; --c9: #aab4c2; --c10: #9fc9ff; --c11: #ffd97a; }
}
.chart { margin: 0; }
.chart figcaption { font-weight: 600; margin-bottom: .25rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--line); }
.chart .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .dot { stroke: none; }
.chart .dot.quiet { opacity: 0; }
.chart .dot:hover { opacity: 1; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .35rem 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: .85rem; }
.legend b { color: var(--text); font-weight: 600; font-variant-numeric: tabular-nums; }
.chart .dashed { stroke-dasharray: 7 5; }
.legend i { display: inline-block; width: 1.3rem; border-top: .2rem solid; vertical-align: middle; margin-right: .4rem; }
.legend i.dashed { border-top-style: dashed; }
)css";

namespace {

// The plane, in the units of the viewBox.
constexpr double kWidth = 640, kHeight = 280, kLeft = 62, kRight = 16, kTop = 10, kBottom = 42;
constexpr int kColours = 12, kPlain = 6;  // the other half of the colours is nearer to one another: dashed

/// Larger ones cannot be told from a loss that ran away, and their differences might not be finite.
bool drawable(double value) {
  return std::abs(value) < 1e100;
}

struct Axis {
  double low, high, step;  // of the values; between marks
  double from, to;         // of the plane

  double at(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

/// An axis over [low, high] with about `marks` marks at 1, 2 or 5 times a power of ten.
Axis make_axis(double low, double high, int marks, double least_step, double from, double to) {
  if (high - low < 1e-100) high = low + std::max(1.0, std::abs(low) * 0.1);
  const double rough = (high - low) / marks;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {5, 2, 1})
    if (factor * power >= rough) step = factor * power;
  return {low, high, std::max(step, least_step), from, to};
}

std::vector<double> marks_of(const Axis& axis) {
  std::vector<double> marks;
  const double slack = axis.step * 1e-6;
  for (double i = std::ceil((axis.low - slack) / axis.step); i * axis.step <= axis.high + slack; ++i)
    marks.push_back(i * axis.step + 0.0);  // never -0
  return marks;
}

/// At most 400 points: means of as many neighbours as it takes.
std::vector<std::pair<double, double>> thinned(const std::vector<std::pair<double, double>>& points) {
  const size_t together = (points.size() + 399) / 400;
  if (together <= 1) return points;
  std::vector<std::pair<double, double>> out;
  for (size_t first = 0; first < points.size(); first += together) {
    const size_t count = std::min(together, points.size() - first);
    double x = 0, y = 0;
    for (size_t i = first; i < first + count; ++i) {
      x += points[i].first / static_cast<double>(count);
      y += points[i].second / static_cast<double>(count);
    }
    out.emplace_back(x, y);
  }
  return out;
}

std::string grid(const Axis& x, const Axis& y, const ChartAxes& axes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1);
  for (const double mark : marks_of(y))
    out << "<line class='grid' x1='" << x.from << "' x2='" << x.to << "' y1='" << y.at(mark) << "' y2='"
        << y.at(mark) << "'/><text text-anchor='end' x='" << x.from - 8 << "' y='" << y.at(mark) + 4 << "'>"
        << short_number(mark) << "</text>";
  for (const double mark : marks_of(x))
    out << "<line class='grid' x1='" << x.at(mark) << "' x2='" << x.at(mark) << "' y1='" << y.from << "' y2='"
        << y.from + 5 << "'/><text text-anchor='middle' x='" << x.at(mark) << "' y='" << y.from + 19 << "'>"
        << (axes.whole_x ? concat(std::llround(mark)) : short_number(mark)) << "</text>";
  out << "<text text-anchor='middle' x='" << (x.from + x.to) / 2 << "' y='" << kHeight - 5 << "'>"
      << escape_html(axes.x_name) << "</text>";
  return out.str();
}

std::string line_of(const Curve& curve, const std::string& colour, const char* dashed, const Axis& x,
                    const Axis& y, const ChartAxes& axes) {
  const bool noted = curve.notes.size() == curve.points.size();
  const auto points = noted ? curve.points : thinned(curve.points);
  std::ostringstream path, dots;
  path << std::fixed << std::setprecision(1);
  dots << std::fixed << std::setprecision(1);
  const char* dot_class = points.size() <= 30 ? "dot" : "dot quiet";
  bool pen_down = false;
  for (size_t i = 0; i < points.size(); ++i) {
    const auto& [at, value] = points[i];
    if (drawable(value)) {
      path << (pen_down ? "L" : "M") << x.at(at) << " " << y.at(value);
      dots << "<circle class='" << dot_class << "' r='3' cx='" << x.at(at) << "' cy='" << y.at(value)
           << "'><title>" << escape_html(curve.name) << " " << short_number(value) << " at "
           << escape_html(axes.x_unit) << " " << (axes.whole_x ? concat(std::llround(at)) : short_number(at))
           << (noted ? ", " + escape_html(curve.notes[i]) : "") << "</title></circle>";
    }
    pen_down = drawable(value);
  }
  return concat("<path class='curve", dashed, "' style='stroke:", colour, "' d='", path.str(),
                "'/><g style='fill:", colour, "'>", dots.str(), "</g>");
}

}  // namespace

std::string short_number(double value) {
  if (!std::isfinite(value)) return "–";
  std::ostringstream out;
  out << std::setprecision(4) << value;
  return out.str();
}

std::string draw_chart(const std::string& title, const std::vector<Curve>& curves, const ChartAxes& axes) {
  double low = axes.zero ? 0 : INFINITY, high = axes.top.value_or(axes.zero ? 0 : -INFINITY),
         first = INFINITY, last = -INFINITY;
  for (const Curve& curve : curves)
    for (const auto& [step, value] : curve.points)
      if (drawable(value)) {
        low = std::min(low, value);
        high = std::max(high, value);
        first = std::min(first, step);
        last = std::max(last, step);
      }
  if (last < first) return "";
  const Axis x = make_axis(first, last, 8, axes.whole_x ? 1 : 0, kLeft, kWidth - kRight);
  Axis y = make_axis(low, high, 5, 0, kHeight - kBottom, kTop);
  if (!axes.top) y.high = std::ceil(y.high / y.step - 1e-9) * y.step;
  y.low = std::floor(y.low / y.step + 1e-9) * y.step;

  std::string lines, legend;
  for (size_t i = 0; i < curves.size(); ++i) {
    if (curves[i].points.empty()) continue;
    const std::string name = escape_html(curves[i].name);
    const std::string colour = concat("var(--c", i % kColours, ")");
    const char* const dashed = i % kColours < kPlain ? "" : " dashed";
    lines += line_of(curves[i], colour, dashed, x, y, axes);
    legend += concat("<li><i class='", dashed, "' style='color:", colour, "'></i>", name);
    if (axes.last_values) legend += concat(" <b>", short_number(curves[i].points.back().second), "</b>");
    legend += "</li>";
  }
  return concat("<figure class='chart'><figcaption>", escape_html(title),
                "</figcaption><svg role='img' aria-label='", escape_html(title), "' viewBox='0 0 ", kWidth,
                " ", kHeight, "'>", grid(x, y, axes), lines, "</svg><ul class='legend'>", legend,
                "</ul></figure>\n");
}

}  // namespace glimpse
