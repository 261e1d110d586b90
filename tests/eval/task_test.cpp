// Task files, rows of every format, the grid.
#include "glimpse/eval/task.h"

#include "glimpse/eval/grid.h"
#include "glimpse/eval/row_score.h"
#include "io/scratch.h"

using namespace glimpse;
using glimpse::test::check_mentions;
using glimpse::test::error_of;
using glimpse::test::kSource;
using glimpse::test::Scratch;

namespace {

std::vector<std::string> labels(const std::vector<GridCell>& cells) {
  std::vector<std::string> out;
  for (const GridCell& cell : cells) out.push_back(cell.label());
  return out;
}

}  // namespace

TEST_CASE("the program's own tasks") {
  const Task tiny = Task::read(kSource / "eval/tiny.yaml");
  const auto rows = read_task_rows(tiny, {.root = kSource / "eval", .images = {}, .sets = {}, .limit = 0});
  CHECK(rows.size() == 400);
  CHECK(rows[0].set == "read");
  CHECK(rows[0].key() == "[\"read\",0]");
  CHECK(rows[0].answers == std::vector<std::string>{"The letter on the orange square is A."});
  CHECK((rows[0].boxes == std::vector<Box>{{394, 57, 446, 109}}));
  CHECK(rows[0].problem.empty());
  CHECK(rows[0].images.size() == 1);
  for (const char* name : {"viscot", "viscot_short"}) {
    const Task task = Task::read(kSource / concat("eval/", name, ".yaml"));
    CHECK(task.name == name);
    CHECK(task.sets.size() == 12);
    CHECK(needs_judge(task.score) == (task.name == "viscot"));
  }
  for (const char* name : {"vstar", "vstar_boxes"})
    CHECK(Task::read(kSource / concat("eval/", name, ".yaml")).score == "single_choice");
  CHECK(Task::read(kSource / "eval/refcoco.yaml").score == "one_box_iou");
  CHECK(find_task("vstar") == task_dir() / "vstar.yaml");
  check_mentions(error_of([] { find_task("nothing"); }),
                 "(known: refcoco, tiny, viscot, viscot_short, vstar, vstar_boxes)");
}

TEST_CASE("Visual-CoT's benchmark rows") {
  const Scratch scratch;
  scratch.write("docvqa.json", R"([{"image": ["cot/docvqa/a.png", "cot/docvqa/a.png###[10, 20, 30, 40]"],
    "conversations": [
      {"from": "human", "value": "<image>\nWho signed? Please provide the bounding box coordinate of the region that can help you answer the question better."},
      {"from": "gpt", "value": "[0.1, 0.2, 0.3, 0.4]"}, {"from": "human", "value": "<image>\n"},
      {"from": "gpt", "value": "J. Doe"}]},
    {"image": ["cot/docvqa/b.png", "cot/docvqa/b.png###[10, 20, 30]"], "conversations": [
      {"value": "Please provide the bounding box coordinate of the region that can help you answer the question better.\n<image>\nWhen?  "},
      {"value": "1999"}]}])");
  scratch.write("images/cot/docvqa/a.png", "");
  scratch.write("images/cot/docvqa/val/b.png", "");  // where the reference looks, too
  for (const char* name : {"viscot", "viscot_short"}) {
    const Task task = Task::read(kSource / concat("eval/", name, ".yaml"));
    const TaskSource source{scratch / "", scratch / "images", {"docvqa"}, 0};
    const auto rows = read_task_rows(task, source);
    REQUIRE(rows.size() == 2);
    CHECK(rows[0].question == "Who signed?" + task.suffix);
    CHECK(rows[0].problem.empty());
    CHECK(rows[1].question == "When?" + task.suffix);  // the request without a space before it
    CHECK(rows[1].images[0] == scratch / "images" / "cot/docvqa/val/b.png");
    check_mentions(rows[1].problem, "expected a box [x1, y1, x2, y2] after ###");  // its own, not the file's
    CHECK(rows[0].answers == std::vector<std::string>{"J. Doe"});
    CHECK((rows[0].boxes == std::vector<Box>{{10, 20, 30, 40}}));
    CHECK((rows[0].images == std::vector<std::filesystem::path>{scratch / "images" / "cot/docvqa/a.png"}));
    CHECK(rows[0].set == "docvqa");
    CHECK(rows[0].id == 0);
  }
}

