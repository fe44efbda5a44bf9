// Local cross attention on CUDA devices. A warp takes 16 visible Gaussians at a time; the queries come in tiles through
// shared memory, so any number of them fits. Tensor cores do the products of features, keys and gradients, as accurately
// as float32. Densities need differences of coordinates, which would cancel in products; lanes that own two queries each
// compute them. Pairs of Gaussians and queries change hands in shared memory, so that distributions and their gradients
// move in whole lines.

#include "local_cross_attention.h"

#include <algorithm>

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "device_errors.h"

namespace panoptic_mapper {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 16;  // visible Gaussians of a warp: the rows of a matrix that tensor cores take
constexpr int kRows = kWarps * kWarpRows;  // of a block's tile
constexpr int kQueries = 64;               // of a tile; as many need their scores only once
constexpr int kGroup = 16;                 // queries that are scored at once, and whose sums a warp keeps
constexpr int kGroups = kQueries / kGroup;
// Strides of rows in shared memory: those at which the vector loads below have no bank conflicts.
constexpr int kKeyStride = kFeatureDim + 4, kFeatureStride = kFeatureDim + 8, kPairStride = kQueries + 8;
constexpr int kForwardBlocks = 4;   // per multiprocessor, by its registers
constexpr int kBackwardBlocks = 3;  // by its shared memory
constexpr int kFinishThreads = 512;
constexpr float kLog2e = 1.44269504f;
constexpr unsigned kAllLanes = 0xffffffffu;

static_assert(kFeatureDim == 32 && kQueries == 64, "lanes are laid out for 32 features, and own two queries");
static_assert(kGroups == kWarps, "a warp keeps the sums of a group");

struct QueryTile {
  float keys[2][kQueries][kKeyStride];  // their high and low parts
  float geometry[12][kQueries];         // the whitening matrix by rows, the centre
};

using Pairs = float (*)[kPairStride];  // of a warp's Gaussians with a tile's queries

struct ForwardShared {
  QueryTile queries;
  float scores[kRows][kPairStride];  // first features, then densities
  float4 means[kRows];
  float masses[kRows];  // of things; in the end over Z
};

struct BackwardShared {
  QueryTile queries;
  float features[kRows][kFeatureStride];
  float v_dots[kRows][kPairStride];     // gradients of the distribution, then of f . key
  float v_squares[kRows][kPairStride];  // densities, then gradients of the squared distances, then their moments
  float4 means[kRows];
  int64_t rows[kRows];    // visible, -1 where it is wrong
  float masses[kRows];    // of things
  float v_things[kRows];  // their gradients; first the terms of these that have no query
};

// Four values from and to storage.
__device__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ void store4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }

