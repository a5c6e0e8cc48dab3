// The kinds of layer that a model may be made of. A model's description (data/model/gpt_config.h) names one of each, and the
// dispatchers norm.cuh, activation.cuh and positions.cuh choose by it.
#ifndef LAYERS_KINDS_H
#define LAYERS_KINDS_H

typedef enum { NORM_LAYERNORM } NormKind;
typedef enum { ACTIVATION_GELU } ActivationKind; // by tanh, as in GPT-2
typedef enum { POSITIONS_LEARNED } PositionKind;

#endif
