// The CPU's part in what runs.
#pragma once

namespace warpup {

// The instruction set that the kernels' loops run with on this machine, in words.
const char* instruction_set();

}  // namespace warpup