template <typename T>
struct alignas(8) Four {
  T x, y, z, w;
};
template <typename T>
__device__ float4 load4(const T* from) {
  const Four<T> v = *reinterpret_cast<const Four<T>*>(from);
  return make_float4((float)v.x, (float)v.y, (float)v.z, (float)v.w);
}
template <typename T>
__device__ void store4(T* to, float4 v) {
  *reinterpret_cast<Four<T>*>(to) = Four<T>{(T)v.x, (T)v.y, (T)v.z, (T)v.w};
}
__device__ float2 load2(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ void store2(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }

// Without the care for denormal numbers that the usual functions take.
__device__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Tensor cores take floats of 11 bits (TF32) and ignore the others. high has the first ones, rounded; low all that is
// left, so that high high + high low + low high is a product but for 2^-22 of it.
struct Parts {
  float high, low;
  __device__ explicit Parts(float v) {
    high = __uint_as_float((__float_as_uint(v) + 0x1000u) & 0xffffe000u);
    low = v - high;
  }
};

// Matrices as lanes hold them, with row = lane / 4, t = lane % 4 (PTX, mma.m16n8k8):
//   a [16, 8]: (row, t), (row + 8, t), (row, t + 4), (row + 8, t + 4);  b [8, 8]: (t, row), (t + 4, row)
//   c [16, 8]: (row, 2 t), (row, 2 t + 1), (row + 8, 2 t), (row + 8, 2 t + 1)
// The order of what is summed over, and that of b's columns, is free: it is chosen such that lanes read and write vectors.
__device__ void multiply(float (&c)[4], const float (&a)[4], float b0, float b1) {  // c += a b
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

struct Matrix {  // a
  float high[4], low[4];
  __device__ void set(int i, float v) {
    const Parts parts(v);
    high[i] = parts.high, low[i] = parts.low;
  }
};

struct Slice {  // b
  float high[2], low[2];
};

// c += a b for several b, one after the other, so that none waits for the last sum. The small products can be summed
// apart: tensor cores do not round sums, they cut them off.
template <int n>
__device__ void multiply(float (&c)[n][4], float (&small)[n][4], const Matrix& a, const Slice (&b)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) multiply(small[i], a.low, b[i].high[0], b[i].high[1]);
#pragma unroll
  for (int i = 0; i < n; ++i) multiply(c[i], a.high, b[i].high[0], b[i].high[1]);
#pragma unroll
  for (int i = 0; i < n; ++i) multiply(small[i], a.high, b[i].low[0], b[i].low[1]);
}

__device__ void load_queries(const AttentionInputs& in, int first, QueryTile& tile) {
  constexpr int per_key = kFeatureDim / 4;
  const int count = min(kQueries, in.Q - first);
  for (int i = threadIdx.x; i < kQueries * per_key; i += kThreads) {
    const int q = i / per_key, column = i % per_key * 4;
    const float4 key = q < count ? load4(in.keys + (int64_t)(first + q) * kFeatureDim + column) : make_float4(0, 0, 0, 0);
    const Parts x(key.x), y(key.y), z(key.z), w(key.w);
    store4(&tile.keys[0][q][column], make_float4(x.high, y.high, z.high, w.high));
    store4(&tile.keys[1][q][column], make_float4(x.low, y.low, z.low, w.low));
  }
  for (int i = threadIdx.x; i < kQueries * 12; i += kThreads) {
    const int q = i % kQueries, value = i / kQueries;
    const int64_t query = first + q;
    tile.geometry[value][q] = q >= count  ? 0.0f
                              : value < 9 ? in.whitenings[query * 9 + value]
                                          : in.centers[query * 3 + value - 9];
  }
}

// This thread's warp, in a way that tells the compiler that its lanes agree.
__device__ int warp_of_block() { return __shfl_sync(kAllLanes, (int)threadIdx.x / 32, 0); }

// The column of each class: that of a stuff class, -1 for a thing. By the first warp; the caller synchronises.
__device__ void load_columns(const AttentionInputs& in, int* columns, int32_t* error) {
  if (threadIdx.x >= 32) return;
  int num_stuff = 0;
  for (int base = 0; base < in.C; base += 32) {
    const int c = base + threadIdx.x;
    const bool is_stuff = c < in.C && !in.is_thing[c];
    const unsigned stuff = __ballot_sync(kAllLanes, is_stuff);
    const int column = num_stuff + __popc(stuff & ((1u << threadIdx.x) - 1));
    // A wrong num_stuff is an error; until it is raised, classes without a column count for nothing.
    if (c < in.C) columns[c] = !is_stuff ? -1 : column < in.S ? column : -2;
    num_stuff += __popc(stuff);
  }
  if (threadIdx.x == 0 && num_stuff != in.S) *(volatile int32_t*)error = kStuffError;
}

// How many Gaussians a warp has that begins with this one.
__device__ int num_rows(const AttentionInputs& in, int64_t begin) {
  return (int)max((int64_t)0, min((int64_t)kWarpRows, in.V - begin));
}

__device__ void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Asks for rows of a warp's next tile, so that they are in the L2 cache by then; for no more than fits there.
template <typename T>
__device__ void prefetch_rows(const T* from, int64_t begin, int rows, int columns) {
  const int bytes = min(rows * columns * (int)sizeof(T), 1 << 14);
  const char* start = reinterpret_cast<const char*>(from + begin * columns);
  for (int i = threadIdx.x % 32 * 128; i < bytes; i += 32 * 128) prefetch(start + i);
}

__device__ void prefetch_features(const AttentionInputs& in, int64_t row, int size) {
  if (row < 0 || row >= in.N) return;
  prefetch(static_cast<const char*>(in.features) + row * in.feature_stride * size);
  prefetch(in.means + 3 * row);
}

// The row of features of a visible Gaussian, -1 if it is wrong.
__device__ int64_t checked_row(const AttentionInputs& in, int64_t v, int32_t* error) {
  const int64_t row = in.visible[v];
  const bool fits = row >= 0 && row < in.N && (v == 0 || in.visible[v - 1] < row);
  if (!fits) *(volatile int32_t*)error = kVisibleError;
  return fits ? row : -1;
}

__device__ float4 mean_of(const AttentionInputs& in, int64_t row) {
  return row < 0 ? make_float4(0, 0, 0, 0)
                 : make_float4(in.means[3 * row], in.means[3 * row + 1], in.means[3 * row + 2], 0);
}

// Features of a warp's Gaussians on their way into shared memory, 8 lanes a row; zeros where they are wrong.
struct Features {
  float4 values[4];

  template <typename T>
  __device__ void load(const AttentionInputs& in, int64_t row) {  // row: that of this lane's Gaussian
    const T* features = static_cast<const T*>(in.features) + threadIdx.x % 8 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t from = __shfl_sync(kAllLanes, row, 4 * i + threadIdx.x % 32 / 8);
      values[i] = from < 0 ? make_float4(0, 0, 0, 0) : load4(features + from * in.feature_stride);
    }
  }
  template <int kStride>
  __device__ void store(float (*tile)[kStride]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) store4(&tile[4 * i + threadIdx.x % 32 / 8][threadIdx.x % 8 * 4], values[i]);
  }
};

