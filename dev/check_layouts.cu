// Checks the layouts of the CUDA emulator against those of CuTe, an independent source: which element is in which
// register of mma.m16n8k16 and of the accumulator of wgmma, and the addresses in shared memory that descriptors and
// swizzles of wgmma give. It runs on the host and needs no GPU. Emulator and CuTe both declare CUDA's names, so this
// file is compiled twice:
//
//     pip download --no-deps nvidia-cutlass -d /tmp/cutlass && unzip -q '/tmp/cutlass/*.whl' -d /tmp/cutlass
//     g++ -x c++ -std=c++17 -O2 -include dev/cuda_on_cpu/cuda_on_cpu.h -Idev/cuda_on_cpu/include -I.
//         -fno-strict-aliasing -Wno-psabi -c dev/check_layouts.cu -o /tmp/emulated.o
//     g++ -x c++ -std=c++17 -O2 -w -I. -I/tmp/cutlass/cutlass_library/source/include
//         -I/usr/local/cuda/include -I/usr/local/cuda/include/cccl -c dev/check_layouts.cu -o /tmp/cute.o
//     g++ /tmp/emulated.o /tmp/cute.o -o /tmp/check_layouts && /tmp/check_layouts
#include <cstdint>

struct Layouts {
    float a[16][16], b[16][8], c[16][8]; // operands of mma; values are lane * elements per lane + element
};
void emulated_mma(Layouts *layouts);
// Computes row and column of each element of the accumulators of 128 threads; rows, columns (128, n / 2).
void emulated_wgmma(int n, float *rows, float *columns);
unsigned emulated_address(uint64_t descriptor, bool mn_major, unsigned mn, unsigned k);

#ifdef CUDA_EMULATION
#include "layers/ptx_hopper.h"

// ---- emulator ---------------------------------------------------------------------------------------------

// The value of every element is its number; numbers up to 255 are exact in bf16.
void emulated_mma(Layouts *layouts) {
    uint32_t a[32][4], b[32][2];
    float c[32][4];
    emulation::MmaSlot slots[32];
    void *pointers[32];
    auto pair = [](int number) {
        return emulation::Bf16Format::pack(float(number)) |
               uint32_t(emulation::Bf16Format::pack(float(number + 1))) << 16;
    };
    for (int lane = 0; lane < 32; lane++) {
        for (int r = 0; r < 4; r++) a[lane][r] = pair(lane * 8 + r * 2), c[lane][r] = float(lane * 4 + r);
        for (int r = 0; r < 2; r++) b[lane][r] = pair(lane * 4 + r * 2);
        slots[lane] = {a[lane], b[lane], c[lane], nullptr};
        pointers[lane] = &slots[lane];
    }
    emulation::gather_mma(pointers, layouts->a, layouts->b, layouts->c);
}

// a (64, 16) and b (16, n) are zero except for k = 0, where a is its row and b is 1, or a is 1 and b is its column.
template <int n> __global__ void wgmma_kernel(float *out, bool want_row) {
    DYNAMIC_SHARED(__nv_bfloat16, a);
    __nv_bfloat16 *b = a + 64 * 64;
    for (int i = threadIdx.x; i < (64 + n) * 64; i += 128) a[i] = 0;
    __syncthreads();
    for (int row = threadIdx.x; row < 64; row += 128) a[row * 64 + row % 8 * 8] = want_row ? row : 1;
    for (int row = threadIdx.x; row < n; row += 128) b[row * 64 + row % 8 * 8] = want_row ? 1 : row;
    __syncthreads();
    float d[n / 2];
    wgmma_bf16<n>(d, descriptor_128b(a, 16, 1024), descriptor_128b(b, 16, 1024), 0);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < n / 2; i++) out[threadIdx.x * (n / 2) + i] = d[i];
}
template <int n> static void run_wgmma(float *host, bool want_row) {
    float *device;
    size_t bytes = 128 * n / 2 * sizeof(float), shared = (64 + n) * 128;
    cudaMalloc(&device, bytes);
    cudaFuncSetAttribute(wgmma_kernel<n>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1), config.blockDim = dim3(128), config.dynamicSmemBytes = shared;
    cudaLaunchKernelEx(&config, wgmma_kernel<n>, device, want_row);
    cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost);
    cudaFree(device);
}
void emulated_wgmma(int n, float *rows, float *columns) {
    auto run = n == 64 ? run_wgmma<64> : n == 128 ? run_wgmma<128> : run_wgmma<256>;
    run(rows, true);
    run(columns, false);
}

unsigned emulated_address(uint64_t descriptor, bool mn_major, unsigned mn, unsigned k) {
    return emulation::wgmma_address(descriptor, mn_major, mn, k);
}

