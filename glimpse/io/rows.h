#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/io/row_box.h"

namespace glimpse {

/// What every row of a JSONL file in the form of the Visual-CoT set has: a question about
/// pictures or videos.
struct QuestionRow {
  nlohmann::json object;  ///< the whole row, other members included
  std::string question;
  std::string dataset;              ///< "" if the row names none
  std::vector<std::string> images;  ///< names as given: "image" or "images", one or a list of them
  std::vector<std::string> videos;  ///< the same: "video" or "videos"
  std::vector<Box> boxes;           ///< "bboxs": of the first image, else of the first video
};

/// Calls `visit(text, line)` for each line (counted from 1) that is not blank until it returns false. A byte
/// order mark is no part of the first one. Error naming a file that cannot be read.
void visit_lines(const std::filesystem::path& file,
                 const std::function<bool(const std::string& text, size_t line)>& visit);

/// A line of JSON as Python's json module may write it: NaN and infinities are null, and whole numbers that
/// no 64 bits hold are text, so that none of their digits is lost. Error saying what is wrong in which
/// column.
nlohmann::json parse_json_line(std::string_view text);

/// Error when no member called `image_key` or `video_key` says what the row shows, but one that is not among
/// `read` names a picture or a video: it would be asked about without it.
void check_no_unread_media(const nlohmann::json& object, const std::string& image_key,
                           const std::string& video_key, const std::vector<std::string>& read);

/// Error saying what is wrong with the row; the caller knows file and line.
QuestionRow parse_question_row(std::string_view text);

/// The member's text. Error when it is missing or no text.
std::string text_member(const nlohmann::json& object, const char* key);

/// The image at `root`/cot/<dataset>/<name>, else at `root`/<name>, else, for a name cot/<set>/<rest>, at
/// `root`/cot/<set>/val/<rest>, where the published archives of some sets have it. Error naming the places
/// looked at.
std::filesystem::path find_image(const std::filesystem::path& root, const std::string& dataset,
                                 const std::string& name);
/// The same for a video: a file, or a folder of pictures.
std::filesystem::path find_video(const std::filesystem::path& root, const std::string& dataset,
                                 const std::string& name);

}  // namespace glimpse
