#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace glimpse {

/// The curves of a run as TensorBoard reads them: a new
/// `folder`/events.out.tfevents.<time>.<host>. Tags are UTF-8, grouped by what stands before their '/'. Steps
/// count from 0.
class EventFile {
 public:
  /// Takes back what earlier files of the folder say of `first_step` and later ones: a run that goes on, or
  /// starts again. The folder is made if need be. Error when it cannot be written to.
  explicit EventFile(const std::filesystem::path& folder, int64_t first_step = 0);

  /// TensorBoard keeps float32.
  void scalar(const std::string& tag, double value, int64_t step);

  /// Error when something could not be written.
  void flush();
  const std::filesystem::path& path() const { return path_; }

 private:
  // The encoded fields of an event beside its time and step.
  void write(int64_t step, const std::string& fields);

  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace glimpse
