#include "glimpse/train/report.h"

#include <cmath>

#include "glimpse/base/chart.h"
#include "glimpse/base/web_text.h"
#include "glimpse/image/overlay.h"
#include "glimpse/train/metrics.h"
#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::contents;
using glimpse::test::error_of;
using glimpse::test::Scratch;

namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// A page that a browser can show on its own: tags are balanced, nothing is fetched and nothing runs.
void check_page(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find("<body>"); (at = html.find('<', at)) != html.npos;) {
    const size_t end = html.find('>', at);
    REQUIRE(end != html.npos);
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find(' '));
    if (name.starts_with('/')) {
      if (name == "/html") break;
      REQUIRE(!open.empty());
      REQUIRE("/" + open.back() == name);
      open.pop_back();
    } else if (name != "img" && !tag.ends_with('/')) {
      open.push_back(name);
    }
    at = end;
  }
  CHECK(open.empty());
  for (const char* never : {"<script", "http:", "https:", "url(", "nan", "inf"})
    CHECK(count(html, never) == 0);
}

}  // namespace

TEST_CASE("text for the web") {
  CHECK(escape_html("<a href=\"x\">'&amp;") == "&lt;a href=&quot;x&quot;&gt;&#39;&amp;amp;");
  // RFC 4648, section 10.
  const char* const vectors[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
  for (size_t i = 0; i < 7; ++i) CHECK(base64(std::string("foobar").substr(0, i)) == vectors[i]);
  CHECK(base64("\xff\xef\xbe") == "/+++");
}

TEST_CASE("a report of a run") {
  const Scratch scratch;
  {
    MetricsLog log(scratch / "my run <1>");
    for (int64_t step = 0; step <= 2000; step += 2) {
      StepMetrics metrics{.step = step, .epoch = static_cast<double>(step) / 1000};
      metrics.add("loss", step == 500 ? NAN : std::exp(-static_cast<double>(step) / 400));
      metrics.add("f1", static_cast<double>(step) / 2000);
      if (step % 500 == 0) metrics.add("val/f1", 0.5);
      metrics.add("<reward>", -3.5);
      log.write(metrics);
    }
  }
  scratch.write("my run <1>/train.json",
                R"({"lr": 0.0001, "data": [{"file": "<b>x.jsonl"}], "none": null, "empty": {}})");
  std::filesystem::create_directories(scratch / "my run <1>/overlays");
  const auto save = [&](const char* name, uint8_t grey) {
    save_png({4, 4, std::vector<uint8_t>(48, grey)}, scratch / "my run <1>/overlays" / name);
    return base64(contents(scratch / "my run <1>/overlays" / name));
  };
  const std::string first = save("step-000000-row-3.png", 0), middle = save("step-001000-row-3.png", 9),
                    last = save("step-002000-row-3.png", 80), only = save("step-002000-row-12.png", 99);
  save("step-x-row-12.png", 1);
  scratch.write("my run <1>/overlays/row-3.txt", "What is <this>?");
  write_report(scratch / "my run <1>" / "");
  const std::string html = contents(scratch / "my run <1>/report.html");
  check_page(html);
  CHECK(html.find("<h1>my run &lt;1&gt;</h1>") != html.npos);
  CHECK(html.find("step 2000, epoch 2") != html.npos);
  CHECK(html.find("<th>data.0.file</th><td>&lt;b&gt;x.jsonl</td>") != html.npos);
  CHECK(html.find("<th>lr</th><td>0.0001</td>") != html.npos);
  CHECK(html.find("What is &lt;this&gt;?") < html.find("row 12"));
  CHECK(html.find(first) < html.find(last));
  CHECK(html.find(last) < html.find(only));
  CHECK(html.find(only) != html.npos);
  CHECK(html.find(middle) == html.npos);
  CHECK(html.find("<tr><th>loss</th><td>1</td><td>0.006738</td><td>0.006738</td><td>1</td></tr>") !=
        html.npos);
  CHECK(count(html, "<svg") == 4);  // losses, masks, the reward, masks of val
  CHECK(html.find("Kept tokens against the boxes (val)") != html.npos);
  CHECK(html.size() < 400'000);
}

TEST_CASE("a report of little, and of nothing") {
  const Scratch scratch;
  scratch.write("run/metrics.jsonl", "{\"step\": 0, \"loss\": null}\n{\"step\": 1000000000000000}\n");
  write_report(scratch / "run");
  check_page(contents(scratch / "run/report.html"));
  scratch.write("run/metrics.jsonl",
                "{\"step\": 5, \"loss\": 1e300, \"lr\": 1e-320, \"a\": -1e99, \"b\": 0}\n");
  write_report(scratch / "run");
  check_page(contents(scratch / "run/report.html"));
  scratch.write("run/train.json", "[1]");
  CHECK(error_of([&] { write_report(scratch / "run"); }).find("train.json: expected an object") !=
        std::string::npos);
  scratch.write("run/metrics.jsonl", "");
  CHECK(error_of([&] { write_report(scratch / "run"); }).find("no log step") != std::string::npos);
  CHECK(error_of([&] { write_report(scratch / "nowhere"); }).find("no such file") == 0);
}

TEST_CASE("curves lie where their numbers are") {
  // The plane: x from 62 (step 0) to 624 (step 10), y from 238 (0) up to 10 (1).
  const std::string chart = draw_chart("A & b", {{"f1", {{0, 0}, {5, 0.5}, {6, NAN}, {10, 1}}}}, 1);
  CHECK(chart.find("d='M62.0 238.0L343.0 124.0M624.0 10.0'") != chart.npos);
  CHECK(chart.find("<figcaption>A &amp; b</figcaption>") != chart.npos);
  CHECK(chart.find("<title>f1 0.5 at step 5</title>") != chart.npos);
  for (const char* mark : {">0</text>", ">0.2</text>", ">0.8</text>", ">1</text>", ">10</text>"})
    CHECK_MESSAGE(chart.find(mark) != chart.npos, mark);
  // Without a zero, over something else than steps: y from 238 (0.8) to 10 (0.9), x from 62 (1.5) to 624
  // (2.5).
  const std::string other = draw_chart(
      "t", {{"a<", {{1.5, 0.8}, {2.5, 0.9}}, {"p", "q&"}}},
      {.zero = false, .x_name = "time, ms", .x_unit = "ms", .whole_x = false, .last_values = false});
  CHECK(other.find("d='M62.0 238.0L624.0 10.0'") != other.npos);
  CHECK(other.find("<title>a&lt; 0.9 at ms 2.5, q&amp;</title>") != other.npos);
  CHECK(other.find(">time, ms</text>") != other.npos);
  CHECK(other.find(">1.6</text>") != other.npos);
  CHECK(other.find("<b>") == other.npos);
  CHECK(draw_chart("t", {}).empty());
  CHECK(draw_chart("t", {{"a", {{1, NAN}}}}).empty());
  CHECK(short_number(0.00012346) == "0.0001235");
  CHECK(short_number(NAN) == "–");
  // Thousands of points become a few hundred means.
  Curve many{"x", {}};
  for (int i = 0; i < 10000; ++i) many.points.emplace_back(i, i % 2);
  CHECK(count(draw_chart("t", {many}), "<circle") <= 400);
}
