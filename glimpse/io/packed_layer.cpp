#include "glimpse/io/packed_layer.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/io/layout.h"

namespace glimpse {
namespace {

// The output, of eight, that the i-th lowest four bits of an AWQ word belong to.
constexpr std::array<int, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};
constexpr int64_t kTile = 64;  // outputs, and inputs, that are turned at once: their lines stay in the cache

int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// Where the steps of outputs lie in a word of `bits` each, in bits from its lowest.
std::array<int, 8> shifts_of(PackedSteps::Order order, int bits) {
  std::array<int, 8> shifts = {};
  for (int i = 0; i < 32 / bits; ++i) shifts[order == PackedSteps::Order::awq ? kAwqOrder[i] : i] = i * bits;
  return shifts;
}

void check_scales(const at::Tensor& scales, const std::string& what) {
  check((scales.isfinite() & (scales > 0)).all().item<bool>(), what,
        ": a scale is not finite or not above 0");
}

void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, bool whole,
                  const std::string& what) {
  const at::ScalarType type = tensor.scalar_type();
  check(tensor.sizes() == shape, what, ": ", name, " has shape ", shape_text(tensor.sizes()), "; expected ",
        shape_text(shape));
  check(whole ? type == at::kInt : at::isFloatingType(type) && c10::elementSize(type) > 1, what, ": ", name,
        " has dtype ", type, "; expected ", whole ? "int32" : "float16, bfloat16 or float32");
}

// One in every step of a word.
uint32_t ones_of(int bits) {
  uint32_t ones = 0;
  for (int shift = 0; shift < 32; shift += bits) ones |= 1u << shift;
  return ones;
}

// The zeros [groups, out], of words, in float32.
at::Tensor read_zeros(const PackedSteps& layer) {
  const int64_t groups = layer.zeros.size(0), out = layer.out();
  const auto shifts = shifts_of(layer.order, layer.bits);
  const uint32_t mask = (1u << layer.bits) - 1;
  const uint32_t ones = layer.less_one ? ones_of(layer.bits) : 0;
  const at::Tensor words = layer.zeros.contiguous(), zeros = at::empty({groups, out}, at::kFloat);
  const int32_t* from = words.const_data_ptr<int32_t>();
  float* to = zeros.mutable_data_ptr<float>();
  for (int64_t i = 0; i < words.numel(); ++i) {
    // A carry goes to the next step: so the borrow, where a zero of 0 was stored, comes back.
    const uint32_t word = static_cast<uint32_t>(from[i]) + ones;
    for (int64_t k = 0; k < layer.per(); ++k)
      to[i * layer.per() + k] = static_cast<float>(word >> shifts[k] & mask);
  }
  return zeros;
}

// The group of each input.
std::vector<int32_t> read_groups(const PackedSteps& layer, const std::string& what) {
  std::vector<int32_t> groups(layer.in());
  if (!layer.group_of.defined()) {
    for (int64_t i = 0; i < layer.in(); ++i) groups[i] = static_cast<int32_t>(i / layer.group);
    return groups;
  }
  const at::Tensor given = layer.group_of.contiguous();
  const auto count = layer.scales.size(0);
  for (int64_t i = 0; i < layer.in(); ++i) {
    groups[i] = given.const_data_ptr<int32_t>()[i];
    check(groups[i] >= 0 && groups[i] < count, what, ": g_idx has ", groups[i], " at place ", i,
          ", but there are ", count, " groups");
  }
  return groups;
}

// f(output, first, last, row) writes these inputs of an output's row [in]; called for a tile after the other.
template <class T, class Function>
void write_tiles(T* to, int64_t out, int64_t in, Function f) {
  at::parallel_for(0, blocks_of(out, kTile), 1, [&](int64_t begin, int64_t end) {
    for (int64_t o0 = begin * kTile; o0 < std::min(end * kTile, out); o0 += kTile)
      for (int64_t i0 = 0; i0 < in; i0 += kTile)
        for (int64_t o = o0; o < std::min(o0 + kTile, out); ++o)
          f(o, i0, std::min(i0 + kTile, in), to + o * in);
  });
}

