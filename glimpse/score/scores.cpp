#include "glimpse/score/scores.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <utility>

namespace glimpse {

namespace {

constexpr char32_t kWideColon = U'：';

// Code points, lower-cased one by one.
std::u32string lower_points(std::string_view text) {
  std::u32string out;
  while (!text.empty()) {
    utf8proc_int32_t point;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto length = utf8proc_iterate(bytes, std::ssize(text), &point);
    out += length > 0 ? static_cast<char32_t>(utf8proc_tolower(point)) : U'\uFFFD';
    text.remove_prefix(length > 0 ? length : 1);
  }
  return out;
}

bool is_space(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 31) || c == 0x85 || category == UTF8PROC_CATEGORY_ZS ||
         category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

bool is_word(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return c == '_' || (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO);
}

std::u32string stripped(const std::u32string& text) {
  const auto begin = std::find_if_not(text.begin(), text.end(), is_space);
  const auto end = std::find_if_not(text.rbegin(), std::make_reverse_iterator(begin), is_space).base();
  return {begin, end};
}

// Stripped, and every run of white space inside as one space.
std::u32string single_spaced(const std::u32string& text) {
  std::u32string out;
  for (const char32_t c : stripped(text)) {
    const bool space = is_space(c);
    if (!space || !out.ends_with(U' ')) out += space ? U' ' : c;
  }
  return out;
}

// Where the characters `any` (and white space) that start at `at` end.
size_t skip(const std::u32string& text, size_t at, std::u32string_view any) {
  while (at < text.size() && (is_space(text[at]) || any.find(text[at]) != any.npos)) ++at;
  return at;
}

// Moves past a number such as -1.5e-3; nothing when there is none. What ends in ".5.3" is none.
std::optional<double> take_number(const std::u32string& text, size_t& at) {
  std::string digits;
  size_t end = at;
  for (; end < text.size() && text[end] < 128; ++end) {
    const char c = static_cast<char>(text[end]);
    const bool sign = (c == '-' || c == '+') && (digits.empty() || digits.back() == 'e');
    const bool exponent = c == 'e' && digits.find('e') == digits.npos && !digits.empty();
    if (!(c >= '0' && c <= '9') && c != '.' && !sign && !exponent) break;
    digits += c;
  }
  double number = 0;
  const char* const last = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data() + digits.starts_with('+'), last, number);
  const auto left = std::string_view(stop, last);
  if (error != std::errc() || !std::isfinite(number) || left.find_first_of("0123456789") != left.npos)
    return {};
  at = end - left.size();
  return number;
}

// The letter at `at` if it is a word of its own; one in "it's" is not.
std::optional<char> lone_letter(const std::u32string& text, size_t at) {
  const auto point = [&](size_t i) { return i < text.size() ? text[i] : U' '; };  // also before the start
  const auto joined = [&](size_t next, size_t after) {
    const bool apostrophe = point(next) == U'\'' || point(next) == U'’';
    return is_word(point(apostrophe ? after : next));
  };
  if (point(at) < 'a' || point(at) > 'z' || joined(at - 1, at - 2) || joined(at + 1, at + 2)) return {};
  return static_cast<char>(text[at]);
}

size_t distance(const std::u32string& a, const std::u32string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j)
      diagonal = std::exchange(row[j + 1],
                               std::min({row[j + 1] + 1, row[j] + 1, diagonal + (a[i] != b[j] ? 1 : 0)}));
  }
  return row.back();
}

}  // namespace

std::optional<double> judge_score(std::string_view text) {
  const std::u32string points = lower_points(text);
  constexpr std::u32string_view key = U"score";
  std::optional<double> found;
  for (size_t at = points.find(key); at != points.npos; at = points.find(key, at)) {
    at = skip(points, at + key.size(), U"*_");
    if (at == points.size() || (points[at] != ':' && points[at] != kWideColon)) continue;
    at = skip(points, at + 1, U"*_<[(");
    const auto number = take_number(points, at);
    if (!number) continue;
    if (found) return {};
    found = std::clamp(*number, 0.0, 1.0);
  }
  return found;
}

bool precision_match(std::string_view text, std::string_view answer) {
  return stripped(lower_points(text)) == stripped(lower_points(answer));
}

std::string normal_form(std::string_view text) {
  static const std::vector<std::string> numbers = {"zero", "one",   "two",   "three", "four", "five",
                                                   "six",  "seven", "eight", "nine",  "ten"};
  const std::u32string points = lower_points(text);
  std::vector<std::string> words(1);
  for (size_t i = 0; i < points.size(); ++i) {
    const auto digit = [&](size_t at) {
      return at < points.size() && points[at] >= '0' && points[at] <= '9';
    };
    const char32_t c = points[i];
    const bool inside_number = (c == '.' || c == ',') && i > 0 && digit(i - 1) && digit(i + 1);
    if (is_space(c) ||
        (c < 128 && std::u32string_view(U";/[]{}()=+\\_-<>@`!?\"").find(c) != std::u32string_view::npos)) {
      words.emplace_back();
    } else if (inside_number ? c == '.' : c != '.' && c != ',' && c != '\'') {
      utf8proc_uint8_t bytes[4];
      words.back().append(reinterpret_cast<const char*>(bytes),
                          utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes));
    } else if (!inside_number && c == ',') {
      words.emplace_back();
    }
  }
  std::string out;
  for (std::string& word : words) {
    if (word.empty() || word == "a" || word == "an" || word == "the") continue;
    if (word == "none") word = numbers[0];
    const auto number = std::find(numbers.begin(), numbers.end(), word);
    if (number != numbers.end()) word = std::to_string(number - numbers.begin());
    out += (out.empty() ? "" : " ") + word;
  }
  return out;
}

