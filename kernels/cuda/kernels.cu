// All kernels in one module: what the real compiler and the emulator get.
#include "activation.cu"
#include "attention_decode.cu"
#include "attention_prefill.cu"
#include "attribution.cu"
#include "compact.cu"
#include "linear.cu"
#include "write_kv.cu"
