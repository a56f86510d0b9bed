#include "divergence/divergence_check.h"

#include "divergence/divergence.h"

namespace warpup {

namespace {

struct Kind {
  Divergence kind;
  bool swap;
};

// jsd at beta 0 and 1 is the KL that GKD puts there (TRL's generalized_jsd_loss), not the sum, which is 0.
Kind kind_of(const char* op, std::string_view name, double beta) {
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

template <class T>
DivergenceArgs<T> common_args(const char* op, const View& student, const View& teacher,
                              const DivergenceOptions& options, const View& stats) {
  const int lead = student.dims - 1;
  DivergenceArgs<T> args{};
  const auto [kind, swap] = kind_of(op, options.kind, options.beta);
  args.kind = kind, args.beta = options.beta;
  const Argument teacher_arg(op, "teacher_logits", teacher);
  teacher_arg.dtype({student.dtype}).on(student.device).shape_like(student, student.dims).unit_stride_last();
  args.student = data<const T>(student);
  args.student_rows = Argument(op, "student_logits", student).rows(lead);
  args.teacher = data<const T>(teacher);
  args.teacher_rows = teacher_arg.rows(lead);
  args.vocab = student.sizes[lead];
  args.mask = per_row<uint8_t>(op, "mask", options.mask, student);
  args.temperature = temperature_of<acc_t<T>>(op, options.temperature, student);
  args.student_form = logit_form<acc_t<T>>(op, options.student_form);
  args.teacher_form = logit_form<acc_t<T>>(op, options.teacher_form, "teacher_");
  args.stats = row_state<acc_t<T>>(op, "stats", stats, student, kDivergenceStats);
  if (!swap) return args;
  if (!options.targets) fail(op, ": kind logit_swap needs targets, got None");
  args.targets = per_row<int64_t>(op, "targets", options.targets, student);
  if (args.vocab > int64_t(1) << 24) fail(op, ": logit_swap keeps an index in float32, vocab must be at most 2^24");
  for (int64_t r = 0; !student.device.cuda && r < args.targets.rows.count; ++r) {
    const int64_t y = args.targets[r];
    if ((y < 0 || y >= args.vocab) && counts(args, r)) {
      fail(op, ": targets[", r, "] = ", y, " is outside [0, ", args.vocab, ") and not masked");
    }
  }
  return args;
}

}  // namespace

void divergence(const View& student, const View& teacher, const DivergenceOptions& options, const View& value,
                const View& stats) {
  const char* op = "divergence";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    auto args = common_args<T>(op, student, teacher, options, stats);
    args.value = row_output<acc_t<T>>(op, "value", value, student);
    WARPUP_RUN(divergence, T, student.device, args);
  });
}

void divergence_backward(const View& student, const View& teacher, const DivergenceOptions& options, const View& stats,
                         const View& grad_value, const View& grad_student) {
  const char* op = "divergence_backward";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    DivergenceBackwardArgs<T> args{};
    args.forward = common_args<T>(op, student, teacher, options, stats);
    args.grad_value = per_row<acc_t<T>>(op, "grad_value", grad_value, student);
    const Argument out(op, "grad_student", grad_student);
    out.dtype({student.dtype}).on(student.device).shape_like(student, student.dims).unit_stride_last();
    args.grad_student = data<T>(grad_student);
    args.grad_student_rows = out.rows(student.dims - 1);
    WARPUP_RUN(divergence_backward, T, student.device, args);
  });
}

}  // namespace warpup
