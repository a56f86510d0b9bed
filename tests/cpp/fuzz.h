// What a fuzzed op needs: random arrays on the heap that end where their memory ends, and a count of what was wrong.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/logit_form_check.h"
#include "core/view.h"

namespace fuzz {

using warpup::DType;
using warpup::View;

inline constexpr double kInf = std::numeric_limits<double>::infinity();

inline std::mt19937_64 engine;
inline int threads = 1;  // that parallel_for may use
inline int passed = 0, failed = 0;
inline uint64_t seed = 0;  // of the running example

// What is fuzzed: FUZZ(divergence) { ... } in any fuzz_*.cpp runs once for each seed, on the numbers that `engine` gives.
struct Example {
  const char* name;
  void (*run)();
};
inline std::vector<Example>& examples() {
  static std::vector<Example> all;  // made at its first use: files register in any order
  return all;
}
inline bool add_example(const char* name, void (*run)()) {
  examples().push_back({name, run});
  return true;
}
#define FUZZ(name)                                                                 \
  static void name();                                                              \
  [[maybe_unused]] static const bool registered_##name = add_example(#name, name); \
  static void name()

inline int64_t below(int64_t n) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(n)); }
inline bool chance(double p) { return std::uniform_real_distribution<>()(engine) < p; }
inline double normal(double scale = 1) { return std::normal_distribution<>(0, scale)(engine); }
inline DType floating() { return std::array{DType::f32, DType::f64, DType::bf16, DType::f16}[below(4)]; }

inline DType wide() { return chance(0.5) ? DType::f32 : DType::f64; }
inline int64_t some_rows() { return chance(0.02) ? 9000 + below(4000) : below(chance(0.5) ? 8 : 60); }

inline int bytes_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

// The distance from 1 to the next value.
inline double epsilon_of(DType t) {
  switch (t) {
    case DType::f64:
      return 0x1p-52;
    case DType::f32:
      return 0x1p-23;
    case DType::f16:
      return 0x1p-10;
    default:
      return 0x1p-7;
  }
}

// A strided array in memory of exactly its size, so that AddressSanitizer sees one element too many.
class Array {
 public:
  // strides: contiguous where none are given.
  Array(DType dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides = {}, int64_t offset = 0) {
    view_.dtype = dtype;
    view_.dims = static_cast<int>(sizes.size());
    int64_t step = 1, last = 0;
    for (int d = view_.dims - 1; d >= 0; --d) {
      view_.sizes[d] = sizes[d];
      view_.strides[d] = strides.empty() ? step : strides[d];
      step *= sizes[d];
      last += (sizes[d] - 1) * view_.strides[d];
    }
    const size_t count = view_.numel() > 0 ? static_cast<size_t>(last + 1 + offset) : 0;
    memory_ = std::make_unique<char[]>(count * bytes_of(dtype));
    std::memset(memory_.get(), 0xff, count * bytes_of(dtype));  // NaN, or -1
    view_.data = memory_.get() + (count > 0 ? offset * bytes_of(dtype) : 0);
  }

  const View& view() const { return view_; }
  operator const View&() const { return view_; }
  int64_t size() const { return view_.numel(); }

  // The i-th element in row-major order.
  double operator[](int64_t i) const {
    const void* p = at(i);
    switch (view_.dtype) {
      case DType::f64:
        return *static_cast<const double*>(p);
      case DType::f32:
        return *static_cast<const float*>(p);
      case DType::bf16:
        return warpup::load(*static_cast<const warpup::bfloat16*>(p));
      case DType::f16:
        return warpup::load(*static_cast<const warpup::float16*>(p));
      case DType::i64:
        return static_cast<double>(*static_cast<const int64_t*>(p));
      case DType::i32:
        return *static_cast<const int32_t*>(p);
      case DType::u8:
        return *static_cast<const uint8_t*>(p);
    }
    return 0;
  }

  void set(int64_t i, double x) {
    void* p = at(i);
    switch (view_.dtype) {
      case DType::f64:
        *static_cast<double*>(p) = x;
        break;
      case DType::f32:
        *static_cast<float*>(p) = static_cast<float>(x);
        break;
      case DType::bf16:
        *static_cast<warpup::bfloat16*>(p) = warpup::store<warpup::bfloat16>(static_cast<float>(x));
        break;
      case DType::f16:
        *static_cast<warpup::float16*>(p) = warpup::store<warpup::float16>(static_cast<float>(x));
        break;
      case DType::i64:
        *static_cast<int64_t*>(p) = static_cast<int64_t>(x);
        break;
      case DType::i32:
        *static_cast<int32_t*>(p) = static_cast<int32_t>(x);
        break;
      case DType::u8:
        *static_cast<uint8_t*>(p) = static_cast<uint8_t>(x);
        break;
    }
  }

