#include "glimpse/models/config.h"

namespace glimpse {

namespace {
constexpr int64_t kMaxSize = int64_t{1} << 30;
}

using nlohmann::json;

DecoderConfig decoder_config(const json& text, const json& top, const std::string& where) {
  DecoderConfig c;
  c.hidden_size = need<int64_t>(text, "hidden_size", where);
  c.intermediate_size = need<int64_t>(text, "intermediate_size", where);
  c.layers = need<int64_t>(text, "num_hidden_layers", where);
  c.heads = need<int64_t>(text, "num_attention_heads", where);
  c.kv_heads = text.value("num_key_value_heads", c.heads);
  check(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 && c.hidden_size % c.heads == 0, where,
        ": hidden_size ", c.hidden_size, ", num_attention_heads ", c.heads, " and num_key_value_heads ",
        c.kv_heads, " do not divide");
  c.head_dim = text.value("head_dim", c.hidden_size / c.heads);
  c.vocab_size = need<int64_t>(text, "vocab_size", where);
  // Products of two sizes must stay far from overflow.
  for (const int64_t size : {c.hidden_size, c.intermediate_size, c.layers, c.heads, c.head_dim, c.vocab_size})
    check(size > 0 && size < kMaxSize, where, ": a size of the language model is ", size);
  check(c.head_dim % 2 == 0, where, ": the head size ", c.head_dim,
        " is odd, but rotary embedding turns pairs of numbers");
  c.rms_norm_eps = text.value("rms_norm_eps", 1e-6);
  c.tied_head = top.value("tie_word_embeddings", text.value("tie_word_embeddings", false));
  return c;
}

}  // namespace glimpse
