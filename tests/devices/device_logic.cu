// Compiles the logic that CPU and GPU share as device code: random numbers, the order of selection, row operations, number
// formats, merging of states. What it computes is tested on the CPU, where the same functions run.
#include <reticle/attention/state.hpp>
#include <reticle/core/base/random.hpp>
#include <reticle/core/mask/run.hpp>
