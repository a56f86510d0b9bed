// The CPU's part in what runs.
#pragma once

namespace warpup {

// The instruction set that the loaded CPU kernels were compiled for, in words.
const char* instruction_set();

}  // namespace warpup
