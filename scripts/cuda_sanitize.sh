#!/usr/bin/env bash
# Runs the CUDA kernels' tests under compute-sanitizer: memcheck and racecheck. Needs an NVIDIA GPU and the CUDA toolkit.
# Usage: cuda_sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
# A compilation on first use is not what is to be checked; and with one allocation per tensor each end is seen.
"$python" -c "from panoptic_mapper import ops; ops.load()"
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
files="test/test_attention_op.py test/test_bounded_lists_op.py test/test_image_losses_op.py test/test_label_losses_op.py
  test/test_label_votes.py test/test_label_warp_op.py test/test_map_rows_op.py test/test_splat_step_op.py
  test/test_visibility_op.py test/test_whitening_op.py"
tests="those_of_the_loop or those_of_adam or of_the_oracle or those_of_the_rows or equals_twin or half_precision or empty_inputs"
tests+=" or layouts or extreme or wrong_rows or no_depth or one_by_one or too_long"
for tool in memcheck racecheck; do
  echo "cuda-sanitize: $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider -m cuda \
    $files -k "($tests) and not cpu"
done