// From there, as matrices of 8 features: numbers t and t + 4 of matrix i are features 8 t + 2 i and 8 t + 2 i + 1.
struct FeatureMatrices {
  Matrix matrices[4];

  template <int kStride>
  __device__ explicit FeatureMatrices(const float (*tile)[kStride]) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        const float2 v = load2(&tile[row + 8 * g][column + 2 * i]);
        matrices[i].set(g, v.x), matrices[i].set(g + 2, v.y);
      }
    }
  }

  // exp(-f . key), but finite, with a group of queries: as in c, by eights.
  __device__ void find_odds(const QueryTile& queries, int first, float (&odds)[2][4]) const {
    const int lane = threadIdx.x % 32;
    float dots[2][4] = {}, small[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      Slice b[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int q = first + 8 * j + lane / 4, column = lane % 4 * 8 + 2 * i;
        const float2 high = load2(&queries.keys[0][q][column]), low = load2(&queries.keys[1][q][column]);
        b[j] = {{high.x, high.y}, {low.x, low.y}};
      }
      multiply(dots, small, matrices[i], b);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) odds[j][i] = fminf(exp2_of(-kLog2e * (dots[j][i] + small[j][i])), 1e30f);
    }
  }
};

// The densities exp(-d^2 / 2) of a warp's Gaussians with `count` queries, a lane for two of these. -kPriorFloor where there
// is no query, so that its score is 0.
__device__ void find_densities(const QueryTile& queries, int count, const float4* means, Pairs densities) {
  const int q = threadIdx.x % 32 * 2;
  float2 a[12];
#pragma unroll
  for (int i = 0; i < 12; ++i) a[i] = load2(&queries.geometry[i][q]);
#pragma unroll 4
  for (int r = 0; r < kWarpRows; ++r) {
    const float4 x = means[r];
    const auto density = [&](auto of) {
      const float dx = x.x - of(a[9]), dy = x.y - of(a[10]), dz = x.z - of(a[11]);
      const float u = of(a[0]) * dx + of(a[1]) * dy + of(a[2]) * dz;
      const float v = of(a[3]) * dx + of(a[4]) * dy + of(a[5]) * dz;
      const float w = of(a[6]) * dx + of(a[7]) * dy + of(a[8]) * dz;
      return exp2_of(-0.5f * kLog2e * (u * u + v * v + w * w));
    };
    const float first = density([](float2 v) { return v.x; }), second = density([](float2 v) { return v.y; });
    store2(&densities[r][q], make_float2(q < count ? first : -kPriorFloor, q + 1 < count ? second : -kPriorFloor));
  }
}

// Tiles are scored from the first to the last one for the sums over queries, then back to the first one for what follows
// from these: the scores of the last tile are needed but once.
__device__ int num_query_tiles(const AttentionInputs& in) { return max(1, (in.Q + kQueries - 1) / kQueries); }
__device__ int first_query(int step, int num_tiles) {
  return kQueries * (step < num_tiles ? step : 2 * (num_tiles - 1) - step);
}

// The sum over the four lanes that hold a row of c.
__device__ float row_sum(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 1);
  return v + __shfl_xor_sync(kAllLanes, v, 2);
}

// Finds the thing masses of a warp's Gaussians, four lanes for two of them.
template <typename T>
__device__ void find_masses(const AttentionInputs& in, const int* columns, int64_t begin, int rows, float* masses) {
  const int lane = threadIdx.x % 32, r = lane / 4;
  const T* probs = static_cast<const T*>(in.class_probs) + (begin + r) * in.C;
  float first = 0, second = 0;
#pragma unroll 4
  for (int c = lane % 4; c < in.C; c += 4) {
    const bool is_thing = columns[c] == -1;
    first += is_thing && r < rows ? (float)probs[c] : 0.0f;
    second += is_thing && r + 8 < rows ? (float)probs[8 * in.C + c] : 0.0f;
  }
  first = row_sum(first), second = row_sum(second);
  if (lane % 4 == 0) masses[r] = first, masses[r + 8] = second;
}

