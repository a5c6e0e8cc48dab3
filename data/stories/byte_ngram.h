// A byte-level n-gram model: the baseline that a trained model has to beat.
//
// Order n: the next symbol depends on the n preceding bytes. The 257 symbols are the bytes and the end of the
// document; n start marks precede the first byte, so nothing is carried from one document to the next. Smoothing is
// interpolated Witten-Bell (Bell, Cleary, Witten 1990): with N the count of a context h, T the number of different
// symbols seen after it, and h' the context without its oldest byte,
//     p(s | h) = (count(h s) + T(h) p(s | h')) / (N(h) + T(h)),
// p(s | h) = p(s | h') if h was never seen, and 1/257 below the empty context.
#ifndef DATA_STORIES_BYTE_NGRAM_H
#define DATA_STORIES_BYTE_NGRAM_H

#include <stddef.h>

enum { BYTE_NGRAM_MAX_ORDER = 5, BYTE_NGRAM_END = 256, BYTE_NGRAM_SYMBOLS = 257 };

typedef struct ByteNgram ByteNgram;

// `order`: 0 to BYTE_NGRAM_MAX_ORDER.
ByteNgram *byte_ngram_new(int order);
void byte_ngram_free(ByteNgram *model);
// Counts one document, including its end.
void byte_ngram_add(ByteNgram *model, const char *text, size_t length);
// Returns the probability of a symbol after these bytes, which begin a document.
double byte_ngram_probability(const ByteNgram *model, const char *text, size_t length, int symbol);
// Returns -log2 of the probability of a document, including its end.
double byte_ngram_bits(const ByteNgram *model, const char *text, size_t length);

#endif
