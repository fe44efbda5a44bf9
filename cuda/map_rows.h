// Rows of a table of parameters (operators `gather_columns` and `adam_rows_`): what a step reads of the map, and what it
// changes, each in one pass over the rows.
//
// Contract
//   * A table is values [N, D], moments [N, 2, D] (first, second) and steps [N], all float32 and contiguous, on one
//     device, CPU or CUDA. Its columns are groups of neighbouring elements, `widths` wide, D in sum, at most kMaxColumns.
//   * ids [V] int64 are distinct rows. One outside of the table is an IndexError on the CPU; on CUDA nothing outside of a
//     tensor is touched and the IndexError comes later, see device_errors.h.
//   * `adam_rows_` is Adam (Kingma and Ba 2015) with bias correction by each row's own number of steps t:
//         t += 1     m = b1 m + (1 - b1) g     v = b2 v + (1 - b2) g^2
//         x -= rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//     for the rows of ids, or for those of them that `which` [V] bool chooses. A column without gradient stays as it is,
//     moments included.
//   * CUDA: current stream, no synchronisation, can be captured in a graph. Results are bit-identical from run to run.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include "device_code.h"

namespace panoptic_mapper {

constexpr int kMaxColumns = 16;

// The columns [V, width] of the rows, one contiguous tensor each.
std::vector<at::Tensor> gather_columns(const at::Tensor& values, const at::Tensor& ids, at::IntArrayRef widths);

// gradients: one [V, width] per column, or none. rates: [D].
void adam_rows_(at::Tensor values, at::Tensor moments, at::Tensor steps, const at::Tensor& ids,
                const std::optional<at::Tensor>& which, const c10::List<std::optional<at::Tensor>>& gradients,
                at::IntArrayRef widths, const at::Tensor& rates, double beta_1, double beta_2, double epsilon);

struct Columns {  // element d of a row is element d - begin[c] of column c
  int count, width;  // columns, and elements in all
  int begin[kMaxColumns + 1];
  float* data[kMaxColumns];  // [V, begin[c + 1] - begin[c]]; null = there is none

  PM_DEVICE int of(int d) const {
    int c = 0;
    while (d >= begin[c + 1]) ++c;
    return c;
  }
  PM_DEVICE float* at(int64_t row, int d) const {
    const int c = of(d);
    return data[c] == nullptr ? nullptr : data[c] + row * (begin[c + 1] - begin[c]) + d - begin[c];
  }
};

struct AdamRows {
  float *values, *moments, *steps;
  const int64_t* ids;
  const bool* which;  // null = all
  const float* rates;
  int64_t num_rows, num_ids;
  float log_beta_1, log_beta_2, rest_1, rest_2, epsilon;  // rest: 1 - beta
};

// One element's step; t counts this one already.
PM_DEVICE inline void adam_element(const AdamRows& a, int width, int64_t row, int d, float t, float gradient) {
  float* moment = a.moments + row * 2 * width + d;
  const float first = moment[0] + a.rest_1 * (gradient - moment[0]);
  const float second = moment[width] + a.rest_2 * (gradient * gradient - moment[width]);
  moment[0] = first, moment[width] = second;
  const float first_hat = first / -expm1f(t * a.log_beta_1), second_hat = second / -expm1f(t * a.log_beta_2);
  a.values[row * width + d] -= a.rates[d] * first_hat / (sqrtf(second_hat) + a.epsilon);
}

// The checks of a table's values [N, D] and of ids [V], for operators that change rows.
void check_rows(const at::Tensor& values, const at::Tensor& ids);

// Of checked tensors, all contiguous; which may be null.
AdamRows adam_rows(const at::Tensor& values, const at::Tensor& moments, const at::Tensor& steps, const at::Tensor& ids,
                   const bool* which, const at::Tensor& rates, double beta_1, double beta_2, double epsilon);

// CUDA kernels (map_rows_kernels.cu).
void launch_gather_columns(const float* values, const int64_t* ids, int64_t num_rows, int64_t num_ids,
                           const Columns& columns, int device);
void launch_adam_rows(const AdamRows& rows, const Columns& gradients, int device);

}  // namespace panoptic_mapper