// Copies a column of a warp's rows as change(row, value). Eight are read before one is written: else each read would wait
// for a write, since the compiler does not know that they are apart.
template <typename T, typename Change>
__device__ void copy_column(const T* from, int from_stride, T* to, int to_stride, int rows, const Change& change) {
  for (int first = 0; first < rows; first += 8) {
    T values[8];
#pragma unroll
    for (int r = 0; r < 8; ++r, from += from_stride) values[r] = first + r < rows ? *from : (T)0.0f;
#pragma unroll
    for (int r = 0; r < 8; ++r, to += to_stride) {
      if (first + r < rows) *to = change(first + r, values[r]);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    forward_kernel(AttentionInputs in, T* distribution, int32_t* error) {
  extern __shared__ __align__(16) unsigned char memory[];
  ForwardShared& shared = *reinterpret_cast<ForwardShared*>(memory);
  int* columns = reinterpret_cast<int*>(memory + sizeof(ForwardShared));
  const int num_tiles = (int)((in.V + kRows - 1) / kRows);
  const int D = (int)in.num_columns(), query_tiles = num_query_tiles(in);
  const int lane = threadIdx.x % 32, warp_row = warp_of_block() * kWarpRows;
  const Pairs scores = shared.scores + warp_row;
  float4* means = shared.means + warp_row;
  float* masses = shared.masses + warp_row;
  load_columns(in, columns, error);
  load_queries(in, 0, shared.queries);
  int loaded = 0;  // first query of the tile that is there
  __syncthreads();

  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t begin = (int64_t)tile * kRows + warp_row;
    const int rows = num_rows(in, begin);
    const int64_t next = begin + (int64_t)gridDim.x * kRows;
    const int next_rows = num_rows(in, next);
    const int64_t row = lane < rows ? checked_row(in, begin + lane, error) : -1;
    const unsigned valid = __ballot_sync(kAllLanes, row >= 0);
    Features features;
    features.load<T>(in, row);
    const float4 mean = mean_of(in, row);
    const int64_t next_row = lane < next_rows ? in.visible[next + lane] : -1;
    prefetch_rows(static_cast<const T*>(in.class_probs), next, next_rows, in.C);
    find_masses<T>(in, columns, begin, rows, masses);
    if (lane < kWarpRows) means[lane] = mean;
    features.store(scores);
    __syncwarp();
    const FeatureMatrices matrices(scores);
    float totals[2] = {0, 0};

    T* out = distribution + begin * D;
    for (int step = 0; step < 2 * query_tiles - 1; ++step) {
      const int first = first_query(step, query_tiles), count = min(kQueries, in.Q - first);
      if (first != loaded) {
        __syncthreads();  // nobody reads the last tile any more
        load_queries(in, first, shared.queries);
        loaded = first;
        __syncthreads();
      }
      __syncwarp();  // means are there, and features or the last scores have been read
      find_densities(shared.queries, count, means, scores);
      __syncwarp();
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group * kGroup >= count) break;
        float odds[2][4];
        matrices.find_odds(shared.queries, group * kGroup, odds);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = i / 2, g = i % 2;
          float* at = &scores[lane / 4 + 8 * g][group * kGroup + 8 * j + lane % 4 * 2];
          float2 score = load2(at);
          score.x = reciprocal(1.0f + odds[j][2 * g]) * (score.x + kPriorFloor);
          score.y = reciprocal(1.0f + odds[j][2 * g + 1]) * (score.y + kPriorFloor);
          store2(at, score);
          totals[g] += score.x + score.y;
        }
      }
      if (step == query_tiles - 1) {
        prefetch_features(in, next_row, sizeof(T));
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          const int r = lane / 4 + 8 * g;
          const float inverse = reciprocal(kUnassignedScore + row_sum(totals[g]));
          if (lane % 4 == 0) masses[r] = valid >> r & 1 ? masses[r] * inverse : __int_as_float(0x7fc00000);
        }
      }
      __syncwarp();
      if (step < query_tiles - 1) continue;
      T* to = out + in.S + 1 + first;
#pragma unroll 4
      for (int r = 0; r < rows; ++r) {
        const float share = masses[r];
        if (lane < count) to[r * D + lane] = (T)(share * scores[r][lane]);
        if (lane + 32 < count) to[r * D + lane + 32] = (T)(share * scores[r][lane + 32]);
      }
    }

    if (lane < rows) out[lane * D + in.S] = (T)(masses[lane] * kUnassignedScore);
    const T* probs = static_cast<const T*>(in.class_probs) + begin * in.C;
    for (int c = lane; c < in.C; c += 32) {
      if (columns[c] >= 0) copy_column(probs + c, in.C, out + columns[c], D, rows, [](int, T prob) { return prob; });
    }
    __syncwarp();  // masses and means have been read
  }
}

// Brings a tile of the distribution's gradient into shared memory: the rows of a warp whose bit is set, else zeros.
template <typename T>
__device__ void load_gradients(const T* from, int D, unsigned valid, int count, Pairs tile) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const bool is_valid = valid >> r & 1;
    tile[r][lane] = is_valid && lane < count ? (float)from[r * D + lane] : 0.0f;
    tile[r][lane + 32] = is_valid && lane + 32 < count ? (float)from[r * D + lane + 32] : 0.0f;
  }
}

