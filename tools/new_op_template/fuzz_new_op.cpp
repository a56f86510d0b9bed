// new_op against a plain loop.
#include "fuzz.h"
#include "new_family/new_op_check.h"

namespace fuzz {
namespace {

FUZZ(new_op) {
  const DType dtype = floating();
  const double scale = normal();
  Array x(dtype, {below(300)}), out(dtype, {x.view().sizes[0]});
  x.fill([](int64_t) { return normal(); });
  warpup::new_op(x.view(), scale, out.view());
  const double eps = 2 * epsilon_of(dtype);
  const auto want = [&](int64_t i) { return scale * x[i]; };
  expect_near(out, want, [&](int64_t i) { return eps * std::abs(want(i)) + 1e-7; }, "new_op");
}

}  // namespace
}  // namespace fuzz
