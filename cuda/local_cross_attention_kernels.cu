// Local cross attention on CUDA devices. A block takes tiles of kRows visible Gaussians; the queries come in tiles
// through shared memory, so any number of them fits. What bounds the speed is reading queries from there, so a thread
// scores two Gaussians with what it reads, for every second query. Scores are turned around in shared memory, so that
// distributions and their gradients move in whole lines.

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

constexpr int kRows = 128;  // visible Gaussians of a tile = threads of a block
constexpr int kWarps = kRows / 32;
constexpr int kPairs = kRows / 2;  // of Gaussians, kPairs rows apart; threads t and t + kPairs share one
constexpr int kForwardQueries = 64;   // queries of a tile; as many need their scores only once
constexpr int kBackwardQueries = 32;  // = lanes of a warp
constexpr int kFeatureStride = kFeatureDim + 4;  // of rows in shared memory: vector loads without bank conflicts
constexpr int kBlocksPerMultiprocessor = 3;      // of the backward, by its shared memory
constexpr int kForwardBlocks = 4;                // per multiprocessor, by its registers
constexpr int kFinishThreads = 512;
constexpr unsigned kAllLanes = 0xffffffffu;

static_assert(kFeatureDim == 32, "lanes are laid out for 32 features");

template <int kQueries>
struct QueryTile {
  float4 keys[kQueries][kFeatureDim / 4];
  float4 geometry[kQueries][3];  // row i of the whitening matrix, and coordinate i of the centre
};

struct ForwardShared {
  union {
    QueryTile<kForwardQueries> queries;
    float sums[2][kRows];  // of the scores with even and with odd queries
  };
  union {
    struct {
      float features[kRows][kFeatureStride];
      float4 means[kRows];
    };
    float scores[kRows][kForwardQueries + 1];
  };
  float shares[kRows];  // thing mass / Z
};

struct BackwardShared {
  QueryTile<kBackwardQueries> queries;
  float features[kRows][kFeatureStride];  // at the end their gradients
  float4 means[kRows];
  union {
    float v_dots[kRows][kBackwardQueries + 1];  // gradients of the distribution, then of f . key
    float key_sums[kWarps][kBackwardQueries][kFeatureDim];
  };
  union {
    float v_squares[kRows][kBackwardQueries + 1];  // gradients of the squared distances
    float geometry_sums[kWarps][9][kBackwardQueries];
  };
  float v_things[kRows];  // gradient of the thing mass
  float scales[kRows];    // thing mass / Z
  int64_t rows[kRows];    // visible, -1 where it is wrong
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

template <int kQueries>
__device__ void load_queries(const AttentionInputs& in, int first, int count, QueryTile<kQueries>& tile) {
  constexpr int per_key = kFeatureDim / 4;
  const float4* keys = reinterpret_cast<const float4*>(in.keys) + (int64_t)first * per_key;
  for (int i = threadIdx.x; i < count * per_key; i += kRows) tile.keys[i / per_key][i % per_key] = keys[i];
  float* geometry = &tile.geometry[0][0].x;
  for (int i = threadIdx.x; i < count * 12; i += kRows) {
    const int64_t query = first + i / 12;
    const int row = i % 12 / 4, column = i % 4;
    geometry[i] = column < 3 ? in.whitenings[query * 9 + row * 3 + column] : in.centers[query * 3 + row];
  }
}

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

// Brings rows of features into shared memory, 8 lanes a row. `row`: that of this thread's Gaussian, -1 = zeros.
template <typename T>
__device__ void load_features(const AttentionInputs& in, int64_t row, float (*tile)[kFeatureStride]) {
  const T* features = static_cast<const T*>(in.features);
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int of = 4 * i + lane / 8, column = lane % 8 * 4;
    const int64_t from = __shfl_sync(kAllLanes, row, of);
    const float4 v = from < 0 ? make_float4(0, 0, 0, 0) : load4(features + from * in.feature_stride + column);
    *reinterpret_cast<float4*>(&tile[first + of][column]) = v;
  }
}