// Adds the products of the gradients of f . key, in c's layout, with eight keys: column `row` of result i is feature
// 4 row + i, so that lanes get features 8 t .. 8 t + 7 of their rows.
__device__ void add_key_products(const QueryTile& queries, int first, const float (&v_dots)[4], float (&sums)[4][4]) {
  const int lane = threadIdx.x % 32, q = first + lane % 4 * 2, column = lane / 4 * 4;
  Matrix a;  // its numbers t and t + 4: queries 2 t and 2 t + 1
  a.set(0, v_dots[0]), a.set(1, v_dots[2]), a.set(2, v_dots[1]), a.set(3, v_dots[3]);
  const float4 high0 = load4(&queries.keys[0][q][column]), high1 = load4(&queries.keys[0][q + 1][column]);
  const float4 low0 = load4(&queries.keys[1][q][column]), low1 = load4(&queries.keys[1][q + 1][column]);
  const Slice b[4] = {{{high0.x, high1.x}, {low0.x, low1.x}},
                      {{high0.y, high1.y}, {low0.y, low1.y}},
                      {{high0.z, high1.z}, {low0.z, low1.z}},
                      {{high0.w, high1.w}, {low0.w, low1.w}}};
  multiply(sums, sums, a, b);
}

// Sums over a warp's Gaussians of g x' and g x' x'^T, a lane for two queries; g: the gradients of the squared distances,
// in whose first 9 rows the sums are left.
__device__ void find_moments(const QueryTile& queries, const float4* means, Pairs v_squares) {
  const int q = threadIdx.x % 32 * 2;
  const float2 cx = load2(&queries.geometry[9][q]), cy = load2(&queries.geometry[10][q]),
               cz = load2(&queries.geometry[11][q]);
  float moments[2][9] = {};
  const auto add = [](float (&sums)[9], float v, float dx, float dy, float dz) {
    const float vx = v * dx, vy = v * dy, vz = v * dz;  // first: far away v is 0 and dx^2 may not be finite
    sums[0] += vx, sums[1] += vy, sums[2] += vz;
    sums[3] += vx * dx, sums[4] += vx * dy, sums[5] += vx * dz;
    sums[6] += vy * dy, sums[7] += vy * dz, sums[8] += vz * dz;
  };
#pragma unroll 4
  for (int r = 0; r < kWarpRows; ++r) {
    const float4 x = means[r];
    const float2 v = load2(&v_squares[r][q]);
    add(moments[0], v.x, x.x - cx.x, x.y - cy.x, x.z - cz.x);
    add(moments[1], v.y, x.x - cx.y, x.y - cy.y, x.z - cz.y);
  }
  // The lanes' columns are their own: no other reads them.
#pragma unroll
  for (int i = 0; i < 9; ++i) store2(&v_squares[i][q], make_float2(moments[0][i], moments[1][i]));
}

// Sums of a warp's group of queries over the Gaussians of its block, always the same lane the same ones.
struct GroupSums {
  static constexpr int kMoments = (9 * kGroup + 31) / 32;
  float keys[4][4] = {};  // of gradient times feature; [i] is c with rows = queries and column `row` = feature 4 row + i
  float moments[kMoments] = {};

