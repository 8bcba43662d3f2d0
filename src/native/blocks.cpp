#include "blocks.h"

#include "shim.h"

using at::Tensor;

namespace linformer {

Tensor in_type(const WeightPointers& weight, at::ScalarType type) {
  const Tensor& parameter = tensor_at(weight.parameter);
  if (type == at::kFloat) return parameter.detach();
  const Tensor& copy = tensor_at(weight.copy);
  int64_t& copied = *tensor_at(weight.version).data_ptr<int64_t>();
  const int64_t version = parameter._version();
  if (copy.numel() != parameter.numel() || copied != version) {
    at::NoGradGuard no_grad;
    if (copy.numel() != parameter.numel()) copy.resize_(parameter.sizes());
    copy.copy_(parameter);
    copied = version;
  }
  return copy;
}

Normed drop_add_norm(const Tensor& y, const Tensor& bias, const Tensor& residual, const Tensor& gamma, const Tensor& beta, double eps,
                     const Mask& mask, const Tensor& numbers) {
  const int64_t width = gamma.numel(), rows = y.numel() / width;
  const Tensor sum = y.contiguous(), kept = residual.defined() ? residual.contiguous() : Tensor();
  const Normed normed{at::empty_like(sum), sum, at::empty({rows}, at::kFloat), at::empty({rows}, at::kFloat)};
  by_type(sum, [&](auto element) {
    using E = decltype(element);
    const NormForward<Stored<E>> arguments{data<E>(sum),        floats(bias),        data<E>(kept),       floats(gamma), floats(beta), float(eps),
                                           data<E>(normed.out), floats(normed.mean), floats(normed.rstd), width,         mask,          integers(numbers)};
    over_rows(rows, [&](int64_t first, int64_t last) { table<E>().drop_add_norm(arguments, first, last); });
  });
  return normed;
}

NormGradients drop_add_norm_backward(const Tensor& d_out_in, const Tensor& sum, const Tensor& gamma, const Tensor& mean, const Tensor& rstd,
                                     const Mask& mask, const Tensor& numbers) {
  const int64_t width = gamma.numel(), rows = sum.numel() / width;
  const Tensor d_out = d_out_in.contiguous(), d_residual = at::empty_like(sum);
  const Tensor d_y = mask.threshold() > 0 ? at::empty_like(sum) : d_residual;
  Tensor sums;
  by_type(sum, [&](auto element) {
    using E = decltype(element);
    const NormBackward<Stored<E>> arguments{data<E>(d_out),      data<E>(sum), floats(gamma), floats(mean), floats(rstd),
                                            data<E>(d_residual), data<E>(d_y), width,         mask,         integers(numbers)};
    sums = summed_over_rows(rows, 3 * width, [&](int64_t first, int64_t last, float* part) {
      table<E>().drop_add_norm_backward(arguments, first, last, part);
    });
  });
  return {d_residual, d_y, sums.narrow(0, 0, width), sums.narrow(0, width, width), sums.narrow(0, 2 * width, width)};
}

Tensor bias_gelu(const Tensor& h, const Tensor& bias, const Tensor& out) {
  const int64_t width = bias.numel(), rows = h.numel() / width;
  by_type(h, [&](auto element) {
    using E = decltype(element);
    over_rows(rows, [&](int64_t first, int64_t last) { table<E>().bias_gelu(data<E>(h), floats(bias), data<E>(out), width, first, last); });
  });
  return out;
}

Tensor bias_gelu_backward(const Tensor& h, const Tensor& bias, const Tensor& d_out, const Tensor& d_h, const Tensor& out) {
  const int64_t width = bias.numel(), rows = h.numel() / width;
  Tensor d_bias;
  by_type(h, [&](auto element) {
    using E = decltype(element);
    d_bias = summed_over_rows(rows, width, [&](int64_t first, int64_t last, float* sums) {
      table<E>().bias_gelu_backward(data<E>(h), floats(bias), data<E>(d_out), data<E>(d_h), data<E>(out), width, first, last, sums);
    });
  });
  return d_bias;
}

Tensor column_sums(const Tensor& x_in) {
  const Tensor x = x_in.contiguous();
  const int64_t width = x.size(-1), rows = x.numel() / width;
  Tensor totals;
  by_type(x, [&](auto element) {
    using E = decltype(element);
    totals = summed_over_rows(rows, width, [&](int64_t first, int64_t last, float* sums) {
      table<E>().column_sums(data<E>(x), width, first, last, sums);
    });
  });
  return totals;
}

Tensor row_numbers(const Tensor& numbers_in, int64_t count) {
  TORCH_CHECK(numbers_in.is_cpu(), "numbers of rows lie on the CPU");
  const Tensor numbers = numbers_in.contiguous();
  const int64_t* number = integers(numbers);
  for (int64_t i = 0, last = -1; i < numbers.numel(); last = number[i++])
    TORCH_CHECK(number[i] > last && number[i] < count, "row ", number[i], " behind row ", last, ": expected ascending numbers below ", count);
  return numbers;
}

// By hand: index_copy_ takes three times as long.
Tensor spread_rows(const Tensor& d_in, const Tensor& numbers, int64_t count) {
  const Tensor d = d_in.contiguous(), out = at::zeros({count, d.size(1)}, d.options());
  const int64_t bytes = d.size(1) * d.element_size();
  const char* from = static_cast<const char*>(d.const_data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  over_rows(numbers.numel(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) std::memcpy(to + integers(numbers)[i] * bytes, from + i * bytes, bytes);
  });
  return out;
}

void save(torch::autograd::AutogradContext* context, const Mask& mask) {
  context->saved_data["p"] = mask.p;
  context->saved_data["key"] = static_cast<int64_t>(mask.key);
  context->saved_data["nonce"] = static_cast<int64_t>(mask.nonce);
  context->saved_data["offset"] = mask.offset;
}

Mask saved_mask(const torch::autograd::AutogradContext* context) {
  const auto number = [&](const char* name) { return context->saved_data.at(name).toInt(); };
  return {context->saved_data.at("p").toDouble(), static_cast<uint64_t>(number("key")), static_cast<uint64_t>(number("nonce")), number("offset")};
}

}  // namespace linformer

extern "C" int linformer_make_copy(const linformer::WeightPointers* weight) {
  LINFORMER_TRY
  linformer::in_type(*weight, at::kBFloat16);
  return 0;
  LINFORMER_CATCH(-1)
}
