// A profiler for tests: writes every NVTX range that a program opens and closes to the file NVTX_RECORDING, one line
// each, `push NAME` or `pop`, in the order of the calls.
//
//     gcc -shared -fPIC -idirafter CUDA/include test/harness/nvtx_recorder.c -o recorder.so
//     NVTX_INJECTION64_PATH=recorder.so NVTX_RECORDING=ranges.txt PROGRAM
//
// NVTX loads the library at its first call and asks it to replace its empty functions. In these programs all ranges
// are opened by one thread, so lines need no lock.
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *recording;

static int on_push(const char *name) {
    fprintf(recording, "push %s\n", name);
    return 0;
}
static int on_pop(void) {
    fprintf(recording, "pop\n");
    return 0;
}

__attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
    const char *path = getenv("NVTX_RECORDING");
    const NvtxExportTableCallbacks *callbacks =
        (const NvtxExportTableCallbacks *)get_table(NVTX_ETID_CALLBACKS);
    NvtxFunctionTable functions;
    unsigned count;
    if (path == NULL || callbacks == NULL ||
        !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &functions, &count))
        return 0;
    recording = fopen(path, "w");
    if (recording == NULL || count <= NVTX_CBID_CORE_RangePop) return 0;
    *functions[NVTX_CBID_CORE_RangePushA] = (NvtxFunctionPointer)on_push;
    *functions[NVTX_CBID_CORE_RangePop] = (NvtxFunctionPointer)on_pop;
    return 1; // this version of the interface is supported
}