  __device__ void add_tile(const BackwardShared& shared) {
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32 * kGroup, row = lane / 4, t = lane % 4;
    float sums[4][4] = {}, small[4][4] = {};
#pragma unroll 1
    for (int r = t; r < kRows; r += 8) {
      Matrix a;
#pragma unroll
      for (int i = 0; i < 4; ++i) a.set(i, shared.v_dots[r + i / 2 * 4][group + row + i % 2 * 8]);
      const float4 f0 = load4(&shared.features[r][4 * row]), f1 = load4(&shared.features[r + 4][4 * row]);
      const Parts x0(f0.x), x1(f1.x), y0(f0.y), y1(f1.y), z0(f0.z), z1(f1.z), w0(f0.w), w1(f1.w);
      const Slice b[4] = {{{x0.high, x1.high}, {x0.low, x1.low}},
                          {{y0.high, y1.high}, {y0.low, y1.low}},
                          {{z0.high, z1.high}, {z0.low, z1.low}},
                          {{w0.high, w1.high}, {w0.low, w1.low}}};
      multiply(sums, small, a, b);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) keys[i / 4][i % 4] += sums[i / 4][i % 4] + small[i / 4][i % 4];
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      const int number = i * 32 + lane;
      if (number >= 9 * kGroup) break;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        moments[i] += shared.v_squares[warp * kWarpRows + number / kGroup][group + number % kGroup];
      }
    }
  }

  // Calls use(sum, its place in [queries, kQuerySums]).
  template <typename Use>
  __device__ void for_each(int queries, const Use& use) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int query = lane / 4 + i % 4 / 2 * 8, feature = lane % 4 * 8 + i % 2 * 4 + i / 4;
      if (query < queries) use(keys[i / 4][i % 4], query * kQuerySums + feature);
    }
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      const int number = i * 32 + lane, query = number % kGroup;
      if (number < 9 * kGroup && query < queries) use(moments[i], query * kQuerySums + kFeatureDim + number / kGroup);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    backward_kernel(AttentionInputs in, const T* v_distribution, float* all_sums, T* v_features, T* v_class_probs,
                    int32_t* error) {
  extern __shared__ __align__(16) unsigned char memory[];
  BackwardShared& shared = *reinterpret_cast<BackwardShared*>(memory);
  int* columns = reinterpret_cast<int*>(memory + sizeof(BackwardShared));
  const int num_tiles = (int)((in.V + kRows - 1) / kRows);
  const int D = (int)in.num_columns(), query_tiles = num_query_tiles(in);
  const int lane = threadIdx.x % 32, warp = warp_of_block(), warp_row = warp * kWarpRows;
  float(*features_of_warp)[kFeatureStride] = shared.features + warp_row;
  const Pairs v_dots = shared.v_dots + warp_row, v_squares = shared.v_squares + warp_row;
  float4* means = shared.means + warp_row;
  int64_t* visible_rows = shared.rows + warp_row;
  float *masses = shared.masses + warp_row, *v_things = shared.v_things + warp_row;
  // Sums of this warp's first group of queries. They stay in registers if it has no other one.
  float* block_sums = all_sums + ((int64_t)blockIdx.x * in.Q + warp * kGroup) * kQuerySums;
  GroupSums sums;
  load_columns(in, columns, error);
  load_queries(in, 0, shared.queries);
  int loaded = 0;  // first query of the tile that is there
  __syncthreads();

  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t begin = (int64_t)tile * kRows + warp_row;
    const int rows = num_rows(in, begin);
    const int64_t next = begin + (int64_t)gridDim.x * kRows;
    const int next_rows = num_rows(in, next);
    const T* v_out = v_distribution + begin * D;
    const int64_t row = lane < rows ? checked_row(in, begin + lane, error) : -1;
    const unsigned valid = __ballot_sync(kAllLanes, row >= 0);
    Features features;
    features.load<T>(in, row);
    const float4 mean = mean_of(in, row);
    const float v_unassigned = row < 0 ? 0.0f : (float)v_out[lane * D + in.S];
    const int64_t next_row = lane < next_rows ? in.visible[next + lane] : -1;
    prefetch_rows(v_distribution, next, next_rows, D);
    prefetch_rows(static_cast<const T*>(in.class_probs), next, next_rows, in.C);
    find_masses<T>(in, columns, begin, rows, masses);
    __syncthreads();  // nobody needs what the last tile left
    features.store(features_of_warp);
    if (lane < kWarpRows) means[lane] = mean, visible_rows[lane] = row, v_things[lane] = kUnassignedScore * v_unassigned;
    // With P_q = m s_q / Z:  dL/dm = W = (g_0 s_0 + sum_q g_q s_q) / Z  and  dL/ds_q = m / Z (g_q - W).
    float totals[2] = {0, 0}, weighted_totals[2] = {0, 0};
    float v_thing[2], scales[2];  // scales: of the gradients of scores
    float v_f[4][4] = {};
    for (int step = 0; step < 2 * query_tiles - 1; ++step) {
      const int first = first_query(step, query_tiles), count = min(kQueries, in.Q - first);
      if (first != loaded) {
        __syncthreads();  // nobody reads the last tile, and what was found of it, any more
        load_queries(in, first, shared.queries);
        loaded = first;
        __syncthreads();
      }
      load_gradients(v_out + in.S + 1 + first, D, valid, count, v_dots);
      __syncwarp();  // means are there
      find_densities(shared.queries, count, means, v_squares);
      __syncwarp();
      float odds[kGroups][2][4];
      const FeatureMatrices matrices(features_of_warp);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group * kGroup >= count) break;
        matrices.find_odds(shared.queries, group * kGroup, odds[group]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = i / 2, g = i % 2, r = lane / 4 + 8 * g, q = group * kGroup + 8 * j + lane % 4 * 2;
          const float2 density = load2(&v_squares[r][q]), v = load2(&v_dots[r][q]);
          const float score0 = reciprocal(1.0f + odds[group][j][2 * g]) * (density.x + kPriorFloor);
          const float score1 = reciprocal(1.0f + odds[group][j][2 * g + 1]) * (density.y + kPriorFloor);
          totals[g] += score0 + score1;
          weighted_totals[g] += score0 * v.x + score1 * v.y;
        }
      }
      if (step < query_tiles - 1) continue;
      if (step == query_tiles - 1) {
        prefetch_features(in, next_row, sizeof(T));
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          const int r = lane / 4 + 8 * g;
          const bool is_valid = valid >> r & 1;
          const float total = kUnassignedScore + row_sum(totals[g]), weighted = v_things[r] + row_sum(weighted_totals[g]);
          v_thing[g] = is_valid ? weighted * reciprocal(total) : 0.0f;
          scales[g] = is_valid ? masses[r] * reciprocal(total) : 0.0f;
          __syncwarp();
          if (lane % 4 == 0) v_things[r] = v_thing[g];
        }
      }

      float products[4][4] = {};  // with this tile's keys
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group * kGroup >= count) break;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int q = group * kGroup + 8 * j;
          float v_dot[4];
