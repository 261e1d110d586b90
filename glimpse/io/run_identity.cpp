#include "glimpse/io/run_identity.h"

#include <xxhash.h>

#include <algorithm>
#include <fstream>
#include <iomanip>
#include <memory>
#include <sstream>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/gguf.h"

namespace glimpse {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr uintmax_t kBlock = 4096, kFewestBlocks = 3, kFarthest = uintmax_t{4} << 20,
                    kWholeWeights = uintmax_t{64} << 20;

std::string hex(XXH64_hash_t hash) {
  std::ostringstream out;
  out << std::hex << std::setfill('0') << std::setw(16) << hash;
  return out.str();
}

// Where the blocks of a file that are looked at begin.
std::vector<uintmax_t> block_places(uintmax_t size, uintmax_t whole_below) {
  std::vector<uintmax_t> places;
  if (size <= std::max(whole_below, kFewestBlocks * kBlock)) {
    for (uintmax_t place = 0; place < size; place += kBlock) places.push_back(place);
    return places;
  }
  const uintmax_t count = std::max(kFewestBlocks, size / kFarthest + 2), last = size - kBlock;
  // Quotient and rest apart: their product would not fit into 64 bits for large files.
  for (uintmax_t i = 0; i < count; ++i)
    places.push_back(last / (count - 1) * i + last % (count - 1) * i / (count - 1));
  return places;
}

// What a model's directory has beside texts for people and what training left there.
bool belongs_to_model(const fs::path& file) {
  constexpr std::string_view endings[] = {".safetensors", ".bin", ".pt",    ".pth",  ".gguf",
                                          ".json",        ".txt", ".model", ".jinja"};
  return std::find(std::begin(endings), std::end(endings), file.extension()) != std::end(endings);
}

// A picture's, or a video's.
std::string medium_fingerprint(const fs::path& file_or_folder) {
  if (!fs::is_directory(file_or_folder)) return file_fingerprint(file_or_folder);
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator entry(file_or_folder, error), end; !error && entry != end;
       entry.increment(error))
    if (entry->is_regular_file(error)) files.push_back(entry->path());
  check(!error, file_or_folder.string(), ": cannot be read: ", error.message());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const fs::path& file : files) all += file_fingerprint(file);
  return content_hash(all);
}

std::string short_text(const json& value) {
  constexpr size_t longest = 60;
  const std::string text = json_text(value);
  return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

}  // namespace

std::string content_hash(std::string_view bytes) {
  return hex(XXH3_64bits(bytes.data(), bytes.size()));
}

std::string file_fingerprint(const fs::path& file, uintmax_t whole_below) {
  std::error_code error;
  const uintmax_t size = fs::file_size(file, error);
  std::ifstream in(file, std::ios::binary);
  check(!error && in.is_open(), file.string(), ": cannot be read", error ? ": " + error.message() : "");
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  XXH3_64bits_reset(state.get());
  XXH3_64bits_update(state.get(), &size, sizeof size);
  char block[kBlock];
  for (const uintmax_t place : block_places(size, whole_below)) {
    const uintmax_t bytes = std::min(kBlock, size - place);
    in.seekg(static_cast<std::streamoff>(place));
    check(in.read(block, static_cast<std::streamsize>(bytes)).good(), file.string(), ": reading failed");
    XXH3_64bits_update(state.get(), block, bytes);
  }
  return hex(XXH3_64bits_digest(state.get()));
}

std::string weights_fingerprint(const fs::path& dir_or_file) {
  std::vector<fs::path> files;
  if (fs::is_directory(dir_or_file)) {
    for (const auto& entry : fs::directory_iterator(dir_or_file))
      if (entry.is_regular_file() && belongs_to_model(entry.path())) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
  } else {
    files = gguf_parts(dir_or_file);
    if (files.size() == 1) return file_fingerprint(dir_or_file, kWholeWeights);
  }
  std::string all;
  for (const fs::path& file : files)
    all += concat(file.filename().string(), ' ', file_fingerprint(file, kWholeWeights), '\n');
  return content_hash(all);
}

std::string question_fingerprint(const std::string& question, const std::vector<Box>& boxes,
                                 const std::vector<fs::path>& images, const std::vector<fs::path>& videos) {
  std::string all = json_text(json{question, boxes});
  const auto add = [&](const fs::path& medium) {
    try {
      all += ' ' + medium_fingerprint(medium);
    } catch (const Error&) {
      all += " unreadable";
    }
  };
  for (const fs::path& image : images) add(image);
  if (!videos.empty()) all += " videos";
  for (const fs::path& video : videos) add(video);
  return content_hash(all);
}

json stored(const json& settings) {
  return json::parse(json_text(settings));
}

std::string differences(const json& before, const json& now, const std::set<std::string>& aside) {
  constexpr size_t most = 5;
  const auto flat = [&](json settings) {
    for (const std::string& name : aside) settings.erase(name);
    return settings.empty() ? json::object() : settings.flatten();
  };
  const json a = flat(before), b = flat(now);
  std::set<std::string> names;
  for (const auto& [name, value] : a.items()) names.insert(name);
  for (const auto& [name, value] : b.items()) names.insert(name);
  std::string out;
  size_t count = 0;
  for (const std::string& name : names) {
    const json was = a.value(name, json()), is = b.value(name, json());
    if (was == is || ++count > most) continue;
    std::string spelled = name.substr(1);
    std::replace(spelled.begin(), spelled.end(), '/', '.');
    out += concat(out.empty() ? "" : "; ", spelled, " ", short_text(was), ", now ", short_text(is));
  }
  return count > most ? concat(out, "; and ", count - most, " more") : out;
}

}  // namespace glimpse