bool normal_match(std::string_view text, std::string_view answer) {
  return normal_form(text) == normal_form(answer);
}

std::optional<char> chosen_option(std::string_view text) {
  const std::u32string points = lower_points(text);
  for (size_t at = 0; at < points.size(); ++at)
    for (const std::u32string_view key : {U"answer", U"option", U"choice"}) {
      if (points.compare(at, key.size(), key) != 0) continue;
      size_t letter = skip(points, at + key.size(), U"*");
      if (points.compare(letter, 2, U"is") == 0) letter += 2;
      if (const auto found = lone_letter(points, skip(points, letter, U":：*("))) return found;
    }
  for (size_t at = 0; at + 2 < points.size(); ++at)
    if (points[at] == '(' && points[at + 2] == ')')
      if (const auto found = lone_letter(points, at + 1)) return found;
  for (size_t at = 0; at < points.size(); ++at) {
    const bool before_word = at + 2 < points.size() && is_space(points[at + 1]) && is_word(points[at + 2]);
    const bool prose = before_word && (points[at] == 'i' || (points[at] == 'a' && at > 0));
    if (const auto found = lone_letter(points, at); found && !prose) return found;
  }
  return {};
}

bool single_choice(std::string_view text, std::string_view answer) {
  const auto chosen = chosen_option(text);
  return chosen && chosen == chosen_option(answer);
}

std::vector<Box> boxes_in(std::string_view text) {
  const std::u32string points = lower_points(text);
  std::vector<Box> boxes;
  for (size_t open = points.find('['); open != points.npos; open = points.find('[', open + 1)) {
    double corner[4];
    size_t at = open, count = 0;
    for (; count < 4 && at < points.size() && points[at] == (count ? ',' : '['); ++count) {
      at = skip(points, at + 1, U"");
      const auto number = take_number(points, at);
      if (!number) break;
      corner[count] = *number;
      at = skip(points, at, U"");
    }
    if (count == 4 && at < points.size() && points[at] == ']')
      boxes.push_back({corner[0], corner[1], corner[2], corner[3]});
  }
  return boxes;
}

double box_iou(const Box& a, const Box& b) {
  const auto area = [](double width, double height) {
    return width > 0 && height > 0 ? width * height : 0.0;
  };
  const double both =
      area(std::min(a.x2, b.x2) - std::max(a.x1, b.x1), std::min(a.y2, b.y2) - std::max(a.y1, b.y1));
  const double either = area(a.x2 - a.x1, a.y2 - a.y1) + area(b.x2 - b.x1, b.y2 - b.y1) - both;
  return both > 0 && std::isfinite(either) ? both / either : 0.0;
}

double one_box_score(std::string_view text, const Box& answer) {
  const std::vector<Box> boxes = boxes_in(text);
  return !boxes.empty() && box_iou(boxes[0], answer) > 0.5 ? 1.0 : 0.0;
}

double one_box_format(std::string_view text) {
  return boxes_in(text).size() == 1 ? 1.0 : 0.0;
}

double vqa_accuracy(std::string_view text, std::span<const std::string> answers) {
  const std::string own = normal_form(text);
  const auto people = std::ssize(answers);
  const auto equal =
      std::count_if(answers.begin(), answers.end(), [&](const auto& a) { return normal_form(a) == own; });
  if (people < 2) return static_cast<double>(equal);
  // Leaving out one who agrees costs an equal answer, leaving out another does not.
  const auto enough = static_cast<double>(std::min<std::ptrdiff_t>(3, people - 1));
  const auto accuracy = [&](auto others) { return std::min(1.0, static_cast<double>(others) / enough); };
  const double sum = static_cast<double>(equal) * accuracy(equal - 1) +
                     static_cast<double>(people - equal) * accuracy(equal);
  return sum / static_cast<double>(people);
}

double anls(std::string_view text, std::span<const std::string> answers) {
  const std::u32string own = single_spaced(lower_points(text));
  double best = 0;
  for (const std::string& answer : answers) {
    const std::u32string other = single_spaced(lower_points(answer));
    const size_t longer = std::max(own.size(), other.size()), shorter = std::min(own.size(), other.size());
    if (longer == 0) return 1;
    // The distance is at least the difference of the lengths.
    if (2 * shorter <= longer) continue;
    const double similarity = 1 - static_cast<double>(distance(own, other)) / static_cast<double>(longer);
    if (similarity > 0.5) best = std::max(best, similarity);
  }
  return best;
}

}  // namespace glimpse
