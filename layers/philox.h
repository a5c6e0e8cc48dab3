// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As
// Easy as 1, 2, 3" (SC'11): 128 random bits as a pure function of a 128-bit counter and a 64-bit key. The
// bits are the same on every device; there is no state between calls.
//
// Every use of randomness in training has its own stream. Its counter identifies the object that the random bits are
// for, never when or where they are computed:
//     key     = (seed low, seed high ^ (stream << 16 | layer))
//     counter = four numbers that each stream defines, usually with the step last
#ifndef LAYERS_PHILOX_H
#define LAYERS_PHILOX_H

#include "common.h"

typedef enum {
    RANDOM_INITIALISATION = 1,     // counter (element low, element high, parameter, 0)
    RANDOM_ATTENTION_DROPOUT = 2,  // attention/attention.h
    RANDOM_EMBEDDING_DROPOUT = 3,  // layers/dropout.h
    RANDOM_ATTENTION_RESIDUAL = 4, // layers/dropout.h
    RANDOM_MLP_RESIDUAL = 5,       // layers/dropout.h
    RANDOM_SAMPLING = 6,           // counter (position, sample, 0, 0)
    RANDOM_ROUNDING = 7,           // layers/adamw.cuh
} RandomStream;

typedef struct {
    uint32_t v[4];
} Philox;

typedef struct {
    uint32_t low, high;
} PhiloxKey;

static inline HOST_DEVICE PhiloxKey philox_key(uint64_t seed, RandomStream stream, uint32_t layer) {
    PhiloxKey key;
    key.low = (uint32_t)seed;
    key.high = (uint32_t)(seed >> 32) ^ ((uint32_t)stream << 16 | layer);
    return key;
}

static inline HOST_DEVICE Philox philox(PhiloxKey key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key.low;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key.high;
        c3 = (uint32_t)product0;
        key.low += 0x9E3779B9u;
        key.high += 0xBB67AE85u;
    }
    Philox result = {{c0, c1, c2, c3}};
    return result;
}

// Computes PHILOX_LANES values of philox() with one key, in vectors. c0 .. c3 hold the counters on entry and the random
// words on exit.
enum { PHILOX_LANES = 16 };
static inline void philox_lanes(PhiloxKey key, uint32_t c0[PHILOX_LANES], uint32_t c1[PHILOX_LANES],
                                uint32_t c2[PHILOX_LANES], uint32_t c3[PHILOX_LANES]) {
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < PHILOX_LANES; i++) {
            uint64_t product0 = (uint64_t)0xD2511F53u * c0[i], product1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(product1 >> 32) ^ c1[i] ^ key.low;
            c1[i] = (uint32_t)product1;
            c2[i] = (uint32_t)(product0 >> 32) ^ c3[i] ^ key.high;
            c3[i] = (uint32_t)product0;
        }
        key.low += 0x9E3779B9u;
        key.high += 0xBB67AE85u;
    }
}

// Returns byte 0 .. 15 of the 128 bits, least significant first.
static inline HOST_DEVICE uint32_t philox_byte(const Philox *random, int byte) {
    // v[byte / 4] would make a GPU compiler put the array into memory.
    uint32_t low = byte < 4 ? random->v[0] : random->v[1], high = byte < 12 ? random->v[2] : random->v[3];
    return (byte < 8 ? low : high) >> (8 * (byte % 4)) & 255u;
}

// Returns a uniform random number in (0, 1), never 0 or 1, from 32 random bits.
static inline double uniform_from_bits(uint32_t bits) {
    return ((double)bits + 0.5) * (1.0 / 4294967296.0);
}

#endif
