// Adam and AdamW on lists of tensors in one pass, which also writes the bf16 copies of the weights; gradient norms. tch has no
// optimizer whose state could be saved.
#include "shim.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "rows.h"

using at::Tensor;

// One weight with its state; the pointers are tensors of tch. No copy: `copy` and `version` are null.
struct AdamItem {
  void *weight, *gradient, *exp_avg, *exp_avg_sq, *step, *copy, *version;
  double weight_decay;
};

struct AdamSettings {
  double lr, beta1, beta2, eps;
  double gradient_divisor;  // gradients are divided by it: 1 / clip coefficient
  int decoupled;            // 1 AdamW, 0 Adam with L2
};

namespace {

using linformer::tensor_at;

constexpr int64_t kChunk = 1 << 15;

bool is_plain(const Tensor& t) { return t.is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous(); }

// The pieces of one weight, and its gradient in the order of the weight; counts its step.
void cut(const AdamItem& item, const AdamSettings& s, std::vector<linformer::Adam>& pieces, std::vector<Tensor>& gradients) {
  const Tensor& weight = tensor_at(item.weight);
  const Tensor& gradient = gradients.emplace_back(tensor_at(item.gradient).contiguous());
  for (void* t : {item.weight, item.exp_avg, item.exp_avg_sq, item.step}) TORCH_CHECK(is_plain(tensor_at(t)), "optimizer state is not plain fp32");
  const double step = *tensor_at(item.step).data_ptr<float>() += 1.0f;
  const Tensor* copy = item.copy && tensor_at(item.copy).numel() == weight.numel() ? &tensor_at(item.copy) : nullptr;
  const double decay = item.weight_decay;
  linformer::Adam whole{};
  whole.gradient_scale = static_cast<float>(1.0 / s.gradient_divisor);
  whole.step_size = static_cast<float>(s.lr / (1.0 - std::pow(s.beta1, step)));
  whole.inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(s.beta2, step)));
  whole.beta1 = static_cast<float>(s.beta1), whole.beta2 = static_cast<float>(s.beta2), whole.eps = static_cast<float>(s.eps);
  whole.shrink = static_cast<float>(s.decoupled ? 1.0 - s.lr * decay : 1.0), whole.decay = static_cast<float>(s.decoupled ? 0.0 : decay);
  for (int64_t at = 0; at < weight.numel(); at += kChunk) {
    linformer::Adam piece = whole;
    piece.count = std::min(kChunk, weight.numel() - at);
    piece.weight = weight.data_ptr<float>() + at, piece.gradient = gradient.data_ptr<float>() + at;
    piece.exp_avg = tensor_at(item.exp_avg).data_ptr<float>() + at, piece.exp_avg_sq = tensor_at(item.exp_avg_sq).data_ptr<float>() + at;
    piece.copy = copy ? reinterpret_cast<linformer::BFloat16*>(copy->data_ptr<at::BFloat16>()) + at : nullptr;
    pieces.push_back(piece);
  }
}

// libtorch's kernel, for other devices: all weights of one decay at once, nothing comes to the host.
void elsewhere(const std::vector<const AdamItem*>& items, const AdamSettings& s) {
  std::vector<double> decays;
  for (const AdamItem* item : items)
    if (std::find(decays.begin(), decays.end(), item->weight_decay) == decays.end()) decays.push_back(item->weight_decay);
  for (const double decay : decays) {
    std::vector<Tensor> w, g, m, v, t;
    for (const AdamItem* item : items) {
      if (item->weight_decay != decay) continue;
      w.push_back(tensor_at(item->weight)), g.push_back(tensor_at(item->gradient));
      m.push_back(tensor_at(item->exp_avg)), v.push_back(tensor_at(item->exp_avg_sq)), t.push_back(tensor_at(item->step));
    }
    at::_foreach_add_(t, 1);
    std::optional<Tensor> divisor;
    if (s.gradient_divisor != 1.0) divisor = at::full({}, s.gradient_divisor, w[0].options().dtype(at::kFloat));
    if (s.decoupled) at::_fused_adamw_(w, g, m, v, {}, t, s.lr, s.beta1, s.beta2, decay, s.eps, false, false, divisor);
    else at::_fused_adam_(w, g, m, v, {}, t, s.lr, s.beta1, s.beta2, decay, s.eps, false, false, divisor);
  }
}

