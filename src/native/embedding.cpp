// The sum of the embeddings, words[id] + positions[place] + type: gathered in one pass, and its gradients in another.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::by_type, linformer::data, linformer::floats, linformer::Stored, linformer::table;

namespace {

// Adds rows of d [R, width] to the rows of `total` that `which` names. A row's sum is made by one thread in the order of R.
template <class E>
void scatter_add(const Tensor& d, const Tensor& which, const Tensor& total) {
  const int64_t width = d.size(1), rows = d.size(0), parts = 8;
  const int64_t* index = which.const_data_ptr<int64_t>();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; row++) {
      const int64_t part = index[row] % parts;
      if (part >= begin && part < end) table<E>().add_to(data<E>(d) + row * width, floats(total) + index[row] * width, width);
    }
  });
}

struct Embedding : ag::Function<Embedding> {
  // words [V, d], positions [P, d], type [d] in fp32; ids and places [R] int64 -> [R, d] in fp32 or bf16.
  static Tensor forward(ag::AutogradContext* context, const Tensor& words, const Tensor& positions, const Tensor& type, const Tensor& ids,
                        const Tensor& places, int64_t pad, at::ScalarType kind) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const int64_t rows = ids.numel(), width = words.size(1);
    const Tensor out = at::empty({rows, width}, words.options().dtype(kind));
    const int64_t *id = ids.const_data_ptr<int64_t>(), *place = places.const_data_ptr<int64_t>();
    by_type(out, [&](auto element) {
      using E = decltype(element);
      linformer::over_rows(rows, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++)
          table<E>().sum_of_three(floats(words) + id[row] * width, floats(positions) + place[row] * width, floats(type), data<E>(out) + row * width,
                                  width);
      });
    });
    context->save_for_backward({ids, places});
    context->saved_data["words"] = words.size(0);
    context->saved_data["positions"] = positions.size(0);
    context->saved_data["pad"] = pad;
    return out;
  }

  // The rows of the padding id get no gradient, as PyTorch's padding_idx has it.
  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const Tensor d = d_outs[0].contiguous();
    const int64_t width = d.size(1), pad = context->saved_data["pad"].toInt();
    const auto zeros = [&](const char* rows) { return at::zeros({context->saved_data[rows].toInt(), width}, at::kFloat); };
    const Tensor words = zeros("words"), positions = zeros("positions");
    by_type(d, [&](auto element) {
      scatter_add<decltype(element)>(d, saved[0], words);
      scatter_add<decltype(element)>(d, saved[1], positions);
    });
    words[pad].zero_();
    positions[pad].zero_();
    return {words, positions, linformer::column_sums(d), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" void* linformer_embedding(void* words, void* positions, void* type, void* ids, void* places, int64_t pad, int is_bf16) {
  LINFORMER_TRY
  using linformer::tensor_at;
  const auto checked = [](const Tensor& index, const Tensor& table, const char* what) {
    const Tensor flat = index.contiguous().view({-1});
    if (flat.numel() > 0) {
      const int64_t low = flat.min().item<int64_t>(), high = flat.max().item<int64_t>();
      TORCH_CHECK(low >= 0 && high < table.size(0), what, " ", low < 0 ? low : high, " is not below ", table.size(0));
    }
    return flat;
  };
  const Tensor &w = tensor_at(words), &p = tensor_at(positions);
  const Tensor id = checked(tensor_at(ids), w, "token id"), place = checked(tensor_at(places), p, "position");
  TORCH_CHECK(id.numel() == place.numel(), "as many positions as tokens");
  return new Tensor(Embedding::apply(w, p, tensor_at(type), id, place, pad, is_bf16 ? at::kBFloat16 : at::kFloat));
  LINFORMER_CATCH(nullptr)
}
