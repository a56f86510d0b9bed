// The constants of CUDA's <math_constants.h> that kernels use.
#pragma once

#define CUDART_INF_F (__builtin_inff())
#define CUDART_NAN_F (__builtin_bit_cast(float, 0x7fffffffu))
#define CUDART_MAX_NORMAL_F 3.402823466e+38f
#define CUDART_LN2_F 0.693147181f
#define CUDART_L2E_F 1.442695041f
#define CUDART_PI_F 3.141592654f
#define CUDART_INF (__builtin_inf())
#define CUDART_NAN (__builtin_bit_cast(double, 0xfff8000000000000ull))
#define CUDART_LN2 6.9314718055994529e-1
#define CUDART_L2E 1.4426950408889634e+0
#define CUDART_PI 3.1415926535897931e+0
