#include "glimpse/io/pickle.h"

#include <bit>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include "glimpse/base/check.h"
#include "glimpse/io/layout.h"
#include "glimpse/io/pickle_value.h"

namespace glimpse {
namespace {

using namespace pickle;

// Far above what a checkpoint needs (some 20 a tensor); bounds memory and time.
constexpr size_t kMaxValues = 2'000'000;

const std::unordered_map<std::string_view, Function> kFunctions = {
    {"collections.OrderedDict", Function::ordered_dict},
    {"torch._utils._rebuild_tensor_v2", Function::rebuild_tensor},
    {"torch._utils._rebuild_parameter", Function::rebuild_parameter}};

class Unpickler {
 public:
  Unpickler(std::string_view program, const StorageLoader& load_storage, const std::string& what)
      : rest_(program), load_storage_(load_storage), what_(what) {}

  /// The object that the pickle describes; it lives as long as this.
  const Value& run();

 private:
  // Reading the program.
  std::string_view take(size_t size);
  template <class T>
  T number();
  std::string_view line();
  int64_t long_integer();

  // The stack.
  template <class T>
  void push(T data);
  Value* pop();
  Values pop_to_mark();
  template <class T>
  T& top(std::string_view opcode);
  template <class T>
  const T& get(const Value* value, std::string_view expected) const;

  void memoize(uint32_t slot);
  void push_global(std::string_view module, std::string_view name);
  void push_tuple(size_t size);
  void push_storage();
  void set_items(const Values& items);
  void reduce();
  at::Tensor rebuild_tensor(const Values& args) const;
  std::vector<int64_t> integers(const Value* tuple) const;
  bool step();

