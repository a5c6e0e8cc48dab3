// The kinds of layers that a model may consist of. A model's description (data/model/gpt_config.h) names one of each,
// by which norm.cuh, activation.cuh and positions.cuh dispatch.
#ifndef LAYERS_KINDS_H
#define LAYERS_KINDS_H

typedef enum { NORM_LAYERNORM } NormKind;
typedef enum { ACTIVATION_GELU } ActivationKind; // the tanh approximation, as in GPT-2
typedef enum { POSITIONS_LEARNED } PositionKind;

#endif
