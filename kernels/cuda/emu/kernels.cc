// All kernels, under their names. Compiled once as they are and, for the tests of the emulator, anew
// for each way in which they are broken on purpose: KERNELS is their namespace, FIND what finds them.
#include "emu.h"

namespace KERNELS {
#include "kernels.cu"

template <typename Args, void (*kernel)(const Args&)>
void call(const void* args) {
    kernel(*static_cast<const Args*>(args));
}

const struct {
    const char* name;
    void (*run)(const void*);
} TABLE[] = {
    {"rms_norm", call<RmsNormArgs, rms_norm>},
    {"add", call<AddArgs, add>},
    {"silu_mul", call<SiluMulArgs, silu_mul>},
    {"write_kv", call<WriteKvArgs, write_kv>},
    {"attention_decode_1", call<AttentionArgs, attention_decode_1>},
    {"attention_decode_2", call<AttentionArgs, attention_decode_2>},
    {"attention_decode_4", call<AttentionArgs, attention_decode_4>},
    {"attention_decode_8", call<AttentionArgs, attention_decode_8>},
    {"attention_prefill_16", call<AttentionArgs, attention_prefill_16>},
    {"attention_prefill_32", call<AttentionArgs, attention_prefill_32>},
    {"attention_prefill_mma_32", call<AttentionArgs, attention_prefill_mma_32>},
    {"attention_prefill_mma_64", call<AttentionArgs, attention_prefill_mma_64>},
    {"attention_merge", call<MergeArgs, attention_merge>},
    {"attribution", call<AttributionArgs, attribution>},
    {"rotate_heads", call<RotateArgs, rotate_heads>},
    {"read_tokens", call<ReadTokensArgs, read_tokens>},
    {"histogram", call<HistogramArgs, histogram>},
    {"copy_pages", call<CopyPagesArgs, copy_pages>},
    {"compact_lift", call<CompactArgs, compact_lift>},
    {"quantize_activations", call<QuantizeArgs, quantize_activations>},
    {"linear_4", call<LinearArgs, linear_4>},
    {"linear_8", call<LinearArgs, linear_8>},
    {"linear_mma_4", call<LinearArgs, linear_mma_4>},
    {"linear_mma_8", call<LinearArgs, linear_mma_8>},
    {"linear_rows", call<LinearRowsArgs, linear_rows>},
    {"compact_set_down", call<CompactArgs, compact_set_down>},
};
}  // namespace KERNELS

extern "C" void (*FIND(const char* name))(const void*) {
    for (const auto& kernel : KERNELS::TABLE) {
        if (strcmp(kernel.name, name) == 0) return kernel.run;
    }
    return nullptr;
}
