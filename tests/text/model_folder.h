#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace glimpse::test {

inline std::filesystem::path tiny_model() {
  return std::filesystem::path(GLIMPSE_SOURCE_DIR) / "models/tiny/model";
}

/// A temporary folder with copies of some of the built-in model's tokenizer files.
class ModelFolder {
 public:
  explicit ModelFolder(std::initializer_list<const char*> files = {"tokenizer.json"}) {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("glimpse_text_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path_);
    for (const char* name : files) copy(name);
  }
  ~ModelFolder() { std::filesystem::remove_all(path_); }
  ModelFolder(const ModelFolder&) = delete;
  ModelFolder& operator=(const ModelFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void copy(const char* name) const { std::filesystem::copy_file(tiny_model() / name, path_ / name); }
  void write(const char* name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  template <class Edit>
  void edit_tokenizer(Edit edit) const {
    auto root = nlohmann::json::parse(std::ifstream(path_ / "tokenizer.json"));
    edit(root);
    write("tokenizer.json", root.dump());
  }

 private:
  std::filesystem::path path_;
};

}  // namespace glimpse::test
