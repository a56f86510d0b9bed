#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>

#include "torch/product.h"

namespace warpup {
namespace {

// A tensor in the view's memory.
Tensor over(const View& v) {
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(v.data, v.dims, v.sizes.data(), v.strides.data(), 0,
                                                            torch_dtype(v.dtype), aoti_torch_device_type_cpu(), 0,
                                                            &made));
  return Tensor(made);
}

using Shared = torch::stable::Tensor;  // as the functions of torch's headers take them

Shared in_float32(const View& v) {
  return torch::stable::to(Shared(over(v).release()), torch::headeronly::ScalarType::Float);
}

View columns_of(const View& v, int64_t first, int64_t last) { return transposed(rows_of(transposed(v), first, last)); }

// Calls body(first, last) for parts of [0, n), all of about one size, of 2048 at most: of such pieces three take 16 MiB
// each, and each number is converted once in 2048 uses.
template <class Body>
void each_part(int64_t n, const Body& body) {
  constexpr int64_t kMost = 2048;
  const int64_t parts = std::max<int64_t>(1, (n + kMost - 1) / kMost), each = (n + parts - 1) / parts;
  for (int64_t first = 0; first < n; first += each) body(first, std::min(n, first + each));
}

}  // namespace

void library_product(const View& a, const View& b, const OptionalView& bias, const View& out) {
  const Tensor x = over(a), y = over(b), z = over(out);
  if (bias) {
    const Tensor added = over(*bias);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(z.get(), added.get(), x.get(), y.get(), 1, 1));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(z.get(), x.get(), y.get()));
  }
}

void widened_product(const View& a, const View& b, const OptionalView& bias, const View& out) {
  each_part(a.sizes[0], [&](int64_t row, int64_t last_row) {
    each_part(b.sizes[1], [&](int64_t column, int64_t last_column) {
      View part = columns_of(rows_of(out, row, last_row), column, last_column);
      View of_bias = part;  // the same number in each row
      if (bias) of_bias.data = rows_of(*bias, column, last_column).data, of_bias.strides = {0, bias->strides[0]};
      Shared to(over(part).release()), total = in_float32(bias ? of_bias : part);
      if (!bias) torch::stable::zero_(total);
      each_part(a.sizes[1], [&](int64_t k, int64_t last_k) {
        const Shared x = in_float32(columns_of(rows_of(a, row, last_row), k, last_k));
        const Shared y = in_float32(columns_of(rows_of(b, k, last_k), column, last_column));
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(total.get(), total.get(), x.get(), y.get(), 1, 1));
      });
      torch::stable::copy_(to, total);
    });
  });
}

View transposed(View matrix) {
  const int last = matrix.dims - 1;
  std::swap(matrix.sizes[last], matrix.sizes[last - 1]);
  std::swap(matrix.strides[last], matrix.strides[last - 1]);
  return matrix;
}

View rows_of(View v, int64_t first, int64_t last) {
  v.data = static_cast<std::byte*>(v.data) + first * v.strides[0] * bytes_of(v.dtype);
  v.sizes[0] = last - first;
  return v;
}

}  // namespace warpup
