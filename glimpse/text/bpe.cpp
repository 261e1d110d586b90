#include "glimpse/text/bpe.h"

#include <algorithm>
#include <array>
#include <functional>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
}

/// Byte of each code point of the visible alphabet, -1 elsewhere: bytes that print stand for themselves, the
/// others are numbered from U+0100 on.
constexpr std::array<int16_t, 0x144> make_visible_bytes() {
  std::array<int16_t, 0x144> bytes{};
  bytes.fill(-1);
  int16_t next = 0x100;
  for (int16_t b = 0; b < 256; ++b) {
    const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD);
    bytes[prints ? b : next++] = b;
  }
  return bytes;
}

constexpr auto visible_bytes = make_visible_bytes();

/// A symbol of a word being merged, in a doubly linked list; a swallowed one has id -1.
struct Symbol {
  int32_t id, previous, next;
};

/// A possible merge of the symbol at `left` with the one after it.
struct Candidate {
  int32_t rank, left, result;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

}  // namespace

std::optional<std::string> bytes_of_visible(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t i = 0; i < token.size(); ++i) {
    unsigned point = static_cast<unsigned char>(token[i]);
    if (point >= 0x80) {
      // The alphabet's other characters have two bytes.
      if ((point & 0xE0) != 0xC0 || i + 1 == token.size()) return std::nullopt;
      point = (point & 0x1F) << 6 | (static_cast<unsigned char>(token[++i]) & 0x3F);
    }
    if (point >= visible_bytes.size() || visible_bytes[point] < 0) return std::nullopt;
    bytes += static_cast<char>(visible_bytes[point]);
  }
  return bytes;
}

size_t Vocabulary::slot_of(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>{}(token)&mask;
  while (slots_[slot] >= 0 && tokens_[slots_[slot]] != token) slot = (slot + 1) & mask;
  return slot;
}

void Vocabulary::add(std::string token, int64_t id) {
  check(!token.empty(), "token ", id, " is empty");
  check(id >= 0 && id < max_size, "token \"", token, "\" has id ", id, ", expected 0 to ", max_size - 1);
  check(bytes(id).empty(), "id ", id, " belongs to two tokens");
  if (2 * ++used_ > slots_.size()) {
    slots_.assign(2 * slots_.size(), -1);
    for (int64_t i = 0; i < size(); ++i)
      if (!tokens_[i].empty()) slots_[slot_of(tokens_[i])] = static_cast<int32_t>(i);
  }
  int32_t& slot = slots_[slot_of(token)];
  check(slot < 0, "token \"", token, "\" has two ids, ", slot, " and ", id);
  slot = static_cast<int32_t>(id);
  if (id >= size()) tokens_.resize(id + 1);
  tokens_[id] = std::move(token);
}

std::optional<int64_t> Vocabulary::find(std::string_view token) const {
  const int32_t id = slots_[slot_of(token)];
  return id < 0 ? std::nullopt : std::optional<int64_t>(id);
}

const std::string& Vocabulary::bytes(int64_t id) const {
  static const std::string none;
  return id >= 0 && id < size() ? tokens_[id] : none;
}

Bpe::Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges, const std::string& word_end)
    : merger_(merges) {
  for (int b = 0; b < 256; ++b) {
    const std::string byte(1, static_cast<char>(b));
    const auto id = vocabulary.find(byte), last = vocabulary.find(byte + word_end);
    check(id && last, "the vocabulary has no token for the byte ", b, id ? " at the end of a word" : "");
    byte_ids_[b] = static_cast<int32_t>(*id);
    last_byte_ids_[b] = static_cast<int32_t>(*last);
  }
}

void Bpe::encode(std::string_view word, std::vector<int64_t>& ids) const {
  check(word.size() < size_t{1} << 31, "a word of ", word.size(), " bytes is too long");
  std::vector<int32_t> symbols(word.size());
  for (size_t i = 0; i < word.size(); ++i) symbols[i] = byte_ids_[static_cast<unsigned char>(word[i])];
  if (!word.empty()) symbols.back() = last_byte_ids_[static_cast<unsigned char>(word.back())];
  merger_.join(symbols, ids);
}

Merger::Merger(const std::vector<Merge>& merges) {
  rules_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right, result] = merges[rank];
    rules_.insert_or_assign(pair_key(left, right), Rule{static_cast<int32_t>(rank), result});
  }
}

const Merger::Rule* Merger::rule(int32_t left, int32_t right) const {
  const auto entry = rules_.find(pair_key(left, right));
  return entry == rules_.end() ? nullptr : &entry->second;
}

void Merger::join(const std::vector<int32_t>& parts, std::vector<int64_t>& ids) const {
  const int32_t length = static_cast<int32_t>(parts.size());
  std::vector<Symbol> symbols(length);
  for (int32_t i = 0; i < length; ++i) symbols[i] = {parts[i], i - 1, i + 1 == length ? -1 : i + 1};

  std::vector<Candidate> heap;
  heap.reserve(length);
  const auto propose = [&](int32_t left) {
    const int32_t right = left < 0 ? -1 : symbols[left].next;
    if (right < 0) return false;
    const Rule* found = rule(symbols[left].id, symbols[right].id);
    if (found != nullptr) heap.push_back({found->rank, left, found->result});
    return found != nullptr;
  };
  const std::greater<> later;
  for (int32_t i = 0; i < length; ++i) propose(i);
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const auto [rank, at, result] = heap.back();
    heap.pop_back();
    // Merges since it was proposed may have changed either symbol.
    Symbol& left = symbols[at];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Rule* current = rule(left.id, right.id);
    if (current == nullptr || current->rank != rank) continue;

    left.id = result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = at;
    if (propose(left.previous)) std::push_heap(heap.begin(), heap.end(), later);
    if (propose(at)) std::push_heap(heap.begin(), heap.end(), later);
  }
  for (int32_t i = 0; i >= 0 && length > 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace glimpse
