// Convolutions of 3x3 and stride 1 on a CPU in f32, by F(2x2, 3x3) of Lavin and Gray ("Fast Algorithms for
// Convolutional Neural Networks", 2016): sixteen products for four pixels of output in place of thirty-six.

#include "winograd.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <vector>

// Others than these processors keep to oneDNN.
#if defined(__x86_64__) && defined(__GNUC__)
#define AVX512 __attribute__((target("avx512f")))
#define HAS_AVX512 __builtin_cpu_supports("avx512f")
#else
#define AVX512
#define HAS_AVX512 false
#endif

namespace {

typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t kLanes = 16;

// A patch of 4x4 pixels of the input gives a tile of 2x2 of the output.
constexpr int64_t kPatch = 4, kTile = 2, kElements = kPatch * kPatch;

// So many tiles are transformed, multiplied and transformed back while they lie in the cache.
constexpr int64_t kTilesAtATime = 256;

// With fewer channels or tiles, the transformations outweigh what the products save.
constexpr int64_t kFewestChannels = 32, kFewestTiles = 128;

// B^T d B of a patch in each channel: `patch` holds its elements `stride` apart.
AVX512 void transform_patch(const float* const* pixels, float* patch, int64_t stride, int64_t channels) {
#pragma GCC ivdep
    for (int64_t channel = 0; channel < channels; ++channel) {
        float d[kElements], rows[kElements];
        for (int k = 0; k < kElements; ++k) d[k] = pixels[k][channel];
        for (int j = 0; j < kPatch; ++j) {
            rows[j] = d[j] - d[8 + j];
            rows[4 + j] = d[4 + j] + d[8 + j];
            rows[8 + j] = d[8 + j] - d[4 + j];
            rows[12 + j] = d[4 + j] - d[12 + j];
        }
        for (int i = 0; i < kElements; i += kPatch) {
            patch[i * stride + channel] = rows[i] - rows[i + 2];
            patch[(i + 1) * stride + channel] = rows[i + 1] + rows[i + 2];
            patch[(i + 2) * stride + channel] = rows[i + 2] - rows[i + 1];
            patch[(i + 3) * stride + channel] = rows[i + 1] - rows[i + 3];
        }
    }
}

// A^T m A of a patch's products in each channel, and the bias: the four pixels of a tile.
AVX512 void transform_products(const float* products, int64_t stride, const float* bias, float* const* pixels,
                        int64_t channels) {
#pragma GCC ivdep
    for (int64_t channel = 0; channel < channels; ++channel) {
        float m[kElements], rows[kTile * kPatch];
        for (int k = 0; k < kElements; ++k) m[k] = products[k * stride + channel];
        for (int j = 0; j < kPatch; ++j) {
            rows[j] = m[j] + m[4 + j] + m[8 + j];
            rows[4 + j] = m[4 + j] - m[8 + j] - m[12 + j];
        }
        for (int i = 0; i < kTile; ++i) {
            const float* row = rows + i * kPatch;
            pixels[i * kTile][channel] = row[0] + row[1] + row[2] + bias[channel];
            pixels[i * kTile + 1][channel] = row[1] - row[2] - row[3] + bias[channel];
        }
    }
}

// The product of `rows` rows of `inner` numbers and a matrix of `inner` rows, `width` numbers apart, in so many
// columns of lanes: rows `width` numbers apart. Sums stay in registers.
template <int rows, int columns>
AVX512 void multiply(const float* left, const float* right, float* product, int64_t inner, int64_t width) {
    Lanes sums[rows][columns] = {};
    for (int64_t k = 0; k < inner; ++k) {
        const Lanes* lanes = reinterpret_cast<const Lanes*>(right + k * width);
#pragma GCC unroll 6
        for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
            for (int column = 0; column < columns; ++column)
                sums[row][column] += left[row * inner + k] * lanes[column];
    }
#pragma GCC unroll 6
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
        for (int column = 0; column < columns; ++column)
            reinterpret_cast<Lanes*>(product + row * width)[column] = sums[row][column];
}

template <int columns>
AVX512 void multiply_columns(const float* left, const float* right, float* product, int64_t count, int64_t inner,
                             int64_t width) {
    constexpr int kRows = 6;
    int64_t row = 0;
    for (; row + kRows <= count; row += kRows)
        multiply<kRows, columns>(left + row * inner, right, product + row * width, inner, width);
    for (; row < count; ++row) multiply<1, columns>(left + row * inner, right, product + row * width, inner, width);
}

// (count, inner) times (inner, width), whose width is a multiple of the lanes.
void multiply(const float* left, const float* right, float* product, int64_t count, int64_t inner, int64_t width) {
    constexpr int64_t kPanel = 4 * kLanes;
    int64_t first = 0;
    for (; first + kPanel <= width; first += kPanel)
        multiply_columns<4>(left, right + first, product + first, count, inner, width);
    for (; first < width; first += kLanes)
        multiply_columns<1>(left, right + first, product + first, count, inner, width);
}

// G g G^T of each kernel: (16, C, O) of (O, C, 3, 3).
at::Tensor transform_weight(const at::Tensor& weight) {
    constexpr float g[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    std::vector<float> both;
    for (const auto& row : g)
        for (const auto& column : g)
            for (const float y : row)
                for (const float x : column) both.push_back(y * x);
    const at::Tensor kernels = weight.permute({2, 3, 1, 0}).reshape({9, -1});
    return at::mm(at::tensor(both).view({kElements, 9}), kernels).view({kElements, weight.size(1), weight.size(0)});
}

// How the pixels of images and of what is computed from them lie in memory: (N, height, width, channels).
struct Pixels {
    int64_t height, width, channels;

    int64_t numbers() const { return height * width * channels; }

    // Where in an image a pixel's channels begin; -1 outside of it.
    int64_t at(int64_t y, int64_t x) const {
        const bool is_inside = y >= 0 && y < height && x >= 0 && x < width;
        return is_inside ? (y * width + x) * channels : -1;
    }
};

// The tiles of an image, in rows.
struct Tiles {
    int64_t down, across;

    int64_t count() const { return down * across; }
    int64_t top(int64_t tile) const { return tile / across * kTile; }
    int64_t left(int64_t tile) const { return tile % across * kTile; }
};

}  // namespace

bool is_for_winograd(const at::Tensor& images, const at::Tensor& weight, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
    const auto are = [](at::IntArrayRef numbers, auto&& allowed) {
        return numbers.size() == 2 && allowed(numbers[0]) && allowed(numbers[1]);
    };
    const auto one = [](int64_t number) { return number == 1; };
    if (!is_dense_f32(images) || !is_dense_f32(weight) || images.dim() != 4 || weight.dim() != 4 || groups != 1 ||
        weight.size(2) != 3 || weight.size(3) != 3 ||
        !are(stride, one) || !are(dilation, one) || !are(padding, [](int64_t number) { return number <= 2; }))
        return false;
    const int64_t height = images.size(2) + 2 * padding[0] - 2, width = images.size(3) + 2 * padding[1] - 2;
    return HAS_AVX512 && std::min(weight.size(0), weight.size(1)) >= kFewestChannels && height > 0 && width > 0 &&
           weight.size(0) % kLanes == 0 && weight.size(1) % kLanes == 0 &&
           images.size(0) * height * width >= kFewestTiles * kTile * kTile;
}

at::Tensor convolution_3x3(const at::Tensor& images, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           at::IntArrayRef padding) {
    const at::Tensor input = images.contiguous(at::MemoryFormat::ChannelsLast);
    const Pixels in{input.size(2), input.size(3), weight.size(1)};
    const Pixels out{in.height + 2 * padding[0] - 2, in.width + 2 * padding[1] - 2, weight.size(0)};
    const Tiles tiles{(out.height + 1) / kTile, (out.width + 1) / kTile};
    const at::Tensor output = at::empty({input.size(0), out.channels, out.height, out.width},
                                        input.options().memory_format(at::MemoryFormat::ChannelsLast));
    const at::Tensor transformed = transform_weight(weight);
    const at::Tensor added = bias.has_value() && bias->defined() ? bias->contiguous() : at::Tensor();

    const std::vector<float> zeros(std::max(in.channels, out.channels));
    const float* const sources = input.const_data_ptr<float>();
    const float* const kernels = transformed.const_data_ptr<float>();
    const float* const biases = added.defined() ? added.const_data_ptr<float>() : zeros.data();
    float* const targets = output.mutable_data_ptr<float>();

    // Every tile has pixels of its own.
    at::parallel_for(0, input.size(0) * tiles.count(), 1, [&](int64_t first, int64_t last) {
        const int64_t most = std::min(kTilesAtATime, last - first);
        const at::Tensor memory = at::empty({kElements * most * (in.channels + out.channels)}, input.options());
        float* const patches = memory.mutable_data_ptr<float>();
        float* const products = patches + kElements * most * in.channels;
        std::vector<float> outside(out.channels);
        for (; first < last; first += kTilesAtATime) {
            const int64_t count = std::min(kTilesAtATime, last - first);
            for (int64_t n = 0; n < count; ++n) {
                const float* source = sources + (first + n) / tiles.count() * in.numbers();
                const int64_t tile = (first + n) % tiles.count();
                const float* pixels[kElements];
                for (int64_t k = 0; k < kElements; ++k) {
                    const int64_t at = in.at(tiles.top(tile) - padding[0] + k / kPatch,
                                             tiles.left(tile) - padding[1] + k % kPatch);
                    pixels[k] = at < 0 ? zeros.data() : source + at;
                }
                transform_patch(pixels, patches + n * in.channels, count * in.channels, in.channels);
            }
            for (int64_t k = 0; k < kElements; ++k)
                multiply(patches + k * count * in.channels, kernels + k * in.channels * out.channels,
                         products + k * count * out.channels, count, in.channels, out.channels);
            for (int64_t n = 0; n < count; ++n) {
                float* target = targets + (first + n) / tiles.count() * out.numbers();
                const int64_t tile = (first + n) % tiles.count();
                float* pixels[kTile * kTile];
                for (int64_t k = 0; k < kTile * kTile; ++k) {
                    const int64_t at = out.at(tiles.top(tile) + k / kTile, tiles.left(tile) + k % kTile);
                    pixels[k] = at < 0 ? outside.data() : target + at;
                }
                transform_products(products + n * out.channels, count * out.channels, biases, pixels, out.channels);
            }
        }
    });
    return output;
}
