// Rows of a table of parameters: checks, the CPU implementation, and the hand-over to the CUDA kernels.

#include "map_rows.h"

#include <string>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include "device_errors.h"
#include "tensor_checks.h"

namespace panoptic_mapper {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 256;  // rows that a thread takes at least

Columns columns_of(at::IntArrayRef widths, int64_t width) {
  TORCH_CHECK_VALUE(widths.size() <= kMaxColumns, "widths: expected at most " + std::to_string(kMaxColumns) +
                                                      " columns, got " + std::to_string(widths.size()));
  Columns columns{(int)widths.size(), (int)width, {0}, {nullptr}};
  for (size_t c = 0; c < widths.size(); ++c) {
    TORCH_CHECK_VALUE(widths[c] > 0, "widths: expected positive numbers, got " + sizes_text(widths));
    columns.begin[c + 1] = columns.begin[c] + (int)widths[c];
  }
  TORCH_CHECK_VALUE(columns.begin[columns.count] == width, "widths: expected a sum of " + std::to_string(width) +
                                                              ", the columns of values, got " + sizes_text(widths));
  return columns;
}

}  // namespace

void check_rows(const Tensor& values, const Tensor& ids) {
  TORCH_CHECK_VALUE(values.dim() == 2 && ids.dim() == 1, "values, ids: expected [N, D], [V], got " +
                                                             sizes_text(values.sizes()) + ", " + sizes_text(ids.sizes()));
  check_on(values, "values", values.device(), at::kFloat, {-1, -1});
  check_on(ids, "ids", values.device(), at::kLong, {-1});
  TORCH_CHECK_VALUE(values.is_contiguous(), "values: expected a contiguous tensor");
  if (!values.is_cpu()) return;
  const Tensor rows = ids.contiguous();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.size(0); ++i) {
    TORCH_CHECK_INDEX(row[i] >= 0 && row[i] < values.size(0), "ids: expected rows 0.." +
                                                                 std::to_string(values.size(0) - 1) + ", got " +
                                                                 std::to_string(row[i]));
  }
}

AdamRows adam_rows(const Tensor& values, const Tensor& moments, const Tensor& steps, const Tensor& ids, const bool* which,
                   const Tensor& rates, double beta_1, double beta_2, double epsilon) {
  return {values.data_ptr<float>(), moments.data_ptr<float>(), steps.data_ptr<float>(), ids.const_data_ptr<int64_t>(), which,
          rates.const_data_ptr<float>(), values.size(0), ids.size(0), (float)std::log(beta_1), (float)std::log(beta_2),
          (float)(1 - beta_1), (float)(1 - beta_2), (float)epsilon};
}

std::vector<Tensor> gather_columns(const Tensor& values, const Tensor& ids, at::IntArrayRef widths) {
  check_rows(values, ids);
  Columns columns = columns_of(widths, values.size(1));
  std::vector<Tensor> gathered;
  for (int c = 0; c < columns.count; ++c) {
    gathered.push_back(at::empty({ids.size(0), widths[c]}, values.options()));
    columns.data[c] = gathered[c].data_ptr<float>();
  }
  const Tensor rows = ids.contiguous();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float* from = values.const_data_ptr<float>();
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (values.is_cuda()) {
    raise_device_errors();
    launch_gather_columns(from, row, values.size(0), ids.size(0), columns, values.get_device());
    return gathered;
  }
#endif
  at::parallel_for(0, ids.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int c = 0; c < columns.count; ++c) {
        const int64_t width = columns.begin[c + 1] - columns.begin[c];
        std::copy_n(from + row[i] * columns.width + columns.begin[c], width, columns.data[c] + i * width);
      }
    }
  });
  return gathered;
}

void adam_rows_(Tensor values, Tensor moments, Tensor steps, const Tensor& ids, const std::optional<Tensor>& which,
                const c10::List<std::optional<Tensor>>& gradients, at::IntArrayRef widths, const Tensor& rates,
                double beta_1, double beta_2, double epsilon) {
  check_rows(values, ids);
  const at::Device device = values.device();
  const int64_t N = values.size(0), D = values.size(1), V = ids.size(0);
  check_on(moments, "moments", device, at::kFloat, {N, 2, D});
  check_on(steps, "steps", device, at::kFloat, {N});
  check_on(rates, "rates", device, at::kFloat, {D});
  TORCH_CHECK_VALUE(moments.is_contiguous() && steps.is_contiguous(), "moments, steps: expected contiguous tensors");
  TORCH_CHECK_VALUE(gradients.size() == widths.size(), "gradients: expected one for each of " +
                                                           std::to_string(widths.size()) + " columns, got " +
                                                           std::to_string(gradients.size()));
  Columns columns = columns_of(widths, D);
  std::vector<Tensor> kept;
  for (int c = 0; c < columns.count; ++c) {
    const std::optional<Tensor> gradient = gradients.get(c);
    if (!gradient.has_value()) continue;
    check_on(*gradient, "gradients", device, at::kFloat, {V, widths[c]});
    kept.push_back(gradient->contiguous());
    columns.data[c] = const_cast<float*>(kept.back().const_data_ptr<float>());  // is only read
  }
  Tensor chosen;
  if (which.has_value()) {
    check_on(*which, "which", device, at::kBool, {V});
    chosen = which->contiguous();
  }
  const Tensor rows = ids.contiguous(), rate = rates.contiguous();
  const AdamRows a = adam_rows(values, moments, steps, rows, chosen.defined() ? chosen.const_data_ptr<bool>() : nullptr,
                               rate, beta_1, beta_2, epsilon);
#ifdef PANOPTIC_MAPPER_WITH_CUDA
  if (values.is_cuda()) {
    raise_device_errors();
    launch_adam_rows(a, columns, values.get_device());
    return;
  }
#endif
  at::parallel_for(0, V, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (a.which != nullptr && !a.which[i]) continue;
      const int64_t row = a.ids[i];
      const float t = a.steps[row] += 1;
      for (int c = 0; c < columns.count; ++c) {
        if (columns.data[c] == nullptr) continue;
        for (int d = columns.begin[c]; d < columns.begin[c + 1]; ++d) {
          adam_element(a, columns.width, row, d, t, *columns.at(i, d));
        }
      }
    }
  });
}

}  // namespace panoptic_mapper
