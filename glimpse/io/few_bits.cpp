#include "glimpse/io/few_bits.h"

#include <algorithm>

namespace glimpse {

namespace {

Steps joined(const std::vector<Steps>& parts) {
  std::vector<at::Tensor> step, scale, offset;
  for (const Steps& part : parts) {
    step.push_back(part.step);
    scale.push_back(part.scale);
    offset.push_back(part.offset);
  }
  return {at::cat(step), at::cat(scale), at::cat(offset)};
}
at::Tensor joined(const std::vector<at::Tensor>& parts) {
  return at::cat(parts);
}

// Rows [first, first + count) in pieces: f(first, count) of each part that has some.
template <class Part, class Function>
Part in_pieces(int64_t first, int64_t count, int64_t rows, const Function& f) {
  std::vector<Part> pieces;
  while (count > 0) {
    const int64_t own = std::min(count, rows - first % rows);
    pieces.push_back(f(first / rows, first % rows, own));
    first += own;
    count -= own;
  }
  return pieces.size() == 1 ? pieces[0] : joined(pieces);
}

}  // namespace

FewBits stacked(const std::vector<FewBits>& parts, int64_t rows) {
  FewBits out;
  out.rows = [=](int64_t first, int64_t count) {
    return in_pieces<at::Tensor>(first, count, rows, [&](int64_t part, int64_t begin, int64_t own) {
      return parts[part].rows(begin, own);
    });
  };
  const bool same = std::all_of(parts.begin(), parts.end(), [&](const FewBits& part) {
    return part.steps && part.group == parts[0].group && part.table.is_same(parts[0].table);
  });
  if (!same) return out;
  out.group = parts[0].group;
  out.table = parts[0].table;
  out.steps = [=](int64_t first, int64_t count) {
    return in_pieces<Steps>(first, count, rows, [&](int64_t part, int64_t begin, int64_t own) {
      return parts[part].steps(begin, own);
    });
  };
  return out;
}

FewBits reordered(const FewBits& from, const std::function<int64_t(int64_t)>& place) {
  FewBits out = from;
  out.rows = [=](int64_t first, int64_t count) {
    std::vector<at::Tensor> rows;
    for (int64_t row = first; row < first + count; ++row) rows.push_back(from.rows(place(row), 1));
    return joined(rows);
  };
  if (!from.steps) return out;
  out.steps = [=](int64_t first, int64_t count) {
    std::vector<Steps> rows;
    for (int64_t row = first; row < first + count; ++row) rows.push_back(from.steps(place(row), 1));
    return joined(rows);
  };
  return out;
}

}  // namespace glimpse
