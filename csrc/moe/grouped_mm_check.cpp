#include "moe/grouped_mm_check.h"

#include "core/dispatch.h"
#include "moe/grouped_mm.h"

namespace warpup {

#ifndef WARPUP_HOST_CUDA  // there is a CPU kernel only

namespace {

GroupedLayout layout_of(const char* op, std::string_view name) {
  if (name == "nt") return GroupedLayout::nt;
  if (name == "nn") return GroupedLayout::nn;
  if (name == "tn") return GroupedLayout::tn;
  fail(op, ": layout must be nt, nn or tn, got ", name);
}

// Offsets that rise from 0 to at most `rows`.
const int64_t* checked_offsets(const char* op, const View& offsets, int64_t rows) {
  const int64_t* bounds = data<const int64_t>(offsets);
  if (bounds[0] != 0) fail(op, ": offsets must begin with 0, got ", bounds[0]);
  for (int64_t e = 0; e + 1 < offsets.sizes[0]; ++e) {
    if (bounds[e + 1] < bounds[e] || bounds[e + 1] > rows) {
      fail(op, ": offsets must rise from 0 to at most ", rows, ", got ", bounds[e], " and then ", bounds[e + 1]);
    }
  }
  return bounds;
}

// Where the sorted rows [0, end) of `of` are: `at`, or null for themselves.
const int64_t* checked_rows(const char* op, const char* name, const OptionalView& at, const View& of, int64_t rows,
                            int64_t end) {
  if (!at) {
    if (of.sizes[0] < end) fail(op, ": ", name, " is needed: offsets reach past ", of.sizes[0], " rows");
    return nullptr;
  }
  Argument(op, name, *at).dtype({DType::i64}).on(of.device).shape({rows}).contiguous();
  const int64_t* r = data<const int64_t>(*at);
  for (int64_t s = 0; s < end; ++s) {
    if (r[s] < 0 || r[s] >= of.sizes[0]) fail(op, ": ", name, " must hold 0 to ", of.sizes[0] - 1, ", got ", r[s]);
  }
  return r;
}

template <class T>
void run(const char* op, const View& a, const View& b, const View& offsets, const OptionalView& a_rows,
         const OptionalView& b_rows, GroupedLayout layout, const View& out) {
  const bool nt = layout == GroupedLayout::nt, tn = layout == GroupedLayout::tn;
  GroupedMMArgs<T> args{};
  args.layout = layout;
  Argument(op, "b", b).dtype({a.dtype}).on(a.device).dims(tn ? 2 : 3).unit_stride_last();
  Argument(op, "offsets", offsets).dtype({DType::i64}).on(a.device).dims(1).contiguous();
  args.groups = offsets.sizes[0] - 1;
  if (args.groups < 0) fail(op, ": offsets must have groups + 1 entries, got none");
  args.width = a.sizes[1], args.columns = b.sizes[nt ? 1 : b.dims - 1];
  if (!tn) Argument(op, "b", b).shape({args.groups, nt ? args.columns : args.width, nt ? args.width : args.columns});

  args.rows = a_rows ? a_rows->sizes[0] : a.sizes[0];
  args.offsets = checked_offsets(op, offsets, args.rows);
  const int64_t end = args.offsets[args.groups];
  args.a_rows = checked_rows(op, "a_rows", a_rows, a, args.rows, end);
  if (tn) args.b_rows = checked_rows(op, "b_rows", b_rows, b, args.rows, end);
  if (!tn && b_rows) fail(op, ": b_rows is for layout tn");

  const Argument result(op, "out", out);
  result.dtype({a.dtype}).on(a.device).contiguous();
  tn ? result.shape({args.groups, args.width, args.columns}) : result.shape({args.rows, args.columns});
  args.a = data<const T>(a), args.b = data<const T>(b), args.out = data<T>(out);
  args.a_stride = a.strides[0], args.b_stride = b.strides[b.dims - 2], args.b_group = tn ? 0 : b.strides[0];
  grouped_mm_cpu(args);
}

}  // namespace

void grouped_mm(const View& a, const View& b, const View& offsets, const OptionalView& a_rows,
                const OptionalView& b_rows, std::string_view layout, const View& out) {
  const char* op = "grouped_mm";
  const GroupedLayout of = layout_of(op, layout);
  Argument(op, "a", a).dtype({DType::f32, DType::bf16, DType::f16}).dims(2).unit_stride_last();
  if (a.device.cuda) fail(op, ": on a GPU, use the library's grouped product");
  const auto call = [&]<class T>() { run<T>(op, a, b, offsets, a_rows, b_rows, of, out); };
  if (a.dtype == DType::f32) return call.template operator()<float>();
  if (a.dtype == DType::bf16) return call.template operator()<bfloat16>();
  call.template operator()<float16>();
}

#endif

}  // namespace warpup
