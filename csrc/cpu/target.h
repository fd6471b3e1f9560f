// TARGET_BEGIN("avx2,fma") ... TARGET_END: functions between may use these instructions, and only they: library.cpp
// calls them after it has asked the CPU.
#pragma once
#define TARGET_PRAGMA(x) _Pragma(#x)
#ifdef __clang__
#define TARGET_BEGIN(isa) TARGET_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(isa) _Pragma("GCC push_options") TARGET_PRAGMA(GCC target(isa))
#define TARGET_END _Pragma("GCC pop_options")
#endif
