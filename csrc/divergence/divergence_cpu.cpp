// A row at a time: one sweep over each side for its softmax's sums, then blocks of both sides, which stay in L1,
// through the formulas of divergence_math.h.
#include "divergence/divergence.h"
#include "divergence/divergence_rows.h"

namespace warpup {
namespace {

constexpr int64_t kRun = 256;  // added up in float32: equal terms, all rounded the same way, add up their errors too

struct Sums {
  double value = 0, c = 0;
};

// ---- loops over a block ---------------------------------------------------------------------------------------------

template <Divergence kind>
struct AddTerms {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* z_s, const Acc* z_t, int64_t n, DivergenceRow<Acc> row, Sums* sums) const {
    for (int64_t first = 0; first < n; first += kRun) {
      const int64_t last = n - first < kRun ? n : first + kRun;
      Acc value = 0, c = 0;
#pragma omp simd reduction(+ : value, c)
      for (int64_t j = first; j < last; ++j) {
        const auto term = divergence_term<kind>(row, z_s[j], z_t[j]);
        value += term.value;
        c += term.c;
      }
      sums->value += value;
      sums->c += c;
    }
  }
};

// to[j] = factor * slope; `to` may be z_s
template <Divergence kind>
struct Slopes {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* z_s, const Acc* z_t, int64_t n, DivergenceRow<Acc> row, Acc factor,
                            Acc* to) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = factor * divergence_slope<kind>(row, z_s[j], z_t[j]);
  }
};

// The loops of a kind behind pointers: chosen once a call, and compiled for float and double only.
template <class Acc>
struct Loops {
  void (*add_terms)(const Acc* z_s, const Acc* z_t, int64_t n, const DivergenceRow<Acc>& row, Sums* sums);
  void (*slopes)(const Acc* z_s, const Acc* z_t, int64_t n, const DivergenceRow<Acc>& row, Acc factor, Acc* to);
};

template <class Acc>
Loops<Acc> loops_of(Divergence kind) {
  Loops<Acc> loops{};
  dispatch_divergence(kind, [&loops]<Divergence kind>() {
    loops.add_terms = [](const Acc* z_s, const Acc* z_t, int64_t n, const DivergenceRow<Acc>& row, Sums* sums) {
      run_alone(AddTerms<kind>{}, z_s, z_t, n, row, sums);
    };
    loops.slopes = [](const Acc* z_s, const Acc* z_t, int64_t n, const DivergenceRow<Acc>& row, Acc factor, Acc* to) {
      run_alone(Slopes<kind>{}, z_s, z_t, n, row, factor, to);
    };
  });
  return loops;
}

// ---- forward --------------------------------------------------------------------------------------------------------

template <class T>
Sums add_terms(const DivergenceArgs<T>& args, const Loops<acc_t<T>>& loops, const T* x_s, const T* x_t,
               const DivergenceRow<acc_t<T>>& row) {
  alignas(64) acc_t<T> wide[2][kBlock];
  Sums sums;
  for (int64_t begin = 0; begin < args.vocab; begin += kBlock) {
    const int64_t n = std::min(kBlock, args.vocab - begin);
    loops.add_terms(load_block(x_s + begin, n, args.student_form, wide[0]),
                    load_block(x_t + begin, n, args.teacher_form, wide[1]), n, row, &sums);
  }
  return sums;
}

// What changes in the sums when the teacher's maximum and the target's logit exchange places. The maximum is in the
// block of columns from `block` on; returns its column, or vocab where there is NaN.
template <class T>
int64_t swap_terms(const DivergenceArgs<T>& args, int64_t r, const T* x_s, const T* x_t, int64_t block,
                   const DivergenceRow<acc_t<T>>& row, Sums* sums) {
  alignas(64) acc_t<T> wide[kBlock];
  const int64_t n = std::min(kBlock, args.vocab - block);
  const acc_t<T>* z_t = load_block(x_t + block, n, args.teacher_form, wide);  // the same bits as when max was found
  const int64_t top = block + (std::find(z_t, z_t + n, row.t.max) - z_t);
  const int64_t y = args.targets[r];
  if (top == block + n) return args.vocab;
  if (top == y) return top;
  const auto add = [&](int64_t at, int64_t teacher_at, int sign) {
    const auto term = divergence_term<Divergence::forward>(row, args.student_form(load(x_s[at])),
                                                           args.teacher_form(load(x_t[teacher_at])));
    sums->value += sign * double(term.value), sums->c += sign * double(term.c);
  };
  add(top, top, -1), add(y, y, -1), add(top, y, 1), add(y, top, 1);
  return top;
}

