// Defines TARGET_BEGIN("avx2,fma") and TARGET_END. Only the functions between the two may use these instructions.
// library.cpp calls them only on a CPU that has the instructions.
#pragma once
#define TARGET_PRAGMA(x) _Pragma(#x)
#ifdef __clang__
#define TARGET_BEGIN(isa) TARGET_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(isa) _Pragma("GCC push_options") TARGET_PRAGMA(GCC target(isa))
#define TARGET_END _Pragma("GCC pop_options")
#endif