// f(pointer) with the data of a tensor of one of the types that layers are read in.
template <class Function>
void with_plain(const at::Tensor& tensor, Function f) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, tensor.scalar_type(), "packed layer",
                                  [&] { f(tensor.mutable_data_ptr<scalar_t>()); });
}

}  // namespace

void PackedSteps::check_shapes(const std::string& what) const {
  check(words.dim() == 2 && words.scalar_type() == at::kInt, what, ": qweight has shape ",
        shape_text(words.sizes()), " and dtype ", words.scalar_type(), "; expected a matrix of int32");
  check(words.numel() > 0 && out() % per() == 0, what, ": qweight has shape ", shape_text(words.sizes()),
        ", which is no whole number of words");
  const int64_t groups = blocks_of(in(), group);
  check_tensor(zeros, "qzeros", {groups, out() / per()}, true, what);
  check_tensor(scales, "scales", {groups, out()}, false, what);
  if (group_of.defined()) check_tensor(group_of, "g_idx", {in()}, true, what);
}

at::Tensor PackedSteps::read(at::ScalarType dtype, const std::string& what) const {
  const at::Tensor wide = scales.to(at::kFloat).t().contiguous(), packed = words.contiguous(),
                   offsets = read_zeros(*this).t().contiguous();  // both [out, groups] now
  check_scales(wide, what);
  const std::vector<int32_t> groups = read_groups(*this, what);
  const at::Tensor weight = at::empty({out(), in()}, dtype);
  const int64_t columns = words.size(1), count = wide.size(1), each = per();
  const auto shifts = shifts_of(order, bits);
  const auto mask = (1u << bits) - 1;
  const float *scale = wide.const_data_ptr<float>(), *zero = offsets.const_data_ptr<float>();
  const auto* word = reinterpret_cast<const uint32_t*>(packed.const_data_ptr<int32_t>());
  const auto value = [&](uint32_t step, int64_t at) {
    return (static_cast<float>(step & mask) - zero[at]) * scale[at];
  };
  with_plain(weight, [&]<class T>(T* to) {
    if (order == Order::awq)
      write_tiles(to, out(), in(), [&](int64_t o, int64_t first, int64_t last, T* row) {
        const uint32_t* const own = word + o / each;
        const int shift = shifts[o % each];
        for (int64_t i = first; i < last; ++i)
          row[i] = static_cast<T>(value(own[i * columns] >> shift, o * count + groups[i]));
      });
    else
      write_tiles(to, out(), in(), [&](int64_t o, int64_t first, int64_t last, T* row) {
        static_assert(kTile % 8 == 0, "a tile begins with a word");
        for (int64_t i = first; i < last; i += each) {
          const uint32_t own = word[i / each * columns + o];
          for (int64_t k = 0; k < each; ++k)
            row[i + k] = static_cast<T>(value(own >> shifts[k], o * count + groups[i + k]));
        }
      });
  });
  return weight;
}

namespace {

// Rows of whole steps, with scale and zero of each group.
struct Rows {
  at::Tensor step;         // [rows, in] uint8
  at::Tensor scale, zero;  // [rows, groups] float32
};

Rows read_rows(const PackedSteps& layer, int64_t first, int64_t count, const std::string& what) {
  const int64_t in = layer.in(), groups = layer.scales.size(0), each = layer.per(),
                columns = layer.words.size(1);
  const auto shifts = shifts_of(layer.order, layer.bits);
  const auto mask = (1u << layer.bits) - 1, ones = layer.less_one ? ones_of(layer.bits) : 0;
  const bool awq = layer.order == PackedSteps::Order::awq;
  Rows out{at::empty({count, in}, at::kByte),
           layer.scales.narrow(1, first, count).to(at::kFloat).t().contiguous(),
           at::empty({count, groups}, at::kFloat)};
  check_scales(out.scale, what);
  const auto* words = reinterpret_cast<const uint32_t*>(layer.words.const_data_ptr<int32_t>());
  const auto* zeros = reinterpret_cast<const uint32_t*>(layer.zeros.const_data_ptr<int32_t>());
  for (int64_t r = 0; r < count; ++r) {
    const int64_t o = first + r;
    uint8_t* const to = out.step.data_ptr<uint8_t>() + r * in;
    for (int64_t i = 0; i < in; ++i)
      to[i] = static_cast<uint8_t>((awq ? words[i * columns + o / each] >> shifts[o % each]
                                        : words[i / each * columns + o] >> shifts[i % each]) &
                                   mask);
    for (int64_t g = 0; g < groups; ++g)
      out.zero.data_ptr<float>()[r * groups + g] =
          static_cast<float>((zeros[g * layer.zeros.size(1) + o / each] + ones) >> shifts[o % each] & mask);
  }
  return out;
}

}  // namespace