  std::string_view rest_;
  const StorageLoader& load_storage_;
  const std::string& what_;
  std::deque<Value> values_;
  std::vector<Value*> stack_;
  std::unordered_map<uint32_t, Value*> memo_;
};

std::string_view Unpickler::take(size_t size) {
  check(size <= rest_.size(), what_, ": the pickle is truncated");
  const std::string_view taken = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return taken;
}

template <class T>
T Unpickler::number() {
  static_assert(std::endian::native == std::endian::little);
  T value;
  std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
  return value;
}

std::string_view Unpickler::line() {
  const size_t end = rest_.find('\n');
  check(end != std::string_view::npos, what_, ": the pickle is truncated");
  const std::string_view text = take(end);
  take(1);
  return text;
}

int64_t Unpickler::long_integer() {
  const std::string_view bytes = take(number<uint8_t>());
  check(bytes.size() <= 8, what_, ": the pickle holds an integer of ", bytes.size(),
        " bytes; at most 8 are accepted");
  uint64_t value = !bytes.empty() && (bytes.back() & 0x80) ? ~uint64_t{0} : 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return static_cast<int64_t>(value);
}

template <class T>
void Unpickler::push(T data) {
  check(values_.size() < kMaxValues, what_, ": the pickle makes more than ", kMaxValues, " objects");
  stack_.push_back(&values_.emplace_back(Value{std::move(data)}));
}

Value* Unpickler::pop() {
  check(!stack_.empty() && !std::holds_alternative<Mark>(stack_.back()->data), what_,
        ": malformed pickle (nothing on the stack)");
  Value* value = stack_.back();
  stack_.pop_back();
  return value;
}

Values Unpickler::pop_to_mark() {
  size_t begin = stack_.size();
  do {
    check(begin > 0, what_, ": malformed pickle (no mark on the stack)");
  } while (!std::holds_alternative<Mark>(stack_[--begin]->data));
  Values items(stack_.begin() + static_cast<std::ptrdiff_t>(begin) + 1, stack_.end());
  stack_.resize(begin);
  return items;
}

template <class T>
T& Unpickler::top(std::string_view opcode) {
  T* data = stack_.empty() ? nullptr : std::get_if<T>(&stack_.back()->data);
  check(data != nullptr, what_, ": pickle opcode ", opcode,
        " on an object it does not fit; refuses to run code");
  return *data;
}

template <class T>
const T& Unpickler::get(const Value* value, std::string_view expected) const {
  const T* data = std::get_if<T>(&value->data);
  check(data != nullptr, what_, ": malformed tensor in the pickle (expected ", expected, ")");
  return *data;
}

void Unpickler::memoize(uint32_t slot) {
  check(memo_.size() < kMaxValues, what_, ": the pickle remembers more than ", kMaxValues, " objects");
  Value* value = pop();
  stack_.push_back(value);
  memo_[slot] = value;
}

void Unpickler::push_global(std::string_view module, std::string_view name) {
  const std::string global = concat(module.substr(0, 200), ".", name.substr(0, 200));
  if (const auto function = kFunctions.find(global); function != kFunctions.end())
    return push(function->second);
  const auto type = storage_types().find(global);
  check(type != storage_types().end(), what_, ": the file asks for the Python object '", global,
        "'; this reader only rebuilds tensors and refuses to run code");
  push(type->second);
}

void Unpickler::push_tuple(size_t size) {
  Tuple tuple{Values(size)};
  for (size_t i = size; i-- > 0;) tuple.items[i] = pop();
  push(std::move(tuple));
}

/// ("storage", type, key, device, number of elements); the device does not matter here.
void Unpickler::push_storage() {
  const Values& id = get<Tuple>(pop(), "a storage").items;
  check(id.size() == 5 && get<std::string>(id[0], "'storage'") == "storage", what_,
        ": malformed storage in the pickle");
  const auto dtype = get<at::ScalarType>(id[1], "a storage type");
  const auto& key = get<std::string>(id[2], "a storage key");
  const int64_t elements = get<int64_t>(id[4], "a storage size");
  Storage storage{load_storage_(key), dtype};
  const auto bytes = static_cast<uint64_t>(storage.bytes.numel());
  check(elements >= 0 && bytes % c10::elementSize(dtype) == 0 &&
            bytes / c10::elementSize(dtype) == static_cast<uint64_t>(elements),
        what_, ": storage '", key, "' should hold ", elements, " elements of ", dtype, ", but has ", bytes,
        " bytes");
  push(std::move(storage));
}

void Unpickler::set_items(const Values& items) {
  check(items.size() % 2 == 0, what_, ": malformed pickle (a key without a value)");
  Dict& dict = top<Dict>("SETITEMS");
  for (size_t i = 0; i < items.size(); i += 2) dict.items.emplace_back(items[i], items[i + 1]);
}

std::vector<int64_t> Unpickler::integers(const Value* tuple) const {
  std::vector<int64_t> result;
  for (const Value* item : get<Tuple>(tuple, "a tuple of integers").items)
    result.push_back(get<int64_t>(item, "an integer"));
  return result;
}

/// (storage, offset, size, stride, requires_grad, hooks): a view of the storage, checked to lie inside it.
at::Tensor Unpickler::rebuild_tensor(const Values& args) const {
  check(args.size() == 6, what_, ": _rebuild_tensor_v2 with ", args.size(), " arguments; expected 6");
  const auto& storage = get<Storage>(args[0], "a storage");
  const int64_t offset = get<int64_t>(args[1], "an offset");
  const auto sizes = integers(args[2]), strides = integers(args[3]);
  const std::string what = concat(what_, ": tensor of shape ", shape_text(sizes), ", strides ",
                                  shape_text(strides), ", offset ", offset);
  const int64_t available = storage.bytes.numel() / static_cast<int64_t>(c10::elementSize(storage.dtype));
  const int64_t numel = checked_numel(sizes, what);
  bool inside = sizes.size() == strides.size() && offset >= 0 && offset <= available && numel <= available;
  int64_t last = offset;
  for (size_t i = 0; inside && i < sizes.size(); ++i) {
    inside = strides[i] >= 0;
    if (!inside || numel == 0 || sizes[i] == 1) continue;
    inside = strides[i] <= (available - last) / (sizes[i] - 1);
    if (inside) last += (sizes[i] - 1) * strides[i];
  }
  check(inside && (numel == 0 || last < available), what, " does not fit its storage of ", available,
        " elements");
  // A one-element dimension may carry any stride; torch multiplies it out, so it must not overflow.
  auto safe_strides = strides;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (numel == 0 || sizes[i] == 1) safe_strides[i] = 1;
  return at::empty({0}, storage.dtype).set_(storage.bytes.storage(), offset, sizes, safe_strides);
}

void Unpickler::reduce() {
  const Values& args = get<Tuple>(pop(), "arguments").items;
  const auto* function = std::get_if<Function>(&pop()->data);
  check(function != nullptr, what_, ": the pickle calls something that is no function; refuses to run code");
  switch (*function) {
    case Function::ordered_dict:
      check(args.empty(), what_, ": OrderedDict with arguments is not understood");
      return push(Dict{});
    case Function::rebuild_tensor:
      return push(rebuild_tensor(args));
    case Function::rebuild_parameter:
      check(args.size() == 3, what_, ": _rebuild_parameter with ", args.size(), " arguments; expected 3");
      return push(get<at::Tensor>(args[0], "a tensor"));
  }
}

bool Unpickler::step() {
  const auto opcode = number<uint8_t>();
  switch (opcode) {
    case 0x80: {  // PROTO
      const int version = number<uint8_t>();
      check(version >= 2 && version <= 5, what_, ": pickle protocol ", version, " is not supported");
      return true;
    }
    case 0x95:
      number<uint64_t>();
      return true;  // FRAME
    case '.':
      return false;  // STOP
    case '(':
      push(Mark{});
      return true;
    case 'N':
      push(None{});
      return true;
    case 0x88:
      push(true);
      return true;
    case 0x89:
      push(false);
      return true;
    case 'J':
      push(int64_t{number<int32_t>()});
      return true;
    case 'K':
      push(int64_t{number<uint8_t>()});
      return true;
    case 'M':
      push(int64_t{number<uint16_t>()});
      return true;
    case 0x8a:
      push(long_integer());
      return true;
    case 'G':
      push(std::bit_cast<double>(__builtin_bswap64(number<uint64_t>())));
      return true;
    case 'X':
      push(std::string(take(number<uint32_t>())));
      return true;
    case 0x8c:
      push(std::string(take(number<uint8_t>())));
      return true;
    case '}':
      push(Dict{});
      return true;
    case ']':
      push(List{});
      return true;
    case ')':
      push(Tuple{});
      return true;
    case 't':
      push(Tuple{pop_to_mark()});
      return true;
    case 0x85:
      push_tuple(1);
      return true;
    case 0x86:
      push_tuple(2);
      return true;
    case 0x87:
      push_tuple(3);
      return true;
    case 'q':
      memoize(number<uint8_t>());
      return true;
    case 'r':
      memoize(number<uint32_t>());
      return true;
    case 0x94:
      memoize(static_cast<uint32_t>(memo_.size()));
      return true;
    case 'h':    // BINGET
    case 'j': {  // LONG_BINGET
      const auto entry = memo_.find(opcode == 'h' ? number<uint8_t>() : number<uint32_t>());
      check(entry != memo_.end(), what_, ": malformed pickle (nothing remembered there)");
      check(stack_.size() < kMaxValues, what_, ": the pickle needs a stack of more than ", kMaxValues);
      stack_.push_back(entry->second);
      return true;
    }
    case 'a': {  // APPEND
      const Value* item = pop();
      top<List>("APPEND").items.push_back(item);
      return true;
    }
    case 'e': {  // APPENDS
      const Values items = pop_to_mark();
      auto& list = top<List>("APPENDS").items;
      list.insert(list.end(), items.begin(), items.end());
      return true;
    }
    case 's': {  // SETITEM
      const Value* value = pop();
      const Value* key = pop();
      set_items({key, value});
      return true;
    }
    case 'u':
      set_items(pop_to_mark());
      return true;
    case 'c': {  // GLOBAL
      const auto module = line();
      push_global(module, line());
      return true;
    }
    case 0x93: {  // STACK_GLOBAL
      const auto& name = get<std::string>(pop(), "a name");
      push_global(get<std::string>(pop(), "a module"), name);
      return true;
    }
    case 'Q':
      push_storage();
      return true;
    case 'R':
      reduce();
      return true;
    case 'b':  // BUILD: attributes such as a state dict's _metadata carry no tensors.
      pop();
      top<Dict>("BUILD");
      return true;
    default:
      fail(what_, ": the pickle uses opcode ", int{opcode},
           ", which no file of tensors needs; this reader refuses to run code");
  }
}

const Value& Unpickler::run() {
  while (step()) {
  }
  check(stack_.size() == 1, what_, ": malformed pickle (", stack_.size(), " objects at its end)");
  return *pop();
}

}  // namespace

const std::unordered_map<std::string_view, at::ScalarType>& storage_types() {
  static const std::unordered_map<std::string_view, at::ScalarType> types = {
      {"torch.DoubleStorage", at::kDouble}, {"torch.FloatStorage", at::kFloat},
      {"torch.HalfStorage", at::kHalf},     {"torch.BFloat16Storage", at::kBFloat16},
      {"torch.LongStorage", at::kLong},     {"torch.IntStorage", at::kInt},
      {"torch.ShortStorage", at::kShort},   {"torch.CharStorage", at::kChar},
      {"torch.ByteStorage", at::kByte},     {"torch.BoolStorage", at::kBool}};
  return types;
}

std::map<std::string, at::Tensor> unpickle_tensors(std::string_view program,
                                                   const StorageLoader& load_storage,
                                                   const std::string& what) {
  Unpickler unpickler(program, load_storage, what);
  return flatten_tensors(unpickler.run(), what);
}

}  // namespace glimpse