__device__ void read_features(const float (&row)[kFeatureStride], float (&f)[kFeatureDim]) {
#pragma unroll
  for (int i = 0; i < kFeatureDim / 4; ++i) {
    const float4 v = *reinterpret_cast<const float4*>(&row[4 * i]);
    f[4 * i] = v.x, f[4 * i + 1] = v.y, f[4 * i + 2] = v.z, f[4 * i + 3] = v.w;
  }
}

template <typename T>
__device__ float thing_mass(const AttentionInputs& in, const int* columns, int64_t v) {
  const T* probs = static_cast<const T*>(in.class_probs) + v * in.C;
  float mass = 0;
  for (int c = 0; c < in.C; ++c) mass += columns[c] == -1 ? (float)probs[c] : 0.0f;
  return mass;
}

struct Pair {
  float similarity, dissimilarity, density;  // sigmoid(f . key), 1 - that without cancellation, exp(-d^2 / 2)
  __device__ float score() const { return similarity * (density + kPriorFloor); }
};

// Two Gaussians of a tile, in a thread's registers.
struct TwoGaussians {
  float f[2][kFeatureDim];
  float3 x[2];

  __device__ TwoGaussians(const float (*features)[kFeatureStride], const float4* means) {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int row = threadIdx.x % kPairs + g * kPairs;
      read_features(features[row], f[g]);
      x[g] = make_float3(means[row].x, means[row].y, means[row].z);
    }
  }

  __device__ void with_query(const float4* key, const float4* geometry, Pair (&pairs)[2]) const {
    float dots[2][4] = {};  // apart, so that they need not wait for each other
#pragma unroll
    for (int i = 0; i < kFeatureDim / 4; ++i) {
      const float4 k = key[i];
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        dots[g][0] += f[g][4 * i] * k.x;
        dots[g][1] += f[g][4 * i + 1] * k.y;
        dots[g][2] += f[g][4 * i + 2] * k.z;
        dots[g][3] += f[g][4 * i + 3] * k.w;
      }
    }
    const float4 a = geometry[0], b = geometry[1], c = geometry[2];
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const float dot = (dots[g][0] + dots[g][1]) + (dots[g][2] + dots[g][3]);
      const float dx = x[g].x - a.w, dy = x[g].y - b.w, dz = x[g].z - c.w;
      const float u = a.x * dx + a.y * dy + a.z * dz;
      const float v = b.x * dx + b.y * dy + b.z * dz;
      const float w = c.x * dx + c.y * dy + c.z * dz;
      const float odds = fminf(__expf(-dot), 1e30f);  // finite
      const float similarity = __fdividef(1.0f, 1.0f + odds);
      pairs[g] = {similarity, odds * similarity, __expf(-0.5f * (u * u + v * v + w * w))};
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kRows, kForwardBlocks) forward_kernel(AttentionInputs in, T* distribution, int32_t* error) {
  extern __shared__ __align__(16) unsigned char memory[];
  ForwardShared& shared = *reinterpret_cast<ForwardShared*>(memory);
  int* columns = reinterpret_cast<int*>(memory + sizeof(ForwardShared));
  const int64_t begin = (int64_t)blockIdx.x * kRows, D = in.num_columns();
  const int t = threadIdx.x, lane = t % 32, rows = (int)min((int64_t)kRows, in.V - begin);
  load_columns(in, columns, error);
  const int64_t row = t < rows ? checked_row(in, begin + t, error) : -1;
  load_features<T>(in, row, shared.features);
  shared.means[t] = mean_of(in, row);
  __syncthreads();
  const TwoGaussians two(shared.features, shared.means);
  const int half = t / kPairs, rows_of[2] = {t % kPairs, t % kPairs + kPairs};
  float sums[2] = {0, 0};

  const auto score_tile = [&](int first, int count) {  // and leave the scores in shared memory
    __syncthreads();  // nobody reads the last tile, or features, any more
    load_queries(in, first, count, shared.queries);
    __syncthreads();
    for (int q = half; q < count; q += 2) {
      Pair pairs[2];
      two.with_query(shared.queries.keys[q], shared.queries.geometry[q], pairs);
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        const float score = pairs[g].score();
        shared.scores[rows_of[g]][q] = score;
        sums[g] += score;
      }
    }
  };
  const int last = in.Q > 0 ? (in.Q - 1) / kForwardQueries * kForwardQueries : 0;  // the first query of the last tile
  for (int first = 0; first < in.Q; first += kForwardQueries) {
    score_tile(first, min(kForwardQueries, in.Q - first));
  }
  __syncthreads();  // nobody reads queries any more
