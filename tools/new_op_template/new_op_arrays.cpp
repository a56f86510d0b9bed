#include "arrays/arrays.h"
#include "new_family/new_op_check.h"

namespace warpup {

WARPUP_ARRAYS(m) {
  m.def("new_op", "x times scale: out, of x's shape and dtype, is written.", &new_op, "x"_a, py::kw_only(),
        "scale"_a = 1.0, "out"_w);
}

}  // namespace warpup
