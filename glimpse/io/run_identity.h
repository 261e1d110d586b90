#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/io/row_box.h"

namespace glimpse {

// What the results of a run depend on, so that a run that goes on (infer, eval, train) is the one that began:
// settings, the content of weights and rows. Names of files are no part of it: they may move.

/// XXH3 of the bytes, in 16 hexadecimal digits.
std::string content_hash(std::string_view bytes);

/// Of a file's size and of blocks of 4 KiB that are spread evenly over it, the first and the last among them,
/// three at least and no more than 4 MiB apart; of every byte of files up to `whole_below`. Error when it
/// cannot be read.
std::string file_fingerprint(const std::filesystem::path& file, uintmax_t whole_below = 0);

/// Of a file, or of a model's, adapter's or modules' directory: its weights, and all of its settings,
/// vocabulary and templates. Of files above 64 MiB by blocks: training changes a tensor everywhere, so that
/// they find it, and reading all of a large model would take as long as loading it.
std::string weights_fingerprint(const std::filesystem::path& dir_or_file);

/// Of what a row asks. A picture that cannot be read is one of its own. Of a video that is a folder its
/// files, by their names' order.
std::string question_fingerprint(const std::string& question, const std::vector<Box>& boxes,
                                 const std::vector<std::filesystem::path>& images,
                                 const std::vector<std::filesystem::path>& videos = {});

/// Settings as they are read back from a file: paths and texts of the command line need not be UTF-8.
nlohmann::json stored(const nlohmann::json& settings);

/// In what the settings of a run that goes on differ from those that it was made with, for people: "dtype
/// fp32, now bf16; ..."; "" when in nothing. Members called as in `aside` do not count.
std::string differences(const nlohmann::json& before, const nlohmann::json& now,
                        const std::set<std::string>& aside = {});

}  // namespace glimpse