// Norms on other devices: one tensor of them comes to the host.
void norms_elsewhere(const std::vector<Tensor>& gradients, double* norms) {
  const Tensor all = at::stack(at::_foreach_norm(gradients, 2, at::kFloat)).to(at::kCPU, at::kDouble);
  std::copy_n(all.const_data_ptr<double>(), gradients.size(), norms);
}

}  // namespace

// One step in place on weights, moments and step counters (fp32 scalars, counted up here). `by_libtorch`: as on other devices.
extern "C" int linformer_adam_step(const AdamItem* items, int count, const AdamSettings* settings, int by_libtorch) {
  LINFORMER_TRY
  at::NoGradGuard no_grad;
  std::vector<linformer::Adam> pieces;
  // The pieces point into them: a copy has to live until they are done.
  std::vector<Tensor> gradients;
  std::vector<const AdamItem*> others;
  for (int i = 0; i < count; i++) {
    if (!by_libtorch && tensor_at(items[i].weight).is_cpu()) cut(items[i], *settings, pieces, gradients);
    else others.push_back(&items[i]);
  }
  elsewhere(others, *settings);
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) linformer::kernels().adam(pieces[i]);
  });
  for (int i = 0; i < count; i++) {
    const Tensor& weight = tensor_at(items[i].weight);
    if (!weight.is_cpu()) continue;
    // Written behind autograd's back: whoever keeps the old value for a backward pass must notice.
    weight.unsafeGetTensorImpl()->bump_version();
    if (items[i].version) *tensor_at(items[i].version).data_ptr<int64_t>() = weight._version();
  }
  return 0;
  LINFORMER_CATCH(-1)
}

// norms[i] receives the Euclidean norm of gradient i. `by_libtorch`: as on other devices.
extern "C" int linformer_gradient_norms(void** gradients, int count, double* norms, int by_libtorch) {
  LINFORMER_TRY
  at::NoGradGuard no_grad;
  if (count > 0 && (by_libtorch || !tensor_at(gradients[0]).is_cpu())) {
    std::vector<Tensor> all;
    for (int i = 0; i < count; i++) all.push_back(tensor_at(gradients[i]));
    norms_elsewhere(all, norms);
    return 0;
  }
  struct Piece {
    const float* from;
    int64_t count;
    int tensor;
  };
  std::vector<Piece> pieces;
  std::vector<Tensor> held;
  for (int i = 0; i < count; i++) {
    held.push_back(tensor_at(gradients[i]).to(at::kFloat).contiguous());
    for (int64_t at = 0; at < held[i].numel(); at += kChunk)
      pieces.push_back({held[i].const_data_ptr<float>() + at, std::min(kChunk, held[i].numel() - at), i});
  }
  std::vector<double> squares(pieces.size());
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) squares[i] = linformer::kernels().squares(pieces[i].from, pieces[i].count);
  });
  std::fill(norms, norms + count, 0.0);
  for (size_t i = 0; i < pieces.size(); i++) norms[pieces[i].tensor] += squares[i];
  for (int i = 0; i < count; i++) norms[i] = std::sqrt(norms[i]);
  return 0;
  LINFORMER_CATCH(-1)
}

// Leaves the tensors without gradients: the next backward pass then stores its own instead of adding to zeros.
extern "C" int linformer_forget_gradients(void** tensors, int count) {
  LINFORMER_TRY
  for (int i = 0; i < count; i++) tensor_at(tensors[i]).mutable_grad() = Tensor();
  return 0;
  LINFORMER_CATCH(-1)
}