#pragma unroll
          for (int g = 0; g < 2; ++g) {
            float* v_dot_at = &v_dots[lane / 4 + 8 * g][q + lane % 4 * 2];
            float* v_square_at = &v_squares[lane / 4 + 8 * g][q + lane % 4 * 2];
            const float2 v = load2(v_dot_at), density = load2(v_square_at);
            float v_square[2];
#pragma unroll
            for (int k = 0; k < 2; ++k) {
              const float odd = odds[group][j][2 * g + k], prior = k ? density.y : density.x;
              const float similarity = reciprocal(1.0f + odd);
              const float weighted = scales[g] * ((k ? v.y : v.x) - v_thing[g]) * similarity;
              v_dot[2 * g + k] = weighted * (prior + kPriorFloor) * (odd * similarity);  // 1 - similarity
              v_square[k] = -0.5f * weighted * prior;
            }
            store2(v_dot_at, make_float2(v_dot[2 * g], v_dot[2 * g + 1]));
            store2(v_square_at, make_float2(v_square[0], v_square[1]));
          }
          add_key_products(shared.queries, q, v_dot, products);
        }
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) v_f[i / 4][i % 4] += products[i / 4][i % 4];
      __syncwarp();
      find_moments(shared.queries, means, v_squares);
      __syncthreads();  // all of the block's gradients and moments are there

      const int queries = count - warp * kGroup;
      float* of_group = block_sums + (int64_t)first * kQuerySums;
      if (in.Q > kQueries && tile != blockIdx.x) {
        sums.for_each(queries, [&](float& sum, int place) { sum = of_group[place]; });
      } else if (in.Q > kQueries) {
        sums = GroupSums();
      }
      if (queries > 0) sums.add_tile(shared);
      if (in.Q > kQueries) sums.for_each(queries, [&](float& sum, int place) { of_group[place] = sum; });
    }

#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int64_t to_row = visible_rows[lane / 4 + 8 * g];
      if (to_row < 0) continue;
      T* to = v_features + to_row * kFeatureDim + lane % 4 * 8;
      store4(to, make_float4(v_f[0][2 * g], v_f[1][2 * g], v_f[2][2 * g], v_f[3][2 * g]));
      store4(to + 4, make_float4(v_f[0][2 * g + 1], v_f[1][2 * g + 1], v_f[2][2 * g + 1], v_f[3][2 * g + 1]));
    }
    T* v_probs = v_class_probs + begin * in.C;
    for (int c = lane; c < in.C; c += 32) {
      const int column = columns[c];
      copy_column(v_out + max(column, 0), D, v_probs + c, in.C, rows, [&](int r, T v_stuff) {
        const T v_other = (T)(column == -1 ? v_things[r] : 0.0f);
        return column >= 0 ? v_stuff : v_other;
      });
    }
  }
  if (in.Q <= kQueries) {
    sums.for_each(in.Q - warp * kGroup, [&](float& sum, int place) { block_sums[place] = sum; });
  }
}

