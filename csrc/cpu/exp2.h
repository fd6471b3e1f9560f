// 2^f on [0, 1) with value 1 at 0, minimax in the relative error.
#pragma once
static constexpr float EXP2_4[] = {0.693044845f, 0.241280207f, 0.0522424704f, 0.0134266867f};  // 2.9e-6
static constexpr float EXP2_5[] = {0.693151312f, 0.24016445f, 0.0557999135f, 0.00901702974f, 0.00186713034f};  // 9e-8