TEST_CASE("rows with members of other names") {
  const Scratch scratch;
  scratch.write(
      "test_questions.jsonl",
      R"({"question_id": 4, "category": "relative_position", "text": "Left?\n(A) yes\n(B) no", "label": "A"})"
      "\n");
  const Task task = Task::read(kSource / "eval/vstar.yaml");
  const auto rows = read_task_rows(task, {.root = scratch / "", .images = {}, .sets = {}, .limit = 0});
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].set == "relative_position");
  CHECK(row_score(task, rows[0], "The answer is (A).", {}) == 1);
  CHECK(row_score(task, rows[0], "B", {}) == 0);
}

TEST_CASE("options below the question, boxes as corner and size") {
  const Scratch scratch;
  scratch.write(
      "vstar.jsonl",
      R"({"image": "OCR/a.jpg", "question": "What brand?", "options": ["Prada.", "Gucci."], "bbox": [[10, 20, 3, 4]], "label": "B"})"
      "\n"
      R"({"image": "OCR/b.jpg", "question": "Which?", "options": ["x"], "bbox": [1, 2, 3, 4], "label": "A"})"
      "\n");
  const Task task = Task::read(kSource / "eval/vstar_boxes.yaml");
  const auto rows = read_task_rows(task, {.root = scratch / "", .images = {}, .sets = {}, .limit = 0});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].question ==
        "What brand?\nA. Prada.\nB. Gucci.\n\nAnswer with the option's letter from the given choices "
        "directly.");
  CHECK((rows[0].boxes == std::vector<Box>{{10, 20, 13, 24}}));
  CHECK((rows[1].boxes == std::vector<Box>{{1, 2, 4, 6}}));
  CHECK(row_score(task, rows[0], "B. Gucci.", {}) == 1);
}

TEST_CASE("boxes as answers") {
  const Scratch scratch;
  scratch.write("refcoco_val.json", R"([{"image": "a.jpg", "problem": "Where?", "solution": [1, 2, 3, 4]},
                                        {"image": "a.jpg", "problem": "Where?", "solution": [[1, 2, 3, 4], [5, 6, 7, 8]]}])");
  const Task task = Task::read(kSource / "eval/refcoco.yaml");
  const auto rows =
      read_task_rows(task, {.root = scratch / "", .images = {}, .sets = {"refcoco_val"}, .limit = 0});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].question == "Where? Output the final answer in JSON format.");
  CHECK((rows[0].boxes == std::vector<Box>{{1, 2, 3, 4}}));
  CHECK(rows[1].boxes.size() == 2);
  CHECK(rows[1].answers.empty());
}

TEST_CASE("a row's fingerprint names what is asked") {
  const Scratch scratch;
  const auto fingerprint = [&](const char* question, const char* boxes, const std::string& image) {
    scratch.write("a.png", image);
    scratch.write("rows.jsonl",
                  concat("{\"question\": \"", question,
                         "\", \"answer\": \"x\", \"image\": \"a.png\", \"bboxs\": ", boxes, "}\n"));
    Task task;
    task.rows = "rows.jsonl";
    return read_task_rows(task, {.root = scratch / "", .images = {}, .sets = {}, .limit = 0})[0].fingerprint;
  };
  const std::string first = fingerprint("q", "[[1, 2, 3, 4]]", "abc");
  CHECK(first.size() == 16);
  CHECK(fingerprint("q", "[[1, 2, 3, 4]]", "abc") == first);
  CHECK(fingerprint("r", "[[1, 2, 3, 4]]", "abc") != first);
  CHECK(fingerprint("q", "[[1, 2, 3, 5]]", "abc") != first);
  CHECK(fingerprint("q", "[[1, 2, 3, 4]]", "abd") != first);
  const std::string large(10000, 'x');
  CHECK(fingerprint("q", "[]", large) != fingerprint("q", "[]", large + "y"));
}

