#include <algorithm>
#include <cmath>
#include <vector>

#include "divergence/divergence_rows.h"
#include "divergence/topk_divergence_math.h"

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

template <class T>
struct TopkForward {
  using Acc = acc_t<T>;
  const TopkDivergenceArgs<T>& args;
  std::vector<int64_t> ids;  // of the row at hand, rising, each once; its listed logits
  std::vector<Acc> listed;

  // Sums over the unlisted tokens, and with the listed ones over all.
  void sum(const T* x, const TopkList<T>& list, Acc inv_t, RowSum<Acc>* rest, RowSum<Acc>* all) {
    ids.clear(), listed.clear();
    for (int64_t k = 0; k < list.count; ++k) {
      if (list.holds(k)) ids.push_back(list.ids[k]);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    for (const int64_t id : ids) listed.push_back(args.form(load(x[id])));
    *all = *rest = sum_row(x, args.vocab, inv_t, args.form, ids);
    run_alone(AddBlock{}, static_cast<const Acc*>(listed.data()), int64_t(0), int64_t(listed.size()), inv_t, all);
  }

  void row(int64_t r) {
    const T* x = args.student + args.student_rows.offset(r);
    const TopkList<T> list = list_of(args, r);
    const Acc inv_t = inverse_temperature(args, r);
    Acc* stats = args.stats + kTopkStats * r;
    RowSum<Acc> all, rest;
    if (counts(args, r) && args.tail) {
      sum(x, list, inv_t, &rest, &all);
    } else if (counts(args, r)) {
      all = rest = sum_row(x, args.vocab, inv_t, args.form);
    }
    if (all.sum == 0) {
      std::fill(stats, stats + kTopkStats, Acc(0));
      args.value[r] = 0;
      return;
    }
    const RowSide<Acc> s = side_of(all);
    double value = 0, g = 0, p_t = 0;
    for (int64_t k = 0; k < list.count; ++k) {
      if (!list.holds(k)) continue;
      const Acc log_s = s(args.form(load(x[list.ids[k]])), inv_t).x - s.log;
      const auto term = topk_term<double>(args.jsd, args.beta, list.logp[k], log_s);
      value += term.value, g += term.g, p_t += std::exp(double(list.logp[k]));
    }
    double of_rest = -g;
    if (args.tail) {
      const double shift = (double(rest.max) - double(all.max)) * inv_t;
      const double log_s = rest.sum == 0 ? -kInf<double> : shift + std::log(rest.sum / all.sum);
      const auto term = topk_term<double>(args.jsd, args.beta, log_tail(p_t), log_s);
      value += term.value, g += term.g;
      of_rest = term.g - std::exp(log_s) * g;
      if (rest.sum == 0) rest = all;  // there is nothing for it to be of
    }
    args.value[r] = static_cast<Acc>(value);
    const double kept[] = {all.max, all.sum, rest.max, rest.sum, g, of_rest};
    std::transform(kept, kept + kTopkStats, stats, [](double v) { return static_cast<Acc>(v); });
  }
};

}  // namespace

template <class T>
void topk_divergence_cpu(const TopkDivergenceArgs<T>& args) {
  parallel_for(0, args.student_rows.count, grain_of(args.vocab), [&args](int64_t first, int64_t last) {
    TopkForward<T> forward{args, {}, {}};
    for (int64_t r = first; r < last; ++r) forward.row(r);
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
    const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t;
    const TopkRow<Acc> row = topk_row(stats);
    write_blocks([&](int64_t begin, int64_t n, Acc* to) {
      alignas(64) Acc wide[kBlock];
      alignas(64) Acc slope[kBlock];
      const Acc* z = load_block(x + begin, n, f.form, wide, slope);
      run_alone(ScaledSoftmax{}, z, n, inv_t, row.rest, factor * row.of_rest, to);
      if (!f.form.plain()) run_alone(MultiplyBlock{}, &slope[0], n, to);
    });
    // The listed tokens again. A token listed twice counts twice.
    const TopkList<T> list = list_of(f, r);
    for (int64_t k = 0; k < list.count; ++k) {
      if (!list.holds(k)) continue;
      const auto [z, slope] = f.form.at(load(x[list.ids[k]]));
      const auto token = row.all(z, inv_t);
      if (token.x == -kInf<Acc>) continue;
      double g_k = 0;
      for (int64_t i = 0; i < list.count; ++i) {
        if (list.ids[i] != list.ids[k]) continue;
        g_k += topk_term<double>(f.jsd, f.beta, list.logp[i], token.x - row.all.log).g;
      }
      dz[list.ids[k]] = store<T>(factor * row.listed(token.p, static_cast<Acc>(g_k)) * slope);
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
