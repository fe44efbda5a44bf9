// Local cross attention: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "local_cross_attention.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "device_errors.h"
#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

// Rows that are read where they are; see the contract.
Tensor with_aligned_rows(const Tensor& features) {
  const auto on_boundary = [](int64_t bytes) { return bytes % 16 == 0; };
  const bool fits = features.stride(1) == 1 && features.stride(0) >= 0 &&
                    on_boundary(features.stride(0) * features.element_size()) &&
                    on_boundary(reinterpret_cast<intptr_t>(features.const_data_ptr()));
  return fits ? features : packed(features);
}

// The arguments, checked, and kept alive while `inputs` points to them.
struct AttentionArguments {
  Tensor features, means, visible, keys, centers, whitenings, class_probs, is_thing;
  AttentionInputs inputs;

  AttentionArguments(const Tensor& f, const Tensor& x, const Tensor& rows, const Tensor& k, const Tensor& c,
                     const Tensor& A, const Tensor& p, const Tensor& things, int64_t num_stuff) {
    TORCH_CHECK(f.dim() == 2 && rows.dim() == 1 && k.dim() == 2 && p.dim() == 2,
                "features, visible, keys, class_probs: expected [N, E], [V], [Q, E], [V, C], got " +
                    sizes_text(f.sizes()) + ", " + sizes_text(rows.sizes()) + ", " + sizes_text(k.sizes()) + ", " +
                    sizes_text(p.sizes()));
    const at::Device device = f.device();
    const at::ScalarType storage = f.scalar_type();
    const int64_t N = f.size(0), V = rows.size(0), Q = k.size(0), C = p.size(1);
    TORCH_CHECK(storage == at::kFloat || storage == at::kHalf || storage == at::kBFloat16,
                std::string("features: expected float32, float16 or bfloat16, got ") + c10::toString(storage));
    check_on(f, "features", device, storage, {N, kFeatureDim});
    check_on(x, "means", device, at::kFloat, {N, 3});
    check_on(rows, "visible", device, at::kLong, {V});
    check_on(k, "keys", device, at::kFloat, {Q, kFeatureDim});
    check_on(c, "centers", device, at::kFloat, {Q, 3});
    check_on(A, "whitenings", device, at::kFloat, {Q, 3, 3});
    check_on(p, "class_probs", device, storage, {V, C});
    check_on(things, "is_thing", device, at::kBool, {C});
    TORCH_CHECK_VALUE(num_stuff >= 0 && num_stuff <= C,
                      "num_stuff: expected 0.." + std::to_string(C) + ", got " + std::to_string(num_stuff));
    TORCH_CHECK_VALUE(C <= kMaxClasses, "class_probs: expected at most " + std::to_string(kMaxClasses) + " classes, got " +
                                           std::to_string(C));
    TORCH_CHECK_VALUE(Q < (1 << 24), "keys: expected less than 2^24 queries, got " + std::to_string(Q));
    features = with_aligned_rows(f);
    means = x.contiguous(), visible = rows.contiguous(), keys = packed(k), centers = c.contiguous();
    whitenings = A.contiguous(), class_probs = p.contiguous(), is_thing = things.contiguous();
    inputs = {features.const_data_ptr(), class_probs.const_data_ptr(), means.const_data_ptr<float>(),
              keys.const_data_ptr<float>(), centers.const_data_ptr<float>(), whitenings.const_data_ptr<float>(),
              visible.const_data_ptr<int64_t>(), is_thing.const_data_ptr<bool>(), N, V, features.stride(0),
              (int)Q, (int)C, (int)num_stuff};
  }
};

// Throws for what CUDA kernels note in device_errors.h.
void check_values(const AttentionInputs& in) {
  for (int64_t v = 0; v < in.V; ++v) {
    const int64_t row = in.visible[v], before = v > 0 ? in.visible[v - 1] : -1;
    TORCH_CHECK_INDEX(row > before && row < in.N, "visible: expected strictly ascending rows of features, 0.." +
                                                      std::to_string(in.N - 1) + ", got " + std::to_string(row) +
                                                      " at " + std::to_string(v));
  }
  const int64_t num_stuff = std::count(in.is_thing, in.is_thing + in.C, false);
  TORCH_CHECK_VALUE(num_stuff == in.S, "num_stuff: expected " + std::to_string(num_stuff) +
                                              ", the classes that are no things, got " + std::to_string(in.S));
}

