#include "divergence/divergence_rows.h"
#include "divergence/topk_divergence.h"

namespace warpup {
namespace {

// to[j] = p[j] * factor
struct ScaledSoftmax {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* z, int64_t n, Acc inv_t, RowSide<Acc> s, Acc factor, Acc* to) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = factor * s(z[j], inv_t).p;
  }
};

}  // namespace

template <class T>
void topk_divergence_cpu(const TopkDivergenceArgs<T>& args) {
  using Acc = acc_t<T>;
  parallel_for(0, args.student_rows.count, grain_of(args.vocab), [&args](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T* x = args.student + args.student_rows.offset(r);
      const Acc inv_t = inverse_temperature(args, r);
      RowSum<Acc> sum;
      if (counts(args, r)) sum = sum_row(x, args.vocab, inv_t);
      const bool empty = sum.sum == 0;
      const auto s = side_of(sum);
      double value = 0, listed = 0;
      const int64_t* ids = args.ids + args.ids_rows.offset(r);
      const Acc* logp = args.logp + args.logp_rows.offset(r);
      for (int64_t k = 0; k < args.k && !empty; ++k) {
        if (logp[k] == -kInf<Acc>) continue;
        const Acc log_s = s(load(x[ids[k]]), inv_t).x - s.log;
        if (log_s == -kInf<Acc>) continue;
        const double p = std::exp(double(logp[k]));
        value += p * (double(logp[k]) - log_s), listed += p;
      }
      args.value[r] = static_cast<Acc>(value);
      Acc* stats = args.stats + kTopkStats * r;
      stats[0] = sum.max, stats[1] = static_cast<Acc>(sum.sum), stats[2] = static_cast<Acc>(listed);
    }
  });
}

template <class T>
void topk_divergence_backward_cpu(const TopkDivergenceBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const TopkDivergenceArgs<T>& f = args.forward;
  write_gradient<T>(args, [&](int64_t r, T* dz, const auto& write_blocks) {
    const Acc* stats = f.stats + kTopkStats * r;
    const Acc g = args.grad_value[r];
    if (stats[1] == 0 || g == 0) {
      std::fill(dz, dz + f.vocab, T{});
      return;
    }
    const T* x = f.student + f.student_rows.offset(r);
    const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t, listed = stats[2];
    const auto s = row_side(stats[0], stats[1]);
    write_blocks([&](int64_t begin, int64_t n, Acc* to) {
      alignas(64) Acc wide[kBlock];
      run_alone(ScaledSoftmax{}, load_block(x + begin, n, {}, wide), n, inv_t, s, factor * listed, to);
    });
    // The listed tokens again, each less its share of pT. A token listed twice counts twice.
    const int64_t* ids = f.ids + f.ids_rows.offset(r);
    const Acc* logp = f.logp + f.logp_rows.offset(r);
    for (int64_t k = 0; k < f.k; ++k) {
      const auto token = s(load(x[ids[k]]), inv_t);
      if (token.x == -kInf<Acc>) continue;
      double p = 0;
      for (int64_t i = 0; i < f.k; ++i) p += ids[i] == ids[k] ? std::exp(double(logp[i])) : 0;
      dz[ids[k]] = store<T>(factor * (token.p * listed - static_cast<Acc>(p)));
    }
  });
}

#define INSTANTIATE(T)                                                     \
  template void topk_divergence_cpu<T>(const TopkDivergenceArgs<T>& args); \
  template void topk_divergence_backward_cpu<T>(const TopkDivergenceBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
