// The kernels' thread pool is torch's own (torch.set_num_threads holds for it).
#include <torch/csrc/stable/ops.h>

#include "ddsm/types.h"

namespace ddsm {

void parallel_for_raw(int64_t begin, int64_t end, int64_t grain,
                      void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace ddsm
