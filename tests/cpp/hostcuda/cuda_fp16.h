// CUDA's <cuda_fp16.h> for the host executor: the types, conversions and arithmetic that kernels here use.
#pragma once

#include "float16.h"

using __half = hostcuda::Float16<10, 15>;
using __half2 = hostcuda::Float16x2<__half>;
using half = __half;
using half2 = __half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __ushort_as_half(unsigned short bits) { return __half::from_bits(bits); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __short_as_half(short bits) { return __half::from_bits(static_cast<unsigned short>(bits)); }
inline short __half_as_short(__half x) { return static_cast<short>(x.bits); }

inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }

HOSTCUDA_SHUFFLES(__half)
HOSTCUDA_SHUFFLES(__half2)
