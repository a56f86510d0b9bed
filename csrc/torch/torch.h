// Between torch's stable ABI and our views. Only this folder and the families' *_torch files include this.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/version.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/view.h"

static_assert(TORCH_TARGET_VERSION <= TORCH_ABI_VERSION, "the installed torch is older than warpup's minimum, 2.10");

namespace warpup {

int32_t torch_dtype(DType type);  // the C interface's number for it
int64_t bytes_of(DType type);     // of one number

// A tensor with one owner: what an op is handed, and what it returns. The `Tensor` of torch's headers shares its handle,
// which costs each argument and each result of a call two allocations more.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  int64_t dim() const { return asked<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return asked<int64_t>(aoti_torch_get_numel); }
  std::span<const int64_t> sizes() const { return {asked<int64_t*>(aoti_torch_get_sizes), size_t(dim())}; }
  std::span<const int64_t> strides() const { return {asked<int64_t*>(aoti_torch_get_strides), size_t(dim())}; }
  DType dtype() const;
  Device device() const;  // with torch's current stream of it

 private:
  template <class T>
  T asked(AOTITorchError (*question)(AtenTensorHandle, T*)) const {
    T answer{};
    TORCH_ERROR_CODE_CHECK(question(handle_, &answer));
    return answer;
  }

  AtenTensorHandle handle_;
};

using OptionalTensor = std::optional<Tensor>;

View view(const Tensor& tensor);
inline OptionalView view(const OptionalTensor& tensor) { return tensor ? OptionalView(view(*tensor)) : std::nullopt; }

// The sizes of a new tensor.
struct Sizes {
  int dims = 0;
  std::array<int64_t, View::kMaxDims> at;

  Sizes(std::initializer_list<int64_t> sizes) : Sizes() {
    for (int64_t n : sizes) add(n);
  }
  Sizes() = default;
  void add(int64_t n) {
    if (dims == View::kMaxDims) fail("warpup ops make at most ", View::kMaxDims, " dimensions");
    at[dims++] = n;
  }
};

// An uninitialised contiguous tensor on `like`'s device. Large CPU results ask for huge pages: their first touch is
// otherwise most of what a memory-bound op costs (on 131 MB: 62 ms of page faults against 13 ms of copying).
Tensor empty(const Sizes& sizes, DType dtype, const Tensor& like);

// `like`'s sizes without the last `dropped`, then `extra`.
Sizes sizes_of(const Tensor& like, int64_t dropped = 0, std::initializer_list<int64_t> extra = {});

// float64 for float64, else float32.
DType accumulator_of(const Tensor& tensor);

// What an op with several results returns; they are moved there.
template <class... T>
std::tuple<T...> results(T&... each) {
  return {std::move(each)...};
}

// ---- How torch calls an op: arguments from a stack, results onto it -------------------------------------------------

template <class T>
T taken(StableIValue value) {
  if constexpr (std::is_same_v<T, Tensor>) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  } else if constexpr (std::is_same_v<T, OptionalTensor>) {
    const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
    return handle ? OptionalTensor(*handle) : std::nullopt;
  } else {
    return torch::stable::detail::to<T>(value);
  }
}

inline StableIValue given(Tensor&& result) { return torch::stable::detail::from(result.release()); }
inline StableIValue given(OptionalTensor&& result) {
  using Handle = std::optional<AtenTensorHandle>;
  return torch::stable::detail::from(result ? Handle(result->release()) : Handle());
}

template <class T>
inline constexpr uint64_t results_in = 1;
template <>
inline constexpr uint64_t results_in<void> = 0;
template <class... T>
inline constexpr uint64_t results_in<std::tuple<T...>> = sizeof...(T);

template <auto function>
struct Boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
    if (inputs != sizeof...(Arguments) || outputs != results_in<Result>) {
      fail("an op's schema and its function have different arguments or results");
    }
    unpack(stack, std::index_sequence_for<Arguments...>());
  }

 private:
  template <size_t... i>
  static void unpack(StableIValue* stack, std::index_sequence<i...>) {
    std::tuple<std::remove_cvref_t<Arguments>...> arguments{taken<std::remove_cvref_t<Arguments>>(stack[i])...};
    if constexpr (std::is_void_v<Result>) {
      function(static_cast<Arguments&&>(std::get<i>(arguments))...);
    } else {
      give(stack, function(static_cast<Arguments&&>(std::get<i>(arguments))...));
    }
  }

  static void give(StableIValue* stack, Tensor result) { *stack = given(std::move(result)); }
  template <class... T>
  static void give(StableIValue* stack, std::tuple<T...> results) {
    std::apply([&](T&... each) { ((*stack++ = given(std::move(each))), ...); }, results);
  }
};

// `function` as a library's `impl` takes it; its parameters and results are those of the schema, one for one.
template <auto function>
inline constexpr auto boxed = &Boxed<function>::call;

}  // namespace warpup