  template <class Value>
  Array& fill(const Value& value) {
    for (int64_t i = 0; i < size(); ++i) set(i, value(i));
    return *this;
  }

 private:
  void* at(int64_t i) const {
    int64_t offset = 0;
    for (int d = view_.dims - 1; d >= 0; --d) {
      offset += i % view_.sizes[d] * view_.strides[d];
      i /= view_.sizes[d];
    }
    return static_cast<char*>(view_.data) + offset * bytes_of(view_.dtype);
  }

  std::unique_ptr<char[]> memory_;
  View view_;
};

inline warpup::OptionalView given_if(bool given, const Array& a) {
  return given ? warpup::OptionalView(a.view()) : std::nullopt;
}

// A layout that entries accept: rows `gap` elements apart, the first dimension's more so, the start not aligned.
inline Array random_layout(DType dtype, const std::vector<int64_t>& sizes, bool unit_stride_last) {
  const int dims = static_cast<int>(sizes.size());
  std::vector<int64_t> strides(dims);
  int64_t step = 1;
  for (int d = dims - 1; d >= 0; --d) {
    const bool free = !(unit_stride_last && d == dims - 1);
    if (free && chance(0.3) && (d == 0 || (unit_stride_last && d == dims - 2))) step += below(5);  // two levels of rows
    if (free && d == dims - 1) step = 1 + below(3);
    strides[d] = step;
    step *= sizes[d];
  }
  return Array(dtype, sizes, chance(0.3) ? std::vector<int64_t>{} : strides, below(4));
}

// A model's scale and soft cap, or none.
struct Form {
  warpup::LogitFormOptions options;
  Form() {
    if (chance(0.3)) options = {0.25 * (1 + below(8)), chance(0.3) ? 0 : 1.0 + below(30)};
  }
  bool plain() const { return options.scale == 1 && options.softcap == 0; }
  double operator()(double x) const {
    const double z = options.scale * x;
    return x == -kInf || options.softcap == 0 ? z : options.softcap * std::tanh(z / options.softcap);
  }
  double slope(double x) const {
    if (options.softcap == 0) return options.scale;
    const double t = std::exp(-2 * std::fabs(options.scale * x / options.softcap));
    return options.scale * 4 * t / ((1 + t) * (1 + t));
  }
};

struct Spread {  // of numbers that are there, in two passes
  int64_t n = 0;
  double mean = 0, m2 = 0, max = -kInf, min = kInf;
  explicit Spread(const std::vector<double>& x) : n(x.size()) {
    for (const double v : x) mean += v / n, max = std::max(max, v), min = std::min(min, v);
    for (const double v : x) m2 += (v - mean) * (v - mean);
    if (max == min) mean = max, m2 = 0;
  }
  double std(int64_t correction) const { return n > correction ? std::sqrt(m2 / (n - correction)) : 0; }
};

inline void expect(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED %s (--seed %llu --count 1 repeats it)\n", what.c_str(), (unsigned long long)seed);
}

// One check for the whole array: |got - want| <= tolerance, infinities and NaN the same.
template <class Want, class Tolerance>
void expect_near(const Array& got, const Want& want, const Tolerance& tolerance, const std::string& what) {
  for (int64_t i = 0; i < got.size(); ++i) {
    const double w = want(i), g = got[i];
    if (g == w || std::fabs(g - w) <= tolerance(i) || (g != g && w != w)) continue;
    return expect(false, what + "[" + std::to_string(i) + "] = " + std::to_string(g) + ", expected " +
                             std::to_string(w) + ", error " + std::to_string(std::fabs(g - w) / tolerance(i)) +
                             " tolerances");
  }
  expect(true, what);
}

// The call must be rejected with a message that holds `part`.
template <class Call>
void expect_rejected(const Call& call, const std::string& part) {
  std::string message = "nothing";
  try {
    call();
  } catch (const std::invalid_argument& e) {
    message = e.what();
  }
  expect(message.find(part) != std::string::npos, "rejection with '" + part + "', got '" + message + "'");
}

}  // namespace fuzz