TEST_CASE("boxes in answers, as pixels of the picture") {
  TaskRow row;
  row.boxes = {{100, 50, 300, 150}};
  Task task;
  task.score = "box_iou";
  // The model saw a picture of 400 x 200 as 200 x 100.
  const SeenImage seen{400, 200, 200, 100, whole_image};
  CHECK(row_score(task, row, "[50, 25, 150, 75]", seen).value() == doctest::Approx(1));
  CHECK(row_score(task, row, "[50, 25, 100, 75]", seen).value() == doctest::Approx(0.5));
  task.box_unit = "image";
  CHECK(row_score(task, row, "at [100, 50, 300, 150]", seen).value() == doctest::Approx(1));
  task.box_unit = "unit";
  CHECK(row_score(task, row, "[0.25, 0.25, 0.75, 0.75]", seen).value() == doctest::Approx(1));
  // Padded to a square: the grid covers twice the picture's height.
  const SeenImage padded{400, 200, 336, 336, {0, -0.5, 1, 1.5}};
  CHECK(row_score(task, row, "[0.25, 0.375, 0.75, 0.625]", padded).value() == doctest::Approx(1));
  task.score = "one_box_iou";
  CHECK(row_score(task, row, "[0.25, 0.375, 0.5, 0.625]", padded) == 0);
  CHECK(row_score(task, row, "none", padded) == 0);
  task.score = "one_box_format";  // wherever it is, but one
  CHECK(row_score(task, row, "at [9, 9, 10, 10]", padded) == 1);
  CHECK(row_score(task, row, "[1, 1, 2, 2] or [3, 3, 4, 4]", padded) == 0);
  CHECK(row_score(task, row, "none", padded) == 0);
  CHECK(std::count(score_names().begin(), score_names().end(), task.score) == 1);
}

TEST_CASE("which answers a judge has to see") {
  TaskRow row;
  row.answers = {"a dog", "dog"};
  row.question = "What?";
  Task task;
  task.score = "llm";
  CHECK_FALSE(row_score(task, row, "a dog", {}).has_value());
  task.score = "precision_match_or_llm";
  CHECK(row_score(task, row, " A Dog ", {}) == 1);
  CHECK_FALSE(row_score(task, row, "the dog", {}).has_value());
  task.score = "normal_match";
  CHECK(row_score(task, row, "the dog", {}) == 1);
  task.score = "anls";
  CHECK(row_score(task, row, "dig", {}).value() == doctest::Approx(2.0 / 3));
  CHECK(judge_question(row, "x").right == "a dog / dog");
}

TEST_CASE("evenly spaced rows, chosen sets") {
  const Scratch scratch;
  std::string lines;
  for (int i = 0; i < 10; ++i)
    lines += concat("{\"question\": \"q\", \"answer\": \"a\", \"dataset\": \"", i < 7 ? "x" : "y", "\"}\n");
  scratch.write("rows.jsonl", lines);
  Task task;
  task.rows = "rows.jsonl";
  const auto ids = [&](std::vector<std::string> sets, size_t limit) {
    std::vector<int> out;
    for (const TaskRow& row : read_task_rows(task, {scratch / "", {}, sets, limit})) out.push_back(row.id);
    return out;
  };
  CHECK(ids({}, 0).size() == 10);
  CHECK(ids({}, 3) == std::vector<int>{0, 2, 4, 7, 8, 9});
  CHECK(ids({"y"}, 2) == std::vector<int>{7, 8});
  CHECK(ids({"x"}, 100).size() == 7);
  check_mentions(error_of([&] { ids({"yy"}, 0); }), "has no set 'yy'; the nearest is 'y'");
}

