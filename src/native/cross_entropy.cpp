// The vocabulary product with its loss: logits = y W^T + b, the summed cross-entropy with label smoothing, and every
// gradient from one buffer: the logits are overwritten by their gradient as soon as the loss is known.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::by_type, linformer::data, linformer::floats, linformer::Stored, linformer::table;

namespace {

struct VocabularyLoss : ag::Function<VocabularyLoss> {
  // y [M, d], weight [V, d], bias [V] in fp32, targets [M] (negative: ignored) -> the sum of the losses, fp32.
  static Tensor forward(ag::AutogradContext* context, const Tensor& y, const Tensor&, const Tensor& bias, const Tensor& targets,
                        double smoothing, bool gradient, const Tensor* in_type_of_y) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor& weight = *in_type_of_y;
    const int64_t rows = y.size(0), classes = weight.size(0);
    const Tensor logits = at::mm(y, weight.t());
    const int64_t chunks = (rows + linformer::kRowChunk - 1) / linformer::kRowChunk;
    std::vector<double> losses(chunks, 0.0);
    Tensor d_bias;
    by_type(logits, [&](auto element) {
      using E = decltype(element);
      const linformer::CrossEntropy<Stored<E>> arguments{data<E>(logits), floats(bias), targets.const_data_ptr<int64_t>(), float(smoothing), gradient,
                                                         classes};
      d_bias = linformer::summed_over_rows(rows, classes, [&](int64_t first, int64_t last, float* sums) {
        std::vector<float> scratch(classes + 16);
        losses[first / linformer::kRowChunk] = table<E>().cross_entropy(arguments, first, last, scratch.data(), sums);
      });
    });
    double loss = 0;
    for (double part : losses) loss += part;
    if (gradient) context->save_for_backward({logits, y, weight, d_bias});
    return at::scalar_tensor(loss, at::kFloat);
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list gradients) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor &d_logits = saved[0], &y = saved[1], &weight = saved[2], &d_bias = saved[3];
    // The factor goes onto the small tensors: M x d instead of M x V.
    const double factor = gradients[0].item<double>();
    return {at::mm(d_logits, weight).mul_(factor), linformer::weight_gradient(d_logits, y * factor), d_bias * factor, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" void* linformer_vocabulary_loss(void* y, const linformer::WeightPointers* weight, void* bias, void* targets, double smoothing) {
  LINFORMER_TRY
  using linformer::tensor_at;
  const Tensor input = tensor_at(y).contiguous(), labels = tensor_at(targets).contiguous();
  const Tensor table = linformer::in_type(*weight, input.scalar_type());
  TORCH_CHECK(labels.numel() == 0 || labels.max().item<int64_t>() < table.size(0), "a target is not below ", table.size(0));
  return new Tensor(VocabularyLoss::apply(input, tensor_at(weight->parameter), tensor_at(bias), labels, smoothing, at::GradMode::is_enabled(), &table));
  LINFORMER_CATCH(nullptr)
}
