#include "advantage/masked_whiten_check.h"

#include "advantage/masked_whiten.h"
#include "core/dispatch.h"

namespace warpup {

namespace {

template <class T>
MaskedMomentsArgs<T> moments_args(const char* op, const View& x, const OptionalView& mask, bool skip_nan,
                                  int64_t correction, const View& partials, const View& moments) {
  MaskedMomentsArgs<T> args{};
  args.count = x.numel();
  args.x = data<const T>(x);
  if (mask) Argument(op, "mask", *mask).dtype({DType::u8}).on(x.device).shape_like(x, x.dims).contiguous();
  args.mask = data<const uint8_t>(mask);
  args.skip_nan = skip_nan;
  args.correction = check_correction(op, correction);
  const Argument scratch(op, "partials", partials), result(op, "moments", moments);
  scratch.dtype({DType::f64}).on(x.device).shape({Moments::chunks(args.count), Moments::kPartial}).contiguous();
  result.dtype({DType::f64}).on(x.device).shape({Moments::kResult}).contiguous();
  args.partials = data<double>(partials);
  args.moments = data<double>(moments);
  return args;
}

}  // namespace

int32_t check_correction(const char* op, int64_t correction) {
  if (correction != 0 && correction != 1) fail(op, ": correction must be 0 or 1, got ", correction);
  return static_cast<int32_t>(correction);
}

void masked_moments(const View& x, const OptionalView& mask, bool skip_nan, int64_t correction, const View& partials,
                    const View& moments) {
  const char* op = "masked_moments";
  Argument(op, "x", x).contiguous();
  dispatch_wide(op, "x", x.dtype, [&]<class T>() {
    const auto args = moments_args<T>(op, x, mask, skip_nan, correction, partials, moments);
    WARPUP_RUN(masked_moments, T, x.device, args);
  });
}

void masked_whiten(const View& x, const OptionalView& mask, bool shift_mean, int64_t correction, double eps,
                   const View& out, const View& partials, const View& moments) {
  const char* op = "masked_whiten";
  Argument(op, "x", x).contiguous();
  if (!(eps >= 0)) fail(op, ": eps must be at least 0, got ", eps);
  dispatch_wide(op, "x", x.dtype, [&]<class T>() {
    MaskedWhitenArgs<T> args{};
    args.of = moments_args<T>(op, x, mask, false, correction, partials, moments);
    args.shift_mean = shift_mean, args.eps = eps;
    Argument(op, "out", out).dtype({x.dtype}).on(x.device).shape_like(x, x.dims).contiguous();
    args.out = data<T>(out);
    WARPUP_RUN(masked_whiten, T, x.device, args);
  });
}

}  // namespace warpup
