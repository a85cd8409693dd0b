// All kernels of Lingqu as one module. README.md is the contract with the host.
#include "rows.h"
#include "route.h"
#include "sample.h"
#include "weights.h"
#include "tiles.h"
#include "attention.h"
#include "flash.h"
