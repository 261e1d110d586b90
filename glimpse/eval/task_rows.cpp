#include <algorithm>
#include <map>
#include <set>

#include "glimpse/base/ascii.h"
#include "glimpse/base/json_file.h"
#include "glimpse/eval/task.h"
#include "glimpse/io/rows.h"
#include "glimpse/io/run_identity.h"
#include "glimpse/score/scores.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Record {
  json object;
  std::string place;
  std::string problem = {};  // of a line that is no JSON
};

// The objects of a JSON list, or of JSON lines.
std::vector<Record> read_records(const fs::path& file) {
  check_is_file(file);
  std::vector<Record> records;
  bool list = false;
  visit_lines(file, [&](const std::string& text, size_t) {
    list = text[text.find_first_not_of(" \t\r")] == '[';
    return false;
  });
  if (list) {
    const json all = read_json(file);
    check(all.is_array(), file.string(), ": expected a list of rows");
    for (const json& each : all) records.push_back({each, concat(file.string(), ": row ", records.size())});
  } else {
    visit_lines(file, [&](const std::string& text, size_t line) {
      Record& record = records.emplace_back(json(), concat(file.string(), ":", line));
      try {
        record.object = parse_json_line(text);
      } catch (const Error& error) {
        record.problem = error.what();
      }
      return true;
    });
  }
  return records;
}

std::vector<std::string> texts_of(const json& value, const std::string& name) {
  std::vector<std::string> texts;
  for (const json& each : value.is_array() ? value : json::array({value})) {
    check(each.is_string() || each.is_number(), "\"", name, "\" must be text or a list of texts");
    texts.push_back(each.is_string() ? each.get<std::string>() : each.dump());
  }
  check(!texts.empty(), "\"", name, "\" is empty");
  return texts;
}

// One box or a list of them, as corners.
std::vector<Box> boxes_of(const json& value, const Task& task) {
  std::vector<Box> boxes;
  if (value.is_null()) return boxes;
  const bool sizes = task.box_format == "xywh";
  const char* const form = sizes ? "[x, y, width, height]" : "[x1, y1, x2, y2]";
  check(value.is_array(), "\"", task.boxes, "\" must be ", form, " or a list of such boxes");
  const bool one = !value.empty() && value[0].is_number();
  for (const json& each : one ? json::array({value}) : value) {
    check(is_box(each), "\"", task.boxes, "\" must be ", form, " or a list of such boxes");
    Box& box = boxes.emplace_back(parse_box(each));
    box.x2 += sizes ? box.x1 : 0;
    box.y2 += sizes ? box.y1 : 0;
  }
  return boxes;
}

// Without `task.strip` and the white space around what is left.
std::string stripped(const Task& task, std::string text) {
  if (task.strip.empty()) return text;
  for (const std::string& what : task.strip)
    for (size_t at = what.empty() ? text.npos : text.find(what); at != text.npos; at = text.find(what, at))
      text.erase(at, what.size());
  return trimmed(text);
}

// What both formats give, before files are looked for.
struct Parsed {
  TaskRow row;
  std::vector<std::string> images, videos;
};

// Whether it is a box as answers have them, which are of one time.
bool is_answered_box(const json& value) {
  return is_box(value) && value.size() == 4;
}

Parsed parse_row(const Task& task, const json& object) {
  Parsed out;
  out.row.question = text_member(object, task.question.c_str());
  if (const json& options = member(object, task.options.c_str()); !options.is_null()) {
    char letter = 'A';
    for (const std::string& option : texts_of(options, task.options))
      out.row.question += concat("\n", letter++, ". ", option);
  }
  const json& answer = member(object, task.answer.c_str());
  // The answer of a question for boxes may be the boxes.
  const bool boxes = is_answered_box(answer) ||
                     (answer.is_array() && std::all_of(answer.begin(), answer.end(), is_answered_box));
  if (!answer.is_null() && !boxes) out.row.answers = texts_of(answer, task.answer);
  if (const json& image = member(object, task.image.c_str()); !image.is_null())
    out.images = texts_of(image, task.image);
  if (const json& video = member(object, task.video.c_str()); !video.is_null())
    out.videos = texts_of(video, task.video);
  check_no_unread_media(object, task.image, task.video,
                        {task.id, task.set, task.question, task.options, task.answer});
  out.row.boxes = boxes_of(member(object, task.boxes.c_str()), task);
  if (const json& set = member(object, task.set.c_str()); set.is_string())
    out.row.set = set.get<std::string>();
  return out;
}