#pragma unroll
  for (int g = 0; g < 2; ++g) shared.sums[half][rows_of[g]] = sums[g];
  __syncthreads();
  if (t < rows) {
    const float total = kUnassignedScore + shared.sums[0][t] + shared.sums[1][t];
    shared.shares[t] = row < 0 ? __int_as_float(0x7fc00000) : thing_mass<T>(in, columns, begin + t) / total;
  }
  __syncthreads();

  T* out = distribution + begin * D;
  const T* probs = static_cast<const T*>(in.class_probs) + begin * in.C;
  for (int r = t / 32; r < rows; r += kWarps) {
    for (int c = lane; c < in.C; c += 32) {
      if (columns[c] >= 0) out[r * D + columns[c]] = probs[(int64_t)r * in.C + c];
    }
    if (lane == 0) out[r * D + in.S] = (T)(shared.shares[r] * kUnassignedScore);
  }
  for (int first = last; first >= 0 && in.Q > 0; first -= kForwardQueries) {
    const int count = min(kForwardQueries, in.Q - first);
    if (first != last) {  // the scores of the last tile are still there
      score_tile(first, count);
      __syncthreads();
    }
    for (int r = t / 32; r < rows; r += kWarps) {
      const float share = shared.shares[r];
      for (int q = lane; q < count; q += 32) out[r * D + in.S + 1 + first + q] = (T)(share * shared.scores[r][q]);
    }
  }
}

// Brings a tile of the distribution's gradient into shared memory.
template <typename T>
__device__ void load_gradients(const T* from, int64_t D, int rows, int count, float (*tile)[kBackwardQueries + 1]) {
  const int lane = threadIdx.x % 32;
#pragma unroll 8
  for (int i = 0; i < kRows / kWarps; ++i) {
    const int r = threadIdx.x / 32 + i * kWarps;
    tile[r][lane] = r < rows && lane < count ? (float)from[r * D + lane] : 0.0f;
  }
}

// Adds the sums over a tile's queries of gradient times key: a warp takes a quarter of the rows, a lane every eighth of
// these x 8 features.
__device__ void add_key_products(const BackwardShared& shared, int count, float (&v_f)[4][8]) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane + lane / 4, column = lane % 4 * 2;
#pragma unroll 2
  for (int q = 0; q < count; ++q) {
    const float4 low = shared.queries.keys[q][column], high = shared.queries.keys[q][column + 1];
    const float key[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float v = shared.v_dots[first + 8 * i][q];
#pragma unroll
      for (int j = 0; j < 8; ++j) v_f[i][j] += v * key[j];
    }
  }
}

// The sums over a tile's rows of gradient times feature: a warp takes a quarter of the rows, a lane 4 queries x 8
// features. Then those of the geometry, a lane per query. Leaves them in shared memory, by warps.
__device__ void sum_over_rows(BackwardShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int query = lane / 4, feature = lane % 4 * 8;
  float sums[4][8] = {};
#pragma unroll 2
  for (int r = warp * 32; r < warp * 32 + 32; ++r) {
    const float4 low = *reinterpret_cast<const float4*>(&shared.features[r][feature]);
    const float4 high = *reinterpret_cast<const float4*>(&shared.features[r][feature + 4]);
    const float f[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float v = shared.v_dots[r][query + 8 * i];
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[i][j] += v * f[j];
    }
  }
  const float4 *geometry = shared.queries.geometry[lane];
  const float3 center = make_float3(geometry[0].w, geometry[1].w, geometry[2].w);
  float moments[9] = {};
#pragma unroll 2
  for (int r = warp * 32; r < warp * 32 + 32; ++r) {
    const float v = shared.v_squares[r][lane];
    const float4 x = shared.means[r];
    const float dx = x.x - center.x, dy = x.y - center.y, dz = x.z - center.z;
    const float vx = v * dx, vy = v * dy, vz = v * dz;  // first: far away v is 0 and dx^2 may not be finite
    moments[0] += vx, moments[1] += vy, moments[2] += vz;
    moments[3] += vx * dx, moments[4] += vx * dy, moments[5] += vx * dz;
    moments[6] += vy * dy, moments[7] += vy * dz, moments[8] += vz * dz;
  }
  __syncthreads();  // all have read the gradients, whose place the sums take
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float* to = &shared.key_sums[warp][query + 8 * i][feature];
    *reinterpret_cast<float4*>(to) = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    *reinterpret_cast<float4*>(to + 4) = make_float4(sums[i][4], sums[i][5], sums[i][6], sums[i][7]);
  }