struct Keys {  // of all queries, by columns: the inner loops run over the queries
  int64_t Q;
  std::vector<float> values;  // [32 + 3 + 9, Q]: keys, centres, whitening matrices

  explicit Keys(const AttentionInputs& in) : Q(in.Q), values((size_t)(kFeatureDim + 12) * in.Q) {
    for (int64_t q = 0; q < Q; ++q) {
      for (int i = 0; i < kFeatureDim; ++i) values[i * Q + q] = in.keys[q * kFeatureDim + i];
      for (int i = 0; i < 3; ++i) values[(kFeatureDim + i) * Q + q] = in.centers[q * 3 + i];
      for (int i = 0; i < 9; ++i) values[(kFeatureDim + 3 + i) * Q + q] = in.whitenings[q * 9 + i];
    }
  }
  const float* column(int i) const { return values.data() + i * Q; }
};

// exp(x) for x <= 0 to 2 ulp, without branches: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor's polynomial in r.
inline float exp_nonpositive(float x) {
  x = x > -80.0f ? x : -80.0f;
  const float rounded = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
  const float n = rounded - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return p * power;
}

struct Scores {  // of one Gaussian with all queries [Q]
  std::vector<float> similarity, dissimilarity, density, score;
  explicit Scores(int64_t Q) : similarity(Q), dissimilarity(Q), density(Q), score(Q) {}

  void compute(const float* f, const float* x, const Keys& keys) {
    const int64_t Q = keys.Q;
    float *dots = similarity.data(), *squares = density.data();
    std::fill_n(dots, Q, 0.0f);
    std::fill_n(squares, Q, 0.0f);
    for (int i = 0; i < kFeatureDim; ++i) {
      const float* key = keys.column(i);
      for (int64_t q = 0; q < Q; ++q) dots[q] += f[i] * key[q];
    }
    const float *cx = keys.column(kFeatureDim), *cy = cx + Q, *cz = cy + Q;
    for (int i = 0; i < 3; ++i) {
      const float *a = keys.column(kFeatureDim + 3 + 3 * i), *b = a + Q, *c = b + Q;
      for (int64_t q = 0; q < Q; ++q) {
        const float w = a[q] * (x[0] - cx[q]) + b[q] * (x[1] - cy[q]) + c[q] * (x[2] - cz[q]);
        squares[q] += w * w;
      }
    }
    float *differ = dissimilarity.data(), *s = score.data();
    for (int64_t q = 0; q < Q; ++q) {
      const float dot = dots[q], e = exp_nonpositive(dot > 0.0f ? -dot : dot);
      const float larger = 1.0f / (1.0f + e), smaller = e * larger;
      dots[q] = dot > 0.0f ? larger : smaller;
      differ[q] = dot > 0.0f ? smaller : larger;
      squares[q] = exp_nonpositive(-0.5f * squares[q]);
      s[q] = dots[q] * (squares[q] + kPriorFloor);
    }
  }
};

template <typename T>
void read_row(const T* from, float* to) {
  for (int i = 0; i < kFeatureDim; ++i) to[i] = (float)from[i];
}

template <typename T>
float thing_mass(const AttentionInputs& in, const T* probs) {
  float mass = 0;
  for (int c = 0; c < in.C; ++c) mass += in.is_thing[c] ? (float)probs[c] : 0.0f;
  return mass;
}

template <typename T>
void attention_on_cpu(const AttentionInputs& in, T* distribution) {
  const Keys keys(in);
  const int64_t D = in.num_columns();
  at::parallel_for(0, in.V, 256, [&](int64_t begin, int64_t end) {
    Scores scores(in.Q);
    float f[kFeatureDim];
    for (int64_t v = begin; v < end; ++v) {
      const int64_t row = in.visible[v];
      read_row(static_cast<const T*>(in.features) + row * in.feature_stride, f);
      scores.compute(f, in.means + 3 * row, keys);
      float total = kUnassignedScore;
      for (const float s : scores.score) total += s;
      const T* probs = static_cast<const T*>(in.class_probs) + v * in.C;
      const float share = thing_mass(in, probs) / total;
      T* out = distribution + v * D;
      for (int c = 0; c < in.C; ++c) {
        if (!in.is_thing[c]) *out++ = probs[c];
      }
      *out++ = (T)(share * kUnassignedScore);
      for (const float s : scores.score) *out++ = (T)(share * s);
    }
  });
}

