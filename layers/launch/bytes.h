// Integers in messages between processes: little-endian, `count` bytes each.
#ifndef LAYERS_LAUNCH_BYTES_H
#define LAYERS_LAUNCH_BYTES_H

#include <stdint.h>

static inline void put_number(unsigned char *bytes, uint64_t number, int count) {
    for (int i = 0; i < count; i++) bytes[i] = (unsigned char)(number >> (8 * i));
}

static inline uint64_t get_number(const unsigned char *bytes, int count) {
    uint64_t number = 0;
    for (int i = 0; i < count; i++) number |= (uint64_t)bytes[i] << (8 * i);
    return number;
}

#endif