#else
#include <cute/tensor.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <vector>

#include "test/harness/test.h"
using namespace cute;

// ---- CuTe -------------------------------------------------------------------------------------------------

// A thread-value layout maps (thread, element) to an index into a column-major matrix with `rows` rows.
template <class Layout, class Number>
static void check_registers(const char *name, Layout layout, int rows, int threads, int elements,
                            Number number_at) {
    int wrong = 0;
    for (int thread = 0; thread < threads; thread++)
        for (int i = 0; i < elements; i++) {
            int index = int(layout(thread, i));
            wrong += !number_at(index % rows, index / rows, thread, i);
        }
    if (EXPECT(wrong == 0, "%s: %d of %d registers differ", name, wrong, threads * elements))
        printf("%-32s %5d registers agree\n", name, threads * elements);
}

static void check_mma() {
    static Layouts e;
    emulated_mma(&e);
    using Traits = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;
    check_registers("mma A (M, K)", Traits::ALayout{}, 16, 32, 8,
                    [](int m, int k, int lane, int i) { return e.a[m][k] == float(lane * 8 + i); });
    check_registers("mma B (N, K)", Traits::BLayout{}, 8, 32, 4,
                    [](int n, int k, int lane, int i) { return e.b[k][n] == float(lane * 4 + i); });
    check_registers("mma C (M, N)", Traits::CLayout{}, 16, 32, 4,
                    [](int m, int n, int lane, int i) { return e.c[m][n] == float(lane * 4 + i); });
}

template <int n> static void check_accumulator(const char *name) {
    std::vector<float> rows(128 * n / 2), columns(128 * n / 2);
    emulated_wgmma(n, rows.data(), columns.data());
    check_registers(
        name, SM90::GMMA::CLayout_64xN<n>{}, 64, 128, n / 2, [&](int row, int column, int thread, int i) {
            return rows[thread * n / 2 + i] == float(row) && columns[thread * n / 2 + i] == float(column);
        });
}

// Compares the byte offsets of a 128 x `depth` operand that is laid out in atoms with those that its descriptor gives.
template <int depth, class Atom>
static void check_operand(const char *name, Atom atom, bool mn_major, unsigned mode, unsigned leading,
                          unsigned stride) {
    auto layout = tile_to_shape(atom, Shape<_128, Int<depth>>{});
    auto swizzle = get_swizzle_portion(layout);
    auto plain = get_nonswizzle_portion(layout);
    uint64_t descriptor = uint64_t(leading / 16) << 16 | uint64_t(stride / 16) << 32 | uint64_t(mode) << 62;
    int wrong = 0;
    for (unsigned mn = 0; mn < 128; mn++)
        for (unsigned k = 0; k < depth; k++)
            wrong += unsigned(swizzle(int(plain(mn, k)) * 2)) !=
                     emulated_address(descriptor, mn_major, mn, k);
    if (EXPECT(wrong == 0, "%s: %d of %d elements differ", name, wrong, 128 * depth))
        printf("%-32s %5d elements agree\n", name, 128 * depth);
}

int main() {
    check_mma();
    check_accumulator<64>("wgmma D 64x64");
    check_accumulator<128>("wgmma D 64x128");
    check_accumulator<256>("wgmma D 64x256");
    using namespace SM90::GMMA;
    // Atoms follow each other along the first mode, then along the second.
    check_operand<64>("K-major, no swizzle", Layout_K_INTER_Atom<bfloat16_t>{}, false, 0, 16 * 128, 128);
    check_operand<16>("K-major, 32-byte swizzle", Layout_K_SW32_Atom<bfloat16_t>{}, false, 3, 0, 256);
    check_operand<32>("K-major, 64-byte swizzle", Layout_K_SW64_Atom<bfloat16_t>{}, false, 2, 0, 512);
    check_operand<64>("K-major, 128-byte swizzle", Layout_K_SW128_Atom<bfloat16_t>{}, false, 1, 0, 1024);
    check_operand<64>("MN-major, no swizzle", Layout_MN_INTER_Atom<bfloat16_t>{}, true, 0, 16 * 128, 128);
    check_operand<64>("MN-major, 32-byte swizzle", Layout_MN_SW32_Atom<bfloat16_t>{}, true, 3, 256, 8 * 256);
    check_operand<64>("MN-major, 64-byte swizzle", Layout_MN_SW64_Atom<bfloat16_t>{}, true, 2, 512, 4 * 512);
    check_operand<64>("MN-major, 128-byte swizzle", Layout_MN_SW128_Atom<bfloat16_t>{}, true, 1, 1024,
                      2 * 1024);
    return test_finish();
}
#endif