#pragma unroll
  for (int i = 0; i < 9; ++i) shared.geometry_sums[warp][i][lane] = moments[i];
}

// Adds the sums of a tile to those of this block, always the same thread the same ones.
__device__ void add_to_block_sums(const BackwardShared& shared, int count, bool is_first, float* sums) {
  for (int i = threadIdx.x; i < count * kQuerySums; i += kRows) {
    const int query = i / kQuerySums, column = i % kQuerySums;
    float sum = is_first ? 0.0f : sums[i];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += column < kFeatureDim ? shared.key_sums[warp][query][column]
                                  : shared.geometry_sums[warp][column - kFeatureDim][query];
    }
    sums[i] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kRows, kBlocksPerMultiprocessor)
    backward_kernel(AttentionInputs in, const T* v_distribution, float* all_sums, T* v_features, T* v_class_probs,
                    int32_t* error) {
  extern __shared__ __align__(16) unsigned char memory[];
  BackwardShared& shared = *reinterpret_cast<BackwardShared*>(memory);
  int* columns = reinterpret_cast<int*>(memory + sizeof(BackwardShared));
  float* block_sums = all_sums + (int64_t)blockIdx.x * in.Q * kQuerySums;
  const int64_t D = in.num_columns(), num_tiles = (in.V + kRows - 1) / kRows;
  const int t = threadIdx.x, lane = t % 32;
  const int half = t / kPairs, rows_of[2] = {t % kPairs, t % kPairs + kPairs};
  load_columns(in, columns, error);

  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t begin = tile * kRows;
    const int rows = (int)min((int64_t)kRows, in.V - begin);
    const T* v_out = v_distribution + begin * D;
    __syncthreads();  // columns are there; nobody needs what the last tile left
    const int64_t row = t < rows ? checked_row(in, begin + t, error) : -1;
    load_features<T>(in, row, shared.features);
    shared.means[t] = mean_of(in, row);
    shared.rows[t] = row;
    __syncthreads();
    float v_f[4][8] = {};

    // With P_q = m s_q / Z:  dL/dm = W = (g_0 s_0 + sum_q g_q s_q) / Z  and  dL/ds_q = m / Z (g_q - W).
    float totals[2] = {0, 0}, weighted_totals[2] = {0, 0};
    for (int first = 0; first < in.Q; first += kBackwardQueries) {
      const int count = min(kBackwardQueries, in.Q - first);
      __syncthreads();
      load_queries(in, first, count, shared.queries);
      load_gradients(v_out + in.S + 1 + first, D, rows, count, shared.v_dots);
      __syncthreads();
      // Read for each tile: kept over all of them, they do not fit into the registers.
      const TwoGaussians two(shared.features, shared.means);
      for (int q = half; q < count; q += 2) {
        Pair pairs[2];
        two.with_query(shared.queries.keys[q], shared.queries.geometry[q], pairs);
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          const float score = pairs[g].score();
          totals[g] += score;
          weighted_totals[g] += score * shared.v_dots[rows_of[g]][q];
        }
      }
    }
