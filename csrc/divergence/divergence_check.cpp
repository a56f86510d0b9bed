#include "divergence/divergence_check.h"

#include "core/dispatch.h"
#include "divergence/divergence.h"

namespace warpup {

namespace {

struct DivergenceKind {
  Divergence kind;
  bool swap;
};

// jsd at beta 0 and 1 is the KL that GKD puts there (TRL's generalized_jsd_loss), not the sum, which is 0.
DivergenceKind divergence_kind(const char* op, std::string_view name, double beta) {
  if (!(beta >= 0 && beta <= 1)) fail(op, ": beta must be in [0, 1], got ", beta);
  if (name == "forward") return {Divergence::forward, false};
  if (name == "reverse") return {Divergence::reverse, false};
  if (name == "jeffreys") return {Divergence::jeffreys, false};
  if (name == "jsd") {
    return {beta == 0 ? Divergence::forward : beta == 1 ? Divergence::reverse : Divergence::jsd, false};
  }
  if (name == "symmetric_ce") return {Divergence::symmetric_ce, false};
  if (name == "logit_swap") return {Divergence::forward, true};
  if (name == "binary") return {Divergence::binary, false};
  fail(op, ": kind must be one of forward, reverse, jeffreys, jsd, symmetric_ce, logit_swap, binary, got '", name, "'");
}

// student, mask, temperature and stats, which both ops have.
template <class Args>
void divergence_common(const char* op, const View& student, const OptionalView& mask, const OptionalView& temperature,
                       double temperature_scalar, const View& stats, int64_t stats_per_row, Args* args) {
  using Acc = typename Args::Acc;
  const int lead = student.dims - 1;
  args->vocab = student.sizes[lead];
  args->student_rows = Argument(op, "student_logits", student).rows(lead);
  if (mask) {
    const Argument arg(op, "mask", *mask);
    args->mask_rows = arg.dtype({DType::u8}).on(student.device).shape_like(student, lead).rows(lead);
    args->mask = data<const uint8_t>(*mask);
  }
  if (temperature) {
    const Argument arg(op, "temperature", *temperature);
    args->temperature_rows = arg.dtype({DType::f32}).on(student.device).shape_like(student, lead).rows(lead);
    args->temperature = data<const float>(*temperature);
    for (int64_t r = 0; !student.device.cuda && r < args->temperature_rows.count; ++r) {
      const float t = args->temperature[args->temperature_rows.offset(r)];
      if (!(t > 0)) fail(op, ": temperature must be above 0, got ", t, " in row ", r);
    }
  } else if (!(temperature_scalar > 0)) {
    fail(op, ": temperature must be above 0, got ", temperature_scalar);
  }
  args->temperature_scalar = temperature_scalar;
  Argument(op, "stats", stats).dtype({dtype_of<Acc>()}).on(student.device).contiguous();
  if (stats.numel() != stats_per_row * args->student_rows.count) {
    fail(op, ": stats must hold ", stats_per_row, " values a row, got shape ", shape_of(stats));
  }
  args->stats = data<Acc>(stats);
}

template <class Args>
bool divergence_counts(const Args& args, int64_t r) {
  return !args.mask || args.mask[args.mask_rows.offset(r)] != 0;
}

template <class T>
DivergenceArgs<T> divergence_args(const char* op, const View& student, const View& teacher,
                                  const OptionalView& temperature, const OptionalView& mask,
                                  const OptionalView& targets, std::string_view kind, double temperature_scalar,
                                  double beta, const View& stats) {
  const int lead = student.dims - 1;
  DivergenceArgs<T> args{};
  const auto [divergence, swap] = divergence_kind(op, kind, beta);
  args.kind = divergence, args.beta = beta;
  const Argument teacher_arg(op, "teacher_logits", teacher);
  teacher_arg.dtype({student.dtype}).on(student.device).shape_like(student, student.dims).unit_stride_last();
  args.student = data<const T>(student);
  args.teacher = data<const T>(teacher);
  args.teacher_rows = teacher_arg.rows(lead);
  divergence_common(op, student, mask, temperature, temperature_scalar, stats, kDivergenceStats, &args);
  if (!swap) return args;
  if (!targets) fail(op, ": kind logit_swap needs targets, got None");
  const Argument arg(op, "targets", *targets);
  args.targets_rows = arg.dtype({DType::i64}).on(student.device).shape_like(student, lead).rows(lead);
  args.targets = data<const int64_t>(*targets);
  if (args.vocab > int64_t(1) << 24) fail(op, ": logit_swap keeps an index in float32, vocab must be at most 2^24");
  for (int64_t r = 0; !student.device.cuda && r < args.targets_rows.count; ++r) {
    const int64_t y = args.targets[args.targets_rows.offset(r)];
    if ((y < 0 || y >= args.vocab) && divergence_counts(args, r)) {
      fail(op, ": targets[", r, "] = ", y, " is outside [0, ", args.vocab, ") and not masked");
    }
  }
  return args;
}

template <class T>
TopkDivergenceArgs<T> topk_divergence_args(const char* op, const View& student, const View& ids, const View& logp,
                                           const OptionalView& temperature, const OptionalView& mask,
                                           double temperature_scalar, const View& stats) {
  const int lead = student.dims - 1;
  TopkDivergenceArgs<T> args{};
  args.student = data<const T>(student);
  divergence_common(op, student, mask, temperature, temperature_scalar, stats, kTopkStats, &args);
  const Argument ids_arg(op, "teacher_ids", ids), logp_arg(op, "teacher_logp", logp);
  ids_arg.dtype({DType::i64}).on(student.device).dims(student.dims).unit_stride_last();
  logp_arg.dtype({dtype_of<acc_t<T>>()}).on(student.device).shape_like(ids, ids.dims).unit_stride_last();
  View rows = ids;  // its leading dimensions
  rows.dims = lead;
  Argument(op, "teacher_ids without its last dimension", rows).shape_like(student, lead);
  args.k = ids.sizes[lead];
  args.ids = data<const int64_t>(ids);
  args.ids_rows = ids_arg.rows(lead);
  args.logp = data<const acc_t<T>>(logp);
  args.logp_rows = logp_arg.rows(lead);
  for (int64_t r = 0; !student.device.cuda && r < args.ids_rows.count; ++r) {
    if (!divergence_counts(args, r)) continue;
    for (int64_t k = 0; k < args.k; ++k) {
      const int64_t id = args.ids[args.ids_rows.offset(r) + k];
      if (id < 0 || id >= args.vocab) {
        fail(op, ": teacher_ids[", r, ", ", k, "] = ", id, " is outside [0, ", args.vocab, ")");
      }
    }
  }
  return args;
}

template <class T, class Args>
void divergence_gradients(const char* op, const View& student, const View& grad_value, const View& grad_student,
                          Args* args) {
  const int lead = student.dims - 1;
  const Argument g(op, "grad_value", grad_value), out(op, "grad_student", grad_student);
  args->grad_value_rows = g.dtype({dtype_of<acc_t<T>>()}).on(student.device).shape_like(student, lead).rows(lead);
  args->grad_value = data<const acc_t<T>>(grad_value);
  out.dtype({student.dtype}).on(student.device).shape_like(student, student.dims).unit_stride_last();
  args->grad_student = data<T>(grad_student);
  args->grad_student_rows = out.rows(lead);
}

template <class T>
acc_t<T>* divergence_value(const char* op, const View& student, const View& value) {
  const Argument arg(op, "value", value);
  arg.dtype({dtype_of<acc_t<T>>()}).on(student.device).shape_like(student, student.dims - 1).contiguous();
  return data<acc_t<T>>(value);
}

}  // namespace

void divergence(const View& student, const View& teacher, const OptionalView& temperature, const OptionalView& mask,
                const OptionalView& targets, std::string_view kind, double temperature_scalar, double beta,
                const View& value, const View& stats) {
  const char* op = "divergence";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    auto args =
        divergence_args<T>(op, student, teacher, temperature, mask, targets, kind, temperature_scalar, beta, stats);
    args.value = divergence_value<T>(op, student, value);
    WARPUP_RUN(divergence, T, student.device, args);
  });
}

