#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "device.h"
#include "glimpse/base/json_file.h"
#include "glimpse/engine/engine.h"
#include "glimpse/image/decode.h"

namespace glimpse::test {

/// Folder of the built-in model: model/, new_modules/, test/; in GLIMPSE_TEST_ROOT, else in the source tree.
inline std::filesystem::path tiny_dir() {
  const char* set = std::getenv("GLIMPSE_TEST_ROOT");
  return std::filesystem::path(set ? set : GLIMPSE_SOURCE_DIR) / "models/tiny";
}

/// The built-in model and its modules in float32 on test_device(), loaded once.
inline const Engine& tiny_engine() {
  static const std::unique_ptr<Engine> engine =
      Engine::load({.model = tiny_dir() / "model",
                    .new_modules = {(tiny_dir() / "new_modules").string()},
                    .dtype = "fp32",
                    .device = device_name()});
  return *engine;
}

/// The rows of a JSON-lines file in the model's test/ folder.
inline std::vector<nlohmann::json> tiny_rows(const std::string& file) {
  std::ifstream stream(tiny_dir() / "test" / file);
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(stream, line);) rows.push_back(nlohmann::json::parse(line));
  return rows;
}

inline Image row_image(const nlohmann::json& row) {
  return load_image(tiny_dir() / "test/cot" / row["dataset"].get<std::string>() /
                    row["image"].get<std::string>());
}

/// A user's message: `images` images, then the text.
inline Message user(const std::string& text, int images = 0) {
  Message message{"user", {}};
  for (int i = 0; i < images; ++i) message.parts.push_back({Part::Kind::image, ""});
  message.parts.push_back({Part::Kind::text, text});
  return message;
}

/// The request for row `index` of test/rows.jsonl: its image, then its question.
inline Request row_request(int index, const std::string& prune = "glimpse") {
  static const std::vector<nlohmann::json> rows = tiny_rows("rows.jsonl");
  Request request;
  request.messages = {user(rows.at(index)["question"], 1)};
  request.media = {row_image(rows.at(index))};
  request.prune = prune;
  request.max_new_tokens = 32;
  return request;
}

/// A copy of the built-in model's folder to be damaged; the weights are a link until they are replaced.
class BrokenModel {
 public:
  BrokenModel() {
    static int count = 0;
    dir_ = std::filesystem::temp_directory_path() /
           ("glimpse_model_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(dir_);
    for (const auto& entry : std::filesystem::directory_iterator(tiny_dir() / "model")) {
      const auto to = dir_ / entry.path().filename();
      if (to.extension() == ".safetensors")
        std::filesystem::create_symlink(entry.path(), to);
      else
        std::filesystem::copy_file(entry.path(), to);
    }
  }
  ~BrokenModel() { std::filesystem::remove_all(dir_); }
  BrokenModel(const BrokenModel&) = delete;

  const std::filesystem::path& dir() const { return dir_; }
  template <class Edit>
  void edit_json(const char* file, Edit edit) const {
    nlohmann::json json = read_json(dir_ / file);
    edit(json);
    std::ofstream(dir_ / file) << json.dump();
  }

 private:
  std::filesystem::path dir_;
};

}  // namespace glimpse::test
