// Code that both compilers see: the C++ compiler for the CPU, nvcc for the kernels.
#pragma once

#ifdef __CUDACC__
#define PM_DEVICE __host__ __device__
#else
#define PM_DEVICE
#endif