void divergence_backward(const View& student, const View& teacher, const OptionalView& temperature,
                         const OptionalView& mask, const OptionalView& targets, std::string_view kind,
                         double temperature_scalar, double beta, const View& stats, const View& grad_value,
                         const View& grad_student) {
  const char* op = "divergence_backward";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    DivergenceBackwardArgs<T> args{};
    args.forward =
        divergence_args<T>(op, student, teacher, temperature, mask, targets, kind, temperature_scalar, beta, stats);
    divergence_gradients<T>(op, student, grad_value, grad_student, &args);
    WARPUP_RUN(divergence_backward, T, student.device, args);
  });
}

void topk_divergence(const View& student, const View& ids, const View& logp, const OptionalView& temperature,
                     const OptionalView& mask, double temperature_scalar, const View& value, const View& stats) {
  const char* op = "topk_divergence";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    auto args = topk_divergence_args<T>(op, student, ids, logp, temperature, mask, temperature_scalar, stats);
    args.value = divergence_value<T>(op, student, value);
    WARPUP_RUN(topk_divergence, T, student.device, args);
  });
}

void topk_divergence_backward(const View& student, const View& ids, const View& logp, const OptionalView& temperature,
                              const OptionalView& mask, double temperature_scalar, const View& stats,
                              const View& grad_value, const View& grad_student) {
  const char* op = "topk_divergence_backward";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    TopkDivergenceBackwardArgs<T> args{};
    args.forward = topk_divergence_args<T>(op, student, ids, logp, temperature, mask, temperature_scalar, stats);
    divergence_gradients<T>(op, student, grad_value, grad_student, &args);
    WARPUP_RUN(topk_divergence_backward, T, student.device, args);
  });
}

}  // namespace warpup
