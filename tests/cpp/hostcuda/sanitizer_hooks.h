// With -fsanitize=alignment,bounds -fno-sanitize-recover=all the compiler checks plain loads and array indices, which
// no header can, and calls these. Ours say which thread it was, and need no sanitizer library. Included once.
#pragma once

#include <cstdint>
#include <cstdio>

#include "executor.h"

namespace hostcuda {
struct SourceLocation {  // these three as the compiler lays them out
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct CheckData {
  SourceLocation at;
  const TypeDescriptor* type;
  unsigned char log_alignment, check;  // of a type mismatch only
};
}  // namespace hostcuda

extern "C" {
[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(void* checked, void* address) {
  const auto* data = static_cast<const hostcuda::CheckData*>(checked);
  hostcuda::fail({}, "misaligned or null access: address %p, alignment %d, type %s at %s:%u", address,
                 1 << data->log_alignment, data->type->name, data->at.file, data->at.line);
}
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(void* checked, void* index) {
  const auto* data = static_cast<const hostcuda::CheckData*>(checked);
  hostcuda::fail({}, "index %lld out of bounds of %s at %s:%u",
                 static_cast<long long>(reinterpret_cast<intptr_t>(index)), data->type->name, data->at.file,
                 data->at.line);
}
}
