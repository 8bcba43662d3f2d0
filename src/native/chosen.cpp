// Some rows of a tensor, and some rows among zeros; each is the other's gradient.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;

namespace {

// x [R, width] and numbers [M] -> [M, width].
struct Take : ag::Function<Take> {
  static Tensor forward(ag::AutogradContext* context, const Tensor& x, const Tensor& numbers) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({numbers});
    context->saved_data["rows"] = x.size(0);
    return x.index_select(0, numbers);
  }
  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return {linformer::spread_rows(d_outs[0], context->get_saved_variables()[0], context->saved_data["rows"].toInt()), Tensor()};
  }
};

// x [M, width] and numbers [M] -> [count, width].
struct Spread : ag::Function<Spread> {
  static Tensor forward(ag::AutogradContext* context, const Tensor& x, const Tensor& numbers, int64_t count) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({numbers});
    return linformer::spread_rows(x, numbers, count);
  }
  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return {d_outs[0].index_select(0, context->get_saved_variables()[0]), Tensor(), Tensor()};
  }
};

}  // namespace

using linformer::row_numbers, linformer::tensor_at;

extern "C" void* linformer_take_rows(void* x, void* numbers) {
  LINFORMER_TRY
  return new Tensor(Take::apply(tensor_at(x), row_numbers(tensor_at(numbers), tensor_at(x).size(0))));
  LINFORMER_CATCH(nullptr)
}

extern "C" void* linformer_spread_rows(void* x, void* numbers, int64_t count) {
  LINFORMER_TRY
  TORCH_CHECK(tensor_at(numbers).numel() == tensor_at(x).size(0), tensor_at(numbers).numel(), " numbers of ", tensor_at(x).size(0), " rows");
  return new Tensor(Spread::apply(tensor_at(x), row_numbers(tensor_at(numbers), count), count));
  LINFORMER_CATCH(nullptr)
}
