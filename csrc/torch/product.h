// The library's matrix product on a CPU, of views: a call by name, as Python's, costs more than a small product.
#pragma once

#include "torch/torch.h"

namespace warpup {

// out = a b, plus bias where it is given, one number a column; all of one dtype, each with unit stride one way.
void library_product(const View& a, const View& b, const OptionalView& bias, const View& out);

// The same where the library is slow at these 16 bits: the operands become float32, piece by piece, the product is made
// and summed in float32, and rounded once, as in python/warpup/_products.py.
void widened_product(const View& a, const View& b, const OptionalView& bias, const View& out);

// Of a matrix, its transpose; of several (three dimensions), each one's.
View transposed(View matrix);

// Rows [first, last) of a view: the first dimension's.
View rows_of(View v, int64_t first, int64_t last);

}  // namespace warpup