template <class T>
void forward_row(const DivergenceArgs<T>& args, const Loops<acc_t<T>>& loops, int64_t r) {
  using Acc = acc_t<T>;
  const T* x_s = args.student + args.student_rows.offset(r);
  const T* x_t = args.teacher + args.teacher_rows.offset(r);
  const Acc inv_t = inverse_temperature(args, r), beta = static_cast<Acc>(args.beta);
  DivergenceRow<Acc> row;
  row.inv_t = inv_t, row.beta = beta;
  int64_t block = 0;
  bool empty = !counts(args, r);
  if (!empty && args.kind != Divergence::binary) {
    const auto s = sum_row(x_s, args.vocab, inv_t, args.student_form);
    const auto t = sum_row(x_t, args.vocab, inv_t, args.teacher_form);
    empty = s.sum == 0 || t.sum == 0;
    row = divergence_row(side_of(s), side_of(t), inv_t, beta, Acc(0));
    block = t.block;
  }
  Acc* stats = args.stats + kDivergenceStats * r;
  if (empty) {
    std::fill(stats, stats + kDivergenceStats, Acc(0));
    args.value[r] = 0;
    return;
  }
  Sums sums = add_terms(args, loops, x_s, x_t, row);
  const int64_t top = args.targets ? swap_terms(args, r, x_s, x_t, block, row, &sums) : 0;
  args.value[r] = static_cast<Acc>(sums.value);
  const Acc kept[] = {row.s.max, row.s.sum, row.t.max, row.t.sum, static_cast<Acc>(sums.c), static_cast<Acc>(top)};
  std::copy(kept, kept + kDivergenceStats, stats);
}

}  // namespace

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class T>
void divergence_cpu(const DivergenceArgs<T>& args) {
  const auto loops = loops_of<acc_t<T>>(args.kind);
  parallel_for(0, args.student_rows.count, grain_of(args.vocab), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) forward_row(args, loops, r);
  });
}

template <class T>
void divergence_backward_cpu(const DivergenceBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const DivergenceArgs<T>& f = args.forward;
  const auto loops = loops_of<Acc>(f.kind);
  write_gradient<T>(args, [&](int64_t r, T* dz, const auto& write_blocks) {
    const Acc* stats = f.stats + kDivergenceStats * r;
    const Acc g = args.grad_value[r];
    if (stats[1] == 0 || g == 0) {
      std::fill(dz, dz + f.vocab, T{});
      return;
    }
    const T* x_s = f.student + f.student_rows.offset(r);
    const T* x_t = f.teacher + f.teacher_rows.offset(r);
    const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t;
    const auto row = divergence_row(row_side(stats[0], stats[1]), row_side(stats[2], stats[3]), inv_t,
                                    static_cast<Acc>(f.beta), stats[4]);
    // The two swapped entries, before dz, which may be x_s, is written.
    const int64_t top = f.targets ? static_cast<int64_t>(stats[5]) : f.vocab;
    const bool swap = top < f.vocab;
    const int64_t y = swap ? f.targets[r] : 0;
    const auto swapped = [&](int64_t at, int64_t teacher_at) {
      const auto [z, slope] = f.student_form.at(load(x_s[at]));
      const Acc z_t = f.teacher_form(load(x_t[teacher_at]));
      return store<T>(factor * divergence_slope<Divergence::forward>(row, z, z_t) * slope);
    };
    const T at_top = swap ? swapped(top, y) : T{}, at_y = swap ? swapped(y, top) : T{};
    write_blocks([&](int64_t begin, int64_t n, Acc* to) {
      alignas(64) Acc wide[2][kBlock];
      alignas(64) Acc slope[kBlock];
      const Acc* z_s = load_block(x_s + begin, n, f.student_form, wide[0], slope);
      loops.slopes(z_s, load_block(x_t + begin, n, f.teacher_form, wide[1]), n, row, factor, to);
      if (!f.student_form.plain()) run_alone(MultiplyBlock{}, &slope[0], n, to);
    });
    if (swap) dz[top] = at_top, dz[y] = at_y;
  });
}

#define INSTANTIATE(T)                                            \
  template void divergence_cpu<T>(const DivergenceArgs<T>& args); \
  template void divergence_backward_cpu<T>(const DivergenceBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