// Adds up what the blocks summed, in their order, and turns it into the gradients of a query: one block per query.
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(AttentionInputs in, const float* sums, int64_t num_blocks, AttentionGradients gradients) {
  constexpr int parts = kFinishThreads / 64;
  static_assert(kQuerySums <= 64, "a column of threads per sum");
  __shared__ float partial[parts][64];
  const int64_t q = blockIdx.x;
  const int column = threadIdx.x % 64, part = threadIdx.x / 64;
  float sum = 0;
  if (column < kQuerySums) {
#pragma unroll 8
    for (int64_t b = part; b < num_blocks; b += parts) sum += sums[(b * in.Q + q) * kQuerySums + column];
  }
  partial[part][column] = sum;
  __syncthreads();
  if (part != 0) return;
  for (int i = 1; i < parts; ++i) sum += partial[i][column];
  if (column < kFeatureDim) gradients.keys[q * kFeatureDim + column] = sum;
  __shared__ float moments[9];  // sum of g x', sum of g x' x'^T
  if (column >= kFeatureDim && column < kQuerySums) moments[column - kFeatureDim] = sum;
  // The 64 threads that are left are two warps; the second one holds all moments, and goes on.
  __syncwarp();
  const int i = column - kFeatureDim;
  if (i < 0 || i >= 12) return;
  const float* A = in.whitenings + q * 9;
  if (i < 9) {  // d^2 = |A x'|^2:  dL/dA = 2 A sum(g x' x'^T)
    constexpr int packed[3][3] = {{3, 4, 5}, {4, 6, 7}, {5, 7, 8}};
    const int row = i / 3, to = i % 3;
    gradients.whitenings[q * 9 + i] = 2 * (A[row * 3] * moments[packed[0][to]] + A[row * 3 + 1] * moments[packed[1][to]] +
                                           A[row * 3 + 2] * moments[packed[2][to]]);
  } else {  // dL/dc = -2 A^T A sum(g x')
    float v = 0;
    for (int row = 0; row < 3; ++row) {
      const float whitened = A[row * 3] * moments[0] + A[row * 3 + 1] * moments[1] + A[row * 3 + 2] * moments[2];
      v -= 2 * A[row * 3 + i - 9] * whitened;
    }
    gradients.centers[q * 3 + i - 9] = v;
  }
}

// Lets a kernel have more than the usual 48 KB: a block's own part, then the columns of C classes. Compilers read four of
// these at a time, and mask what is beyond the last.
template <typename Kernel>
int with_shared_memory(Kernel kernel, size_t own_bytes, int C) {
  const size_t bytes = own_bytes + (C + 3) / 4 * 4 * sizeof(int);
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  return (int)bytes;
}

// Blocks that take tiles in turns: as many as are on the device at once, if there is that much to do.
int64_t blocks_for(int64_t V, int most_per_multiprocessor, size_t shared_bytes, int device) {
  int multiprocessors = 0, memory = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&memory, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  const int fitting = memory / (int)(shared_bytes + 1024);  // the system takes 1 KB of each
  return std::min<int64_t>((V + kRows - 1) / kRows,
                           (int64_t)multiprocessors * std::clamp(fitting, 1, most_per_multiprocessor));
}

template <typename T>
void launch_forward(const AttentionInputs& in, void* distribution, int64_t blocks, cudaStream_t stream) {
  const int bytes = with_shared_memory(forward_kernel<T>, sizeof(ForwardShared), in.C);
  forward_kernel<T><<<(unsigned)blocks, kThreads, bytes, stream>>>(in, static_cast<T*>(distribution), device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void launch_backward(const AttentionInputs& in, const void* v_distribution, float* sums, const AttentionGradients& out,
                     int64_t blocks, cudaStream_t stream) {
  const int bytes = with_shared_memory(backward_kernel<T>, sizeof(BackwardShared), in.C);
  backward_kernel<T><<<(unsigned)blocks, kThreads, bytes, stream>>>(
      in, static_cast<const T*>(v_distribution), sums, static_cast<T*>(out.features), static_cast<T*>(out.class_probs),
      device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

int64_t attention_blocks(int64_t V, int device) {
  return blocks_for(V, kBackwardBlocks, sizeof(BackwardShared), device);
}

void launch_attention(const AttentionInputs& inputs, at::ScalarType storage, void* distribution, int device) {
  if (inputs.V == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t blocks = blocks_for(inputs.V, kForwardBlocks, sizeof(ForwardShared), device);
  if (storage == at::kFloat) launch_forward<float>(inputs, distribution, blocks, stream);
  if (storage == at::kHalf) launch_forward<c10::Half>(inputs, distribution, blocks, stream);
  if (storage == at::kBFloat16) launch_forward<c10::BFloat16>(inputs, distribution, blocks, stream);
}

void launch_attention_backward(const AttentionInputs& inputs, at::ScalarType storage, const void* v_distribution,
                               float* sums, const AttentionGradients& gradients, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t blocks = attention_blocks(inputs.V, device);
  if (blocks > 0) {
    if (storage == at::kFloat) launch_backward<float>(inputs, v_distribution, sums, gradients, blocks, stream);
    if (storage == at::kHalf) launch_backward<c10::Half>(inputs, v_distribution, sums, gradients, blocks, stream);
    if (storage == at::kBFloat16) {
      launch_backward<c10::BFloat16>(inputs, v_distribution, sums, gradients, blocks, stream);
    }
  }
  if (inputs.Q == 0) return;
  finish_kernel<<<(unsigned)inputs.Q, kFinishThreads, 0, stream>>>(inputs, sums, blocks, gradients);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace panoptic_mapper
