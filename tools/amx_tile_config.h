// Included first by each file of the build of llama.cpp (tools/native.py).
//
// GCC before 11.5, 12.4 and 13.3 takes _tile_loadconfig for a read of the first 8 of its 64 bytes
// (its bug 114098). It then drops the rest of the configuration, and the first tile instruction is
// an illegal one. This is the same instruction with all bytes declared.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