FewBits PackedSteps::few_bits(const std::string& what) const {
  PackedSteps layer = *this;
  layer.words = words.contiguous();
  layer.zeros = zeros.contiguous();
  FewBits out;
  out.rows = [layer, what](int64_t first, int64_t count) {
    const Rows rows = read_rows(layer, first, count, what);
    const std::vector<int32_t> groups = read_groups(layer, what);
    const at::Tensor place =
        at::from_blob(const_cast<int32_t*>(groups.data()), {layer.in()}, at::TensorOptions(at::kInt));
    return (rows.step.to(at::kFloat) - rows.zero.index_select(1, place)) * rows.scale.index_select(1, place);
  };
  const std::vector<int32_t> groups = read_groups(layer, what);
  bool in_order = group % 8 == 0;
  for (int64_t i = 0; in_order && i < layer.in(); ++i) in_order = groups[i] == i / group;
  if (bits > 4 || !in_order) return out;
  out.group = group;
  out.steps = [layer, what](int64_t first, int64_t count) {
    const Rows rows = read_rows(layer, first, count, what);
    return Steps{rows.step, rows.scale, -rows.zero * rows.scale};
  };
  return out;
}

void Fp8Blocks::check_shapes(const std::string& what) const {
  check(weight.dim() == 2 && weight.numel() > 0 && weight.scalar_type() == at::kFloat8_e4m3fn, what,
        ": the weight has shape ", shape_text(weight.sizes()), " and dtype ", weight.scalar_type(),
        "; expected a matrix in F8_E4M3");
  const int64_t rows = blocks_of(weight.size(0), block_out), columns = blocks_of(weight.size(1), block_in);
  // Some writers drop dimensions of size 1.
  check(scales.dim() <= 2 && scales.numel() == rows * columns, what, ": the scales have shape ",
        shape_text(scales.sizes()), "; expected ", shape_text({rows, columns}), ", one per block of ",
        block_out, " x ", block_in);
  check_tensor(scales, "the scale", scales.sizes(), false, what);
}

at::Tensor Fp8Blocks::read(at::ScalarType dtype, const std::string& what) const {
  const at::Tensor bytes = weight.contiguous(), wide = scales.to(at::kFloat).contiguous();
  check_scales(wide, what);
  const int64_t out = weight.size(0), in = weight.size(1), columns = blocks_of(in, block_in);
  std::array<float, 256> values = {};
  for (int i = 0; i < 256; ++i)
    values[i] =
        static_cast<float>(c10::Float8_e4m3fn(static_cast<uint8_t>(i), c10::Float8_e4m3fn::from_bits()));
  const auto* from = static_cast<const uint8_t*>(bytes.const_data_ptr());
  const float* scale = wide.const_data_ptr<float>();
  std::atomic<bool> is_number = true;
  const at::Tensor widened = at::empty({out, in}, dtype);
  with_plain(widened, [&]<class T>(T* to) {
    write_tiles(to, out, in, [&](int64_t o, int64_t first, int64_t last, T* row) {
      const uint8_t* const own = from + o * in;
      const float* const scales_of = scale + o / block_out * columns;
      bool number = true;
      for (int64_t i = first; i < last;) {
        const float by = scales_of[i / block_in];
        for (const int64_t end = std::min(last, (i / block_in + 1) * block_in); i < end; ++i) {
          number = number && (own[i] & 127) != 127;
          row[i] = static_cast<T>(values[own[i]] * by);
        }
      }
      if (!number) is_number = false;
    });
  });
  check(is_number, what, ": a weight is not a number");
  return widened;
}

}  // namespace glimpse