// Adds the gradients of visible Gaussians [begin, end) to the sums [41, Q] of the queries and writes the others.
template <typename T>
void backward_chunk(const AttentionInputs& in, const Keys& keys, const T* v_distribution, int64_t begin, int64_t end,
                    float* sums, T* v_features, T* v_class_probs) {
  const int64_t D = in.num_columns(), Q = in.Q;
  Scores scores(Q);
  std::vector<float> v_dots(Q), v_squares(Q);
  float f[kFeatureDim];
  for (int64_t v = begin; v < end; ++v) {
    const int64_t row = in.visible[v];
    const float* x = in.means + 3 * row;
    read_row(static_cast<const T*>(in.features) + row * in.feature_stride, f);
    scores.compute(f, x, keys);
    const T *v_out = v_distribution + v * D, *v_queries = v_out + in.S + 1;
    const float *s = scores.score.data(), *similarity = scores.similarity.data();
    const float *dissimilarity = scores.dissimilarity.data(), *density = scores.density.data();
    // With P_q = m s_q / Z:  dL/dm = W = (g_0 s_0 + sum_q g_q s_q) / Z  and  dL/ds_q = m / Z (g_q - W).
    float total = kUnassignedScore, weighted = kUnassignedScore * (float)v_out[in.S];
    for (int64_t q = 0; q < Q; ++q) total += s[q], weighted += s[q] * (float)v_queries[q];
    const float v_thing = weighted / total;
    const float scale = thing_mass(in, static_cast<const T*>(in.class_probs) + v * in.C) / total;
    for (int c = 0, stuff = 0; c < in.C; ++c) {
      v_class_probs[v * in.C + c] = in.is_thing[c] ? (T)v_thing : v_out[stuff++];
    }
    for (int64_t q = 0; q < Q; ++q) {
      const float v_score = scale * ((float)v_queries[q] - v_thing);
      v_dots[q] = v_score * s[q] * dissimilarity[q];
      v_squares[q] = -0.5f * v_score * similarity[q] * density[q];
    }
    for (int i = 0; i < kFeatureDim; ++i) {
      const float* key = keys.column(i);
      float lanes[8] = {}, *sum = sums + i * Q;
      int64_t q = 0;
      for (; q + 8 <= Q; q += 8) {
        for (int j = 0; j < 8; ++j) lanes[j] += v_dots[q + j] * key[q + j];
      }
      for (; q < Q; ++q) lanes[0] += v_dots[q] * key[q];
      v_features[row * kFeatureDim + i] = (T)(((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                                              ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7])));
      for (q = 0; q < Q; ++q) sum[q] += v_dots[q] * f[i];
    }
    const float *cx = keys.column(kFeatureDim), *cy = cx + Q, *cz = cy + Q;
    float* moments = sums + kFeatureDim * Q;
    for (int64_t q = 0; q < Q; ++q) {
      const float dx = x[0] - cx[q], dy = x[1] - cy[q], dz = x[2] - cz[q];
      const float vx = v_squares[q] * dx, vy = v_squares[q] * dy, vz = v_squares[q] * dz;
      moments[q] += vx, moments[Q + q] += vy, moments[2 * Q + q] += vz;
      moments[3 * Q + q] += vx * dx, moments[4 * Q + q] += vx * dy, moments[5 * Q + q] += vx * dz;
      moments[6 * Q + q] += vy * dy, moments[7 * Q + q] += vy * dz, moments[8 * Q + q] += vz * dz;
    }
  }
}

// The gradients of query q from its sums. d^2 = |A x'|^2:  dL/dA = 2 A sum(g x' x'^T),  dL/dc = -2 A^T A sum(g x').
void finish_query(const AttentionInputs& in, int64_t q, const float* sums, const AttentionGradients& out) {
  for (int i = 0; i < kFeatureDim; ++i) out.keys[q * kFeatureDim + i] = sums[i];
  const float *A = in.whitenings + q * 9, *first = sums + kFeatureDim, *second = first + 3;
  constexpr int packed_index[3][3] = {{0, 1, 2}, {1, 3, 4}, {2, 4, 5}};
  float* v_center = out.centers + q * 3;
  std::fill_n(v_center, 3, 0.0f);
  for (int i = 0; i < 3; ++i) {
    float whitened = 0;
    for (int j = 0; j < 3; ++j) {
      float v = 0;
      for (int k = 0; k < 3; ++k) v += A[3 * i + k] * second[packed_index[k][j]];
      out.whitenings[q * 9 + 3 * i + j] = 2 * v;
      whitened += A[3 * i + j] * first[j];
    }
    for (int j = 0; j < 3; ++j) v_center[j] -= 2 * A[3 * i + j] * whitened;
  }
}

