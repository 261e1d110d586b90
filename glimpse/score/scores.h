#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "glimpse/image/boxes.h"

namespace glimpse {

/// Scores of an answer's text, all in [0, 1] (method.md sections 6 and 7). Text is UTF-8; what is not counts
/// as U+FFFD. Case is ignored throughout. Time is linear in the text, except where a function says otherwise.

/// What a judge's text gives after "score:", cut to [0, 1]; nothing unless exactly one number follows one.
/// More forgiving than the reference, which wants one space and no sign, exponent, bracket or full stop.
std::optional<double> judge_score(std::string_view text);

/// Whether both are equal apart from case and surrounding white space.
bool precision_match(std::string_view text, std::string_view answer);

/// Lower case without punctuation and articles, number words as digits: the usual normal form of short
/// answers.
std::string normal_form(std::string_view text);
/// Whether the normal forms are equal.
bool normal_match(std::string_view text, std::string_view answer);

/// The option that `text` chooses, a lower-case letter: the one after "answer", "option" or "choice", else
/// the first in parentheses, else the first that stands alone and is neither article nor pronoun.
std::optional<char> chosen_option(std::string_view text);
/// Whether `text` and `answer` choose the same option.
bool single_choice(std::string_view text, std::string_view answer);

/// Every "[x1, y1, x2, y2]" of `text`, in order.
std::vector<Box> boxes_in(std::string_view text);
/// Intersection over union; 0 for empty or inverted boxes.
double box_iou(const Box& a, const Box& b);
/// 1 if the first box of `text` overlaps `answer` by more than half (IoU), else 0.
double one_box_score(std::string_view text, const Box& answer);
/// 1 if `text` holds exactly one box, else 0.
double one_box_format(std::string_view text);

/// VQA accuracy against several people's answers: the mean, leaving one person out at a time, of
/// min(1, equal answers of the others / 3), on normal forms; of fewer than three others, all must be equal
/// for 1. A single answer must match.
double vqa_accuracy(std::string_view text, std::span<const std::string> answers);

/// Average normalised Levenshtein similarity: the best over `answers` of 1 - distance / longer length in code
/// points, 0 where that is not above one half. White space counts as one space. Time is the product of both
/// lengths.
double anls(std::string_view text, std::span<const std::string> answers);

}  // namespace glimpse
