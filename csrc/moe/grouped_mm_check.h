// The entry of grouped_mm: checks every argument, then calls the kernel. See grouped_mm.h.
#pragma once

#include <string_view>

#include "core/view.h"

namespace warpup {

// layout: "nt", "nn" or "tn". out is written.
void grouped_mm(const View& a, const View& b, const View& offsets, const OptionalView& a_rows,
                const OptionalView& b_rows, std::string_view layout, const View& out);

}  // namespace warpup