template <typename T>
void backward_on_cpu(const AttentionInputs& in, const T* v_distribution, const AttentionGradients& out) {
  const Keys keys(in);
  // Chunks that do not depend on the threads: their sums are added in one order.
  const int64_t chunk = std::max<int64_t>(256, (in.V + 63) / 64), num_chunks = (in.V + chunk - 1) / chunk;
  const int64_t size = kQuerySums * (int64_t)in.Q;
  std::vector<float> sums(num_chunks * size);
  at::parallel_for(0, num_chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      backward_chunk(in, keys, v_distribution, i * chunk, std::min((i + 1) * chunk, in.V), sums.data() + i * size,
                     static_cast<T*>(out.features), static_cast<T*>(out.class_probs));
    }
  });
  for (int64_t q = 0; q < in.Q; ++q) {
    float of_query[kQuerySums] = {};
    for (int64_t i = 0; i < num_chunks; ++i) {
      for (int j = 0; j < kQuerySums; ++j) of_query[j] += sums[i * size + j * in.Q + q];
    }
    finish_query(in, q, of_query, out);
  }
}

// Calls use(T()) for the type of a tensor.
template <typename Use>
void with_storage(at::ScalarType storage, const Use& use) {
  if (storage == at::kFloat) use(float());
  if (storage == at::kHalf) use(c10::Half());
  if (storage == at::kBFloat16) use(c10::BFloat16());
}

}  // namespace

Tensor local_cross_attention(const Tensor& features, const Tensor& means, const Tensor& visible, const Tensor& keys,
                             const Tensor& centers, const Tensor& whitenings, const Tensor& class_probs,
                             const Tensor& is_thing, int64_t num_stuff) {
  const AttentionArguments a(features, means, visible, keys, centers, whitenings, class_probs, is_thing, num_stuff);
  const Tensor distribution = at::empty({a.inputs.V, a.inputs.num_columns()}, features.options());
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (features.is_cuda()) {
    raise_device_errors();
    launch_attention(a.inputs, features.scalar_type(), distribution.data_ptr(), features.get_device());
    return distribution;
  }
#endif
  check_values(a.inputs);
  with_storage(features.scalar_type(), [&](auto zero) {
    attention_on_cpu(a.inputs, static_cast<decltype(zero)*>(distribution.data_ptr()));
  });
  return distribution;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> local_cross_attention_backward(
    const Tensor& v_distribution, const Tensor& features, const Tensor& means, const Tensor& visible,
    const Tensor& keys, const Tensor& centers, const Tensor& whitenings, const Tensor& class_probs,
    const Tensor& is_thing, int64_t num_stuff) {
  const AttentionArguments a(features, means, visible, keys, centers, whitenings, class_probs, is_thing, num_stuff);
  const AttentionInputs& in = a.inputs;
  const auto storage = features.scalar_type();
  check_on(v_distribution, "v_distribution", features.device(), storage, {in.V, in.num_columns()});
  const Tensor v_out = v_distribution.contiguous();
  // Strictly ascending rows, as many as there are: all of them, and each is written.
  const Tensor v_features = in.V == in.N ? at::empty(features.sizes(), features.options())
                                         : at::zeros(features.sizes(), features.options());
  const Tensor v_class_probs = at::empty(class_probs.sizes(), class_probs.options());
  const Tensor v_keys = at::empty(keys.sizes(), keys.options()), v_centers = at::empty(centers.sizes(), keys.options()),
               v_whitenings = at::empty(whitenings.sizes(), keys.options());
  const AttentionGradients gradients{v_features.data_ptr(), v_class_probs.data_ptr(), v_keys.data_ptr<float>(),
                                     v_centers.data_ptr<float>(), v_whitenings.data_ptr<float>()};
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (features.is_cuda()) {
    raise_device_errors();
    const int device = features.get_device();
    const Tensor sums = at::empty({attention_blocks(in.V, device), in.Q, kQuerySums}, keys.options());
    launch_attention_backward(in, storage, v_out.const_data_ptr(), sums.data_ptr<float>(), gradients, device);
    return {v_features, v_keys, v_centers, v_whitenings, v_class_probs};
  }
#endif
  check_values(in);
  with_storage(storage, [&](auto zero) {
    backward_on_cpu(in, static_cast<const decltype(zero)*>(v_out.const_data_ptr()), gradients);
  });
  return {v_features, v_keys, v_centers, v_whitenings, v_class_probs};
}

}  // namespace panoptic_mapper
