// Local cross attention (operators `local_cross_attention` and `local_cross_attention_backward`): the panoptic
// distribution of the visible Gaussians over [stuff classes (S) | unassigned thing | queries in view (Q)], fused from
// the gather of their features to the normalisation. With g = visible[v]:
//
//     s_vq = sigmoid(f_g . key_q) (exp(-1/2 |A_q (x_g - c_q)|^2) + kPriorFloor)     A^T A: the query's inverse covariance
//     m_v = sum_{things t} p_vt       Z_v = kUnassignedScore + sum_q s_vq
//     distribution_v = [p_vc of the stuff classes c | m_v kUnassignedScore / Z_v | m_v s_vq / Z_v]
//
// Contract
//   * All tensors are on one device, CPU or CUDA. Features, class probabilities, the distribution and their gradients are
//     all float32, all bfloat16 or all float16; sums and everything else are float32. Features have kFeatureDim columns.
//   * Any strides are taken. Rows of features are read where they are if the columns lie side by side and rows start at
//     multiples of 16 bytes; all else that is not contiguous is copied. Empty inputs are valid.
//   * visible: strictly ascending rows, as a rasteriser's visible sets are. Otherwise, and where an index is outside of
//     the features: an IndexError on the CPU. On CUDA such rows of the distribution are NaN, those of the gradients 0,
//     nothing outside of a tensor is touched, and the IndexError comes later without any waiting: see device_errors.h.
//   * num_stuff: how many classes are no things (is_thing false). It is an argument, since the output's size follows it
//     and reading it from is_thing would wait for the device. Checked likewise (ValueError).
//   * Gradients reach features, keys, centres, whitening matrices and class probabilities, not the means: labels never
//     push geometry. The backward recomputes all scores; it keeps no output of the forward.
//   * Memory beside inputs and outputs: on CUDA (a number that follows the GPU's size) x Q x 41 floats in the backward,
//     nothing in the forward; on the CPU at most 64 x Q x 41 floats. Nothing of size N x Q or V x Q.
//   * No atomics on floats: each sum has one order, so results are bit-identical from run to run; on the CPU for any
//     number of threads, on CUDA on GPUs of one model.
//   * CUDA: current stream, no synchronisation, can be captured in a graph.
#pragma once

#include <cstdint>
#include <tuple>

#include <ATen/core/Tensor.h>

namespace panoptic_mapper {

constexpr int kFeatureDim = 32;
constexpr int64_t kMaxClasses = 4096;
// panoptic_mapper/attention.py has the same.
constexpr float kPriorFloor = 1e-5f;
constexpr float kUnassignedScore = 2e-3f;

// Sums of the pairs of a query: of the key's gradient [32], of g x' [3] and of g x' x'^T (xx, xy, xz, yy, yz, zz), where
// x' = x - c and g = the gradient of the squared distance. Those of centre and whitening matrix follow from them.
constexpr int kQuerySums = kFeatureDim + 3 + 6;

// In: features [N, 32], means [N, 3] m, visible [V] int64, keys [Q, 32], centers [Q, 3] m, whitenings [Q, 3, 3],
//     class_probs [V, C], is_thing [C] bool.
// Out: distribution [V, S + 1 + Q].
at::Tensor local_cross_attention(
    const at::Tensor& features, const at::Tensor& means, const at::Tensor& visible, const at::Tensor& keys,
    const at::Tensor& centers, const at::Tensor& whitenings, const at::Tensor& class_probs, const at::Tensor& is_thing,
    int64_t num_stuff);

// Gradients of features [N, 32], keys, centers, whitenings and class_probs from that of the distribution.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> local_cross_attention_backward(
    const at::Tensor& v_distribution, const at::Tensor& features, const at::Tensor& means, const at::Tensor& visible,
    const at::Tensor& keys, const at::Tensor& centers, const at::Tensor& whitenings, const at::Tensor& class_probs,
    const at::Tensor& is_thing, int64_t num_stuff);

// What the kernels see. `storage` pointers are of one type.
struct AttentionInputs {
  const void *features, *class_probs;  // storage
  const float *means, *keys, *centers, *whitenings;
  const int64_t* visible;
  const bool* is_thing;
  int64_t N, V, feature_stride;
  int Q, C, S;

  constexpr int64_t num_columns() const { return (int64_t)S + 1 + Q; }
};

struct AttentionGradients {
  void *features, *class_probs;  // storage; features are zeroed where visible leaves rows out
  float *keys, *centers, *whitenings;
};

// CUDA kernels (local_cross_attention_kernels.cu). `sums` is float [attention_blocks(V), Q, kQuerySums].
int64_t attention_blocks(int64_t V, int device);
void launch_attention(const AttentionInputs& inputs, at::ScalarType storage, void* distribution, int device);
void launch_attention_backward(const AttentionInputs& inputs, at::ScalarType storage, const void* v_distribution,
                               float* sums, const AttentionGradients& gradients, int device);

}  // namespace panoptic_mapper
