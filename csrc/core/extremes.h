// Reductions of simd loops by the largest or the smallest element: `#pragma omp simd reduction(largest : x)`. OpenMP's
// own `max` and `min` begin with a finite number in clang: the maximum of a row that is all -inf would be the lowest
// finite one, which is nowhere in the row. With gcc both ways take the same time. (clang 14 takes no `omp_in < omp_out`
// here.)
#pragma once

namespace warpup {

#pragma omp declare reduction(largest : float, double : omp_out = omp_in > omp_out ? omp_in : omp_out) \
    initializer(omp_priv = omp_orig)
#pragma omp declare reduction(smallest : float, double : omp_out = omp_out > omp_in ? omp_in : omp_out) \
    initializer(omp_priv = omp_orig)

}  // namespace warpup