// Visual-CoT's benchmark: the first turn asks, the last one answers; "path###[x1, y1, x2, y2]" has the box.
Parsed parse_conversation(const json& object) {
  Parsed out;
  const json& turns = member(object, "conversations");
  check(turns.is_array() && turns.size() >= 2, "\"conversations\" must be a list of at least two turns");
  out.row.question = text_member(turns.front(), "value");
  out.row.answers = {text_member(turns.back(), "value")};
  for (const std::string& image : texts_of(member(object, "image"), "image")) {
    const size_t mark = image.find("###");
    if (mark == std::string::npos) {
      out.images.push_back(image);
      continue;
    }
    if (out.images.empty()) out.images.push_back(image.substr(0, mark));
    const std::vector<Box> boxes = boxes_in(std::string_view(image).substr(mark + 3));
    if (boxes.size() == 1)
      out.row.boxes.push_back({boxes[0].x1, boxes[0].y1, boxes[0].x2, boxes[0].y2});
    else
      out.row.problem = concat("\"image\": expected a box [x1, y1, x2, y2] after ### in '", image, "'");
  }
  if (const json& set = member(object, "dataset"); set.is_string()) out.row.set = set.get<std::string>();
  return out;
}

TaskRow make_row(const Task& task, const Record& record, const std::string& set, size_t index,
                 const fs::path& images) {
  check(record.problem.empty(), record.problem);
  check(record.object.is_object(), "expected a JSON object");
  Parsed parsed = task.format == "rows" ? parse_row(task, record.object) : parse_conversation(record.object);
  TaskRow& row = parsed.row;
  row.place = record.place;
  if (!set.empty()) row.set = set;
  if (row.set.empty()) row.set = "all";
  row.id = record.object.contains(task.id) ? record.object[task.id] : json(index);
  check(row.id.is_string() || row.id.is_number(), "\"", task.id, "\" must be text or a number");
  check(!row.answers.empty() || !row.boxes.empty(), "\"", task.answer, "\" is missing");
  row.question = stripped(task, row.question) + task.suffix;
  const bool shows = !parsed.images.empty() || !parsed.videos.empty();
  check_box_times(row.boxes, parsed.images.empty() && !parsed.videos.empty());
  if (task.score == "mask_iou" && (row.boxes.empty() || !shows))
    row.problem = "has no picture with a box, nor such a video, that masks could be compared with";
  try {
    for (const std::string& name : parsed.images) row.images.push_back(find_image(images, row.set, name));
    for (const std::string& name : parsed.videos) row.videos.push_back(find_video(images, row.set, name));
  } catch (const Error& error) {
    row.problem = error.what();
  }
  row.fingerprint = question_fingerprint(row.question, row.boxes, row.images, row.videos);
  return std::move(row);
}

std::string with_set(std::string pattern, const std::string& set) {
  for (size_t at = 0; (at = pattern.find("{set}", at)) != pattern.npos; at += set.size())
    pattern.replace(at, 5, set);
  return pattern;
}

bool wanted(const TaskSource& source, const std::string& set) {
  return source.sets.empty() || std::find(source.sets.begin(), source.sets.end(), set) != source.sets.end();
}

// At most `limit` rows of each set, evenly spaced.
std::vector<TaskRow> thinned(std::vector<TaskRow> rows, size_t limit) {
  if (limit == 0) return rows;
  std::map<std::string, size_t> count, seen;
  for (const TaskRow& row : rows) ++count[row.set];
  std::erase_if(rows, [&](const TaskRow& row) {
    const size_t all = count[row.set], i = seen[row.set]++;
    // Row i is taken if one of the limit equal steps begins in it.
    return all > limit && (i * limit + all - 1) / all == ((i + 1) * limit + all - 1) / all;
  });
  return rows;
}

}  // namespace

std::string TaskRow::key() const {
  return json_text(json::array({set, id}));
}

std::vector<TaskRow> read_task_rows(const Task& task, const TaskSource& source) {
  const fs::path images = source.images.empty() ? source.root / task.images : source.images;
  std::vector<TaskRow> rows;
  std::set<std::string> keys, sets;
  const auto read = [&](const std::string& set) {
    const std::vector<Record> records = read_records(source.root / with_set(task.rows, set));
    for (size_t i = 0; i < records.size(); ++i) try {
        TaskRow row = make_row(task, records[i], set, i, images);
        sets.insert(row.set);
        check(keys.insert(row.key()).second, "id ", row.id.dump(), " occurs twice");
        if (wanted(source, row.set)) rows.push_back(std::move(row));
      } catch (const Error& error) {
        check(source.keep_going, records[i].place, ": ", error.what());
        TaskRow& bad = rows.emplace_back();
        bad.place = records[i].place;
        bad.problem = error.what();
      }
  };
  sets.insert(task.sets.begin(), task.sets.end());
  if (task.sets.empty()) read("");
  for (const std::string& set : task.sets)
    if (wanted(source, set)) read(set);
  for (const std::string& set : source.sets)
    check(sets.contains(set), "task ", task.name, " has no set '", set, "'; the nearest is '",
          nearest(set, sets), "'");
  check(!rows.empty(), "task ", task.name, ": no rows");
  return thinned(std::move(rows), source.limit);
}

}  // namespace glimpse
