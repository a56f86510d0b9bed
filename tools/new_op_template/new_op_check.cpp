#include "new_family/new_op_check.h"

#include "core/dispatch.h"
#include "new_family/new_op.h"

namespace warpup {

void new_op(const View& x, double scale, const View& out) {
  const char* op = "new_op";
  Argument(op, "x", x).contiguous();
  Argument(op, "out", out).dtype({x.dtype}).on(x.device).shape_like(x, x.dims).contiguous();
  dispatch_floating(op, "x", x.dtype, [&]<class T>() {
    const NewOpArgs<T> args{x.numel(), data<const T>(x), scale, data<T>(out)};
    WARPUP_RUN(new_op, T, x.device, args);
  });
}

}  // namespace warpup
