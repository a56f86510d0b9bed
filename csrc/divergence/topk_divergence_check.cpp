#include "divergence/topk_divergence_check.h"

#include "divergence/divergence_math.h"
#include "divergence/topk_divergence.h"

namespace warpup {

namespace {

// As of `divergence`, jsd at beta 0 and 1 is the KL that GKD puts there; both KLs are mixed at one end.
template <class T>
void set_kind(const char* op, const TopkOptions& options, TopkDivergenceArgs<T>* args) {
  const auto [name, beta] = std::pair(options.kind, options.beta);
  if (!(beta >= 0 && beta <= 1)) fail(op, ": beta must be in [0, 1], got ", beta);
  args->jsd = name == "jsd" && beta > 0 && beta < 1;
  if (name == "forward" || name == "reverse") {
    args->beta = name == "forward" ? 1 : 0;
  } else if (name == "jsd" || name == "mixed") {
    args->beta = name == "mixed" || args->jsd ? beta : 1 - beta;
  } else {
    fail(op, ": kind must be one of forward, reverse, jsd, mixed, got '", name, "'");
  }
}

template <class T>
TopkDivergenceArgs<T> common_args(const char* op, const View& student, const TopkTeacher& teacher,
                                  const TopkOptions& options, const View& stats) {
  using Acc = acc_t<T>;
  const int lead = student.dims - 1;
  TopkDivergenceArgs<T> args{};
  set_kind(op, options, &args);
  args.tail = options.tail;
  args.vocab = student.sizes[lead];
  args.student = data<const T>(student);
  args.student_rows = Argument(op, "student_logits", student).rows(lead);
  args.mask = per_row<uint8_t>(op, "mask", options.mask, student);
  args.temperature = temperature_of<Acc>(op, options.temperature, student);
  args.form = logit_form<Acc>(op, options.form);
  args.stats = row_state<Acc>(op, "stats", stats, student, kTopkStats);
  const Argument ids(op, "teacher_ids", teacher.ids), logp(op, "teacher_logp", teacher.logp);
  ids.dtype({DType::i64}).on(student.device).dims(student.dims).unit_stride_last();
  logp.dtype({dtype_of<Acc>()}).on(student.device).shape_like(teacher.ids, teacher.ids.dims).unit_stride_last();
  View rows = teacher.ids;  // its leading dimensions
  rows.dims = lead;
  Argument(op, "teacher_ids without its last dimension", rows).shape_like(student, lead);
  args.k = teacher.ids.sizes[lead];
  args.ids = data<const int64_t>(teacher.ids);
  args.ids_rows = ids.rows(lead);
  args.logp = data<const Acc>(teacher.logp);
  args.logp_rows = logp.rows(lead);
  for (int64_t r = 0; !student.device.cuda && r < args.ids_rows.count; ++r) {
    if (!counts(args, r)) continue;
    for (int64_t k = 0; k < args.k; ++k) {
      const int64_t id = args.ids[args.ids_rows.offset(r) + k];
      if (id < 0 || id >= args.vocab) {
        fail(op, ": teacher_ids[", r, ", ", k, "] = ", id, " is outside [0, ", args.vocab, ")");
      }
    }
  }
  return args;
}

}  // namespace

void topk_divergence(const View& student, const TopkTeacher& teacher, const TopkOptions& options, const View& value,
                     const View& stats) {
  const char* op = "topk_divergence";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    auto args = common_args<T>(op, student, teacher, options, stats);
    args.value = row_output<acc_t<T>>(op, "value", value, student);
    WARPUP_RUN(topk_divergence, T, student.device, args);
  });
}

void topk_divergence_backward(const View& student, const TopkTeacher& teacher, const TopkOptions& options,
                              const View& stats, const View& grad_value, const View& grad_student) {
  const char* op = "topk_divergence_backward";
  Argument(op, "student_logits", student).unit_stride_last();
  dispatch_floating(op, "student_logits", student.dtype, [&]<class T>() {
    TopkDivergenceBackwardArgs<T> args{};
    args.forward = common_args<T>(op, student, teacher, options, stats);
    args.grad_value = per_row<acc_t<T>>(op, "grad_value", grad_value, student);
    const Argument out(op, "grad_student", grad_student);
    out.dtype({student.dtype}).on(student.device).shape_like(student, student.dims).unit_stride_last();
    args.grad_student = data<T>(grad_student);
    args.grad_student_rows = out.rows(student.dims - 1);
    WARPUP_RUN(topk_divergence_backward, T, student.device, args);
  });
}

}  // namespace warpup
