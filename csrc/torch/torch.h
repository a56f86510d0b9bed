// Between torch's stable ABI and our views. Only ops_*.cpp and torch.cpp include this.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/csrc/stable/version.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "core/view.h"

static_assert(TORCH_TARGET_VERSION <= TORCH_ABI_VERSION, "the installed torch is older than warpup's minimum, 2.10");

namespace warpup {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

View view(const Tensor& tensor);
inline OptionalView view(const OptionalTensor& tensor) { return tensor ? OptionalView(view(*tensor)) : std::nullopt; }

// An uninitialised contiguous tensor on `like`'s device. Large CPU results ask for huge pages: their first touch is
// otherwise most of what a memory-bound op costs (on 131 MB: 62 ms of page faults against 13 ms of copying).
Tensor empty(const std::vector<int64_t>& sizes, DType dtype, const Tensor& like);

// `like`'s sizes without the last `dropped`, then `extra`.
std::vector<int64_t> sizes_of(const Tensor& like, int64_t dropped = 0, std::initializer_list<int64_t> extra = {});

// float64 for float64, else float32.
DType accumulator_of(const Tensor& tensor);

}  // namespace warpup