#pragma unroll
    for (int g = 0; g < 2; ++g) {  // here there is room for the sums of both halves
      shared.v_squares[rows_of[g]][half] = totals[g];
      shared.v_squares[rows_of[g]][2 + half] = weighted_totals[g];
    }
    __syncthreads();
    const float* sums = shared.v_squares[t];
    const float v_unassigned = row < 0 ? 0.0f : (float)v_out[t * D + in.S];
    const float total = kUnassignedScore + sums[0] + sums[1];
    const float weighted = kUnassignedScore * v_unassigned + sums[2] + sums[3];
    shared.v_things[t] = row < 0 ? 0.0f : weighted / total;
    shared.scales[t] = row < 0 ? 0.0f : thing_mass<T>(in, columns, begin + t) / total;
    __syncthreads();

    for (int first = 0; first < in.Q; first += kBackwardQueries) {
      const int count = min(kBackwardQueries, in.Q - first);
      if (in.Q > kBackwardQueries) {  // else all of this is still there
        __syncthreads();
        load_queries(in, first, count, shared.queries);
        load_gradients(v_out + in.S + 1 + first, D, rows, count, shared.v_dots);
        __syncthreads();
      }
      const TwoGaussians two(shared.features, shared.means);
      for (int q = half; q < count; q += 2) {
        Pair pairs[2];
        two.with_query(shared.queries.keys[q], shared.queries.geometry[q], pairs);
#pragma unroll
        for (int g = 0; g < 2; ++g) {
          const int r = rows_of[g];
          const bool is_wrong = shared.rows[r] < 0;
          const Pair& pair = pairs[g];
          const float v_score = shared.scales[r] * (shared.v_dots[r][q] - shared.v_things[r]);
          shared.v_dots[r][q] = is_wrong ? 0.0f : v_score * pair.score() * pair.dissimilarity;
          shared.v_squares[r][q] = is_wrong ? 0.0f : -0.5f * v_score * pair.similarity * pair.density;
        }
      }
      __syncthreads();
      add_key_products(shared, count, v_f);
      sum_over_rows(shared);
      __syncthreads();
      add_to_block_sums(shared, count, tile == blockIdx.x, block_sums + (int64_t)first * kQuerySums);
    }

    __syncthreads();  // nobody reads features any more
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // a warp's rows are its own
      float* to = &shared.features[t - lane + lane / 4 + 8 * i][lane % 4 * 8];
      *reinterpret_cast<float4*>(to) = make_float4(v_f[i][0], v_f[i][1], v_f[i][2], v_f[i][3]);
      *reinterpret_cast<float4*>(to + 4) = make_float4(v_f[i][4], v_f[i][5], v_f[i][6], v_f[i][7]);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int of = t - lane + 4 * i + lane / 8, column = lane % 8 * 4;
      const int64_t to = shared.rows[of];
      if (to >= 0) {
        store4(v_features + to * kFeatureDim + column, *reinterpret_cast<const float4*>(&shared.features[of][column]));
      }
    }
    for (int i = t; i < rows * in.C; i += kRows) {
      const int r = i / in.C, column = columns[i - r * in.C];
      const float v = column >= 0 ? (float)v_out[r * D + column] : column == -1 ? shared.v_things[r] : 0.0f;
      v_class_probs[begin * in.C + i] = (T)v;
    }
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

template <typename T>
void launch_forward(const AttentionInputs& in, void* distribution, cudaStream_t stream) {
  const int bytes = with_shared_memory(forward_kernel<T>, sizeof(ForwardShared), in.C);
  const auto blocks = (unsigned)((in.V + kRows - 1) / kRows);
  forward_kernel<T><<<blocks, kRows, bytes, stream>>>(in, static_cast<T*>(distribution), device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void launch_backward(const AttentionInputs& in, const void* v_distribution, float* sums, const AttentionGradients& out,
                     int64_t blocks, cudaStream_t stream) {
  const int bytes = with_shared_memory(backward_kernel<T>, sizeof(BackwardShared), in.C);
  backward_kernel<T><<<(unsigned)blocks, kRows, bytes, stream>>>(
      in, static_cast<const T*>(v_distribution), sums, static_cast<T*>(out.features), static_cast<T*>(out.class_probs),
      device_error_word());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

int64_t attention_blocks(int64_t V, int device) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return std::min<int64_t>((V + kRows - 1) / kRows, (int64_t)multiprocessors * kBlocksPerMultiprocessor);
}

void launch_attention(const AttentionInputs& inputs, at::ScalarType storage, void* distribution, int device) {
  if (inputs.V == 0) return;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  if (storage == at::kFloat) launch_forward<float>(inputs, distribution, stream);
  if (storage == at::kHalf) launch_forward<c10::Half>(inputs, distribution, stream);
  if (storage == at::kBFloat16) launch_forward<c10::BFloat16>(inputs, distribution, stream);
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
