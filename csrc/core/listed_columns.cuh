// A walk over a row of a vocabulary that has something special to do at a few listed columns: a bit of shared memory
// tells for nearly every vector that it holds none of them, so that only the others are compared with the list.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace warpup {

class ListedColumns {
  static constexpr int kBits = 8192, kGroup = 8;  // a bit for each 8 columns; in a longer row columns share theirs

 public:
  static constexpr int kWords = kBits / 32;

  // column(k) for k in [0, count) are the columns, negative ones none. All threads of the block must arrive.
  template <class Column>
  __device__ ListedColumns(uint32_t (&words)[kWords], int64_t count, Column column) : words_(words) {
    for (int w = threadIdx.x; w < kWords; w += blockDim.x) words[w] = 0;
    __syncthreads();
    for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
      const int64_t j = column(k);
      if (j >= 0) atomicOr(&words[word(j)], bit(j));
    }
    __syncthreads();
  }

  // Whether any of [first, first + n), n <= 8, may be listed.
  __device__ __forceinline__ bool may_hold(int64_t first, int n) const {
    return ((words_[word(first)] & bit(first)) | (words_[word(first + n - 1)] & bit(first + n - 1))) != 0;
  }

 private:
  __device__ static int word(int64_t j) { return static_cast<int>(j / kGroup % kBits / 32); }
  __device__ static uint32_t bit(int64_t j) { return 1u << (j / kGroup % 32); }

  const uint32_t* words_;
};

}  // namespace warpup