TEST_CASE("what is wrong with a task or its rows is said") {
  const Scratch scratch;
  const auto task_error = [&](const std::string& text) {
    scratch.write("t.yaml", text);
    return error_of([&] { Task::read(scratch / "t.yaml"); });
  };
  check_mentions(task_error("rows: a\nscor: x\n"), "unknown setting 'scor'");
  check_mentions(task_error("rows: a\nscore: x\n"), "score: expected one of llm, precision_match");
  check_mentions(task_error("rows: a\nformat: xml\n"), "format: expected one of rows, conversations");
  check_mentions(task_error("rows: a\nsets: [b]\n"), "sets and {set} in rows go together");
  check_mentions(task_error("rows: \"{set}\"\n"), "sets and {set} in rows go together");
  check_mentions(task_error("rows: a\nbox_format: cxcy\n"), "box_format: expected one of xyxy, xywh");
  check_mentions(task_error("score: anls\n"), "the file of rows is not named");
  check_mentions(task_error("rows: a\nname: ../x\n"), "cannot be a folder's name");
  check_mentions(task_error("[1]"), "expected a mapping");
  check_mentions(task_error("rows: [\n"), "t.yaml");

  const auto row_error = [&](const std::string& text, const char* format = "rows") {
    scratch.write("rows.json", text);
    Task task;
    task.rows = "rows.json";
    task.format = format;
    return error_of([&] { read_task_rows(task, {scratch / "", {}, {}, 0}); });
  };
  check_mentions(row_error("{\"question\": 3, \"answer\": \"a\"}\n"),
                 "rows.json:1: \"question\" is missing or no text");
  check_mentions(row_error("{\"question\": \"q\"}\n"), "\"answer\" is missing");
  check_mentions(row_error("{\n"), "rows.json:1: not valid JSON");
  check_mentions(row_error("[{}]"), "rows.json: row 0: ");
  check_mentions(row_error("[3]"), "expected a JSON object");
  check_mentions(row_error("[]"), "no rows");
  check_mentions(row_error("{\"question\": \"q\", \"answer\": \"a\", \"bboxs\": [[1, 2]]}\n"),
                 "\"bboxs\" must be");
  check_mentions(row_error("{\"question\": \"q\", \"answer\": \"a\", \"id\": {}}\n"), "\"id\" must be");
  const std::string twice = "{\"question\": \"q\", \"answer\": \"a\", \"id\": 1}\n";
  check_mentions(row_error(twice + twice), "rows.json:2: id 1 occurs twice");
  check_mentions(row_error(R"({"question": "x", "answer": "y", "picture": "a.png"})"),
                 "rows.json:1: \"picture\" names a picture, but pictures are read from \"image\"");
  check_mentions(row_error("[{\"conversations\": []}]", "conversations"), "at least two turns");
}

TEST_CASE("budgets") {
  CHECK(parse_budget("0.25")->keep == 0.25);
  CHECK(parse_budget("1")->keep == 1);  // all of them, not one
  CHECK_FALSE(parse_budget("1")->count.has_value());
  CHECK(parse_budget("64")->count == 64);
  CHECK_FALSE(parse_budget("64")->keep.has_value());
  CHECK_FALSE(parse_budget("own").has_value());
}

TEST_CASE("the grid") {
  CHECK(split_methods("none, a(x=1,y=2)+b ,c@0.5") ==
        std::vector<std::string>{"none", "a(x=1,y=2)+b", "c@0.5"});
  CHECK(labels(make_grid({"none", "glimpse", "glimpse@own", "reference"}, {"0.1", "0.5"})) ==
        std::vector<std::string>{"none@own", "glimpse@0.1", "glimpse@0.5", "glimpse@own", "reference@own"});
  CHECK(labels(make_grid({"a", "b@64"}, {"0.25", "7"})) == std::vector<std::string>{"a@0.25", "a@7", "b@64"});
  for (const char* bad : {"0", "1.5", "-1", "-7", "x", "0.5x", "64.0", "nan", "", "99999999999999999999"})
    check_mentions(error_of([&] { make_grid({"a"}, {bad}); }),
                   "budget: expected a fraction in (0, 1], a number of tokens above 1, or own");
  // Whoever keeps everything, or what boxes say, takes no budget; a stage after reference does.
  for (const char* bad : {"none@0.1", "none@5"})
    check_mentions(error_of([&] { make_grid({bad}, {}); }), "none takes no budget; write it without one");
  for (const char* bad : {"reference@0.1", "reference(layer=3)@7", "divprune(keep=0.5)+reference@0.1"})
    check_mentions(error_of([&] { make_grid({bad}, {}); }), "reference takes no budget");
  CHECK(labels(make_grid({"reference(layer=1)+divprune", "random+reference(layer=2)"}, {"0.5"})) ==
        std::vector<std::string>{"reference(layer=1)+divprune@0.5", "random+reference(layer=2)@own"});
  CHECK(takes_budget("vscan(layers=2+3,layer_keep=0.5+0.5)"));
  CHECK(takes_budget("reference + divprune"));
  CHECK_FALSE(takes_budget("divprune + reference"));
  check_mentions(error_of([] { make_grid({"least"}, {"own"}); }), "give it a budget, as in least@0.111");
  check_mentions(error_of([] { make_grid({"a", "a@own"}, {"own"}); }), "a@own occurs twice");
  check_mentions(error_of([] { make_grid({"../a"}, {"own"}); }), "is no pruning method");
  check_mentions(error_of([] { make_grid({""}, {"own"}); }), "is no pruning method");
}
