// CUDA's built-in vector types for the host executor, with the alignment that they have on the device.
#pragma once

#define HOSTCUDA_VECTOR(T, name, a2, a4)                                \
  struct name##1 { T x; };                                              \
  struct alignas(a2) name##2 { T x, y; };                               \
  struct name##3 { T x, y, z; };                                        \
  struct alignas(a4) name##4 { T x, y, z, w; };                         \
  constexpr name##1 make_##name##1(T x) { return {x}; }                 \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

HOSTCUDA_VECTOR(signed char, char, 2, 4)
HOSTCUDA_VECTOR(unsigned char, uchar, 2, 4)
HOSTCUDA_VECTOR(short, short, 4, 8)
HOSTCUDA_VECTOR(unsigned short, ushort, 4, 8)
HOSTCUDA_VECTOR(int, int, 8, 16)
HOSTCUDA_VECTOR(unsigned, uint, 8, 16)
HOSTCUDA_VECTOR(long, long, 16, 16)
HOSTCUDA_VECTOR(unsigned long, ulong, 16, 16)
HOSTCUDA_VECTOR(long long, longlong, 16, 16)
HOSTCUDA_VECTOR(unsigned long long, ulonglong, 16, 16)
HOSTCUDA_VECTOR(float, float, 8, 16)
HOSTCUDA_VECTOR(double, double, 16, 16)
#undef HOSTCUDA_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
