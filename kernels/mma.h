// Kernels on matrix units: follows.
#pragma once
#include "portable.h"
