// (being written)
#pragma once
#include "rows.h"
