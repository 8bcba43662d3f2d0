// The products of attention for one head, by the library that is fast for them on this processor: Packed by oneDNN's blocks, Strided by
// BLAS. Both have the same functions; rows of a head stand `width` apart in q, k, v and their gradients, rows of scores `columns`.
#pragma once
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <new>
#include <vector>

#include "rows.h"

// The product of BLAS, which libtorch brings along; null if it does not.
extern "C" __attribute__((weak)) void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n, const int* k, const float* alpha,
                                             const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace linformer {

// What a head's width and the columns of the scores are multiples of.
constexpr int64_t kMultiple = 32;

inline int64_t filled(int64_t n) { return (n + kMultiple - 1) / kMultiple * kMultiple; }

// MKL promises the same bits at every call for memory at multiples of 64 bytes, as libtorch's is, and not for other.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t{64}); }
  friend bool operator==(const Aligned&, const Aligned&) { return true; }
  friend bool operator!=(const Aligned&, const Aligned&) { return false; }
};
template <class T>
using Scratch = std::vector<T, Aligned<T>>;

// The second operand packed and the first by rows: keys, values and whatever a block of queries multiplies from the right are packed here.
template <class E>
class Packed {
 public:
  using Element = E;
  using T = Stored<E>;
  Packed(int64_t keys, int64_t head, int64_t width) : keys_(keys), columns_(filled(keys)), head_(head), width_(width), made_(kept()) {}

  // Queries at a time.
  static int64_t block(int64_t /*columns*/) { return 64; }
  static void release() { at::native::cpublas::brgemm_release(kVnni); }

  void start_forward(const T* k, const T* v) {
    kernels_.pack_transposed(k, width_, sized(made_.keys_t, columns_ * head_), head_, keys_, columns_);
    kernels_.pack(v, width_, sized(made_.values, columns_ * head_), keys_, head_, columns_);
  }
  // The gradients of k and v stand where they are said to after finish_backward.
  void start_backward(const T* k, const T* v, T* d_k, T* d_v) {
    d_k_ = d_k, d_v_ = d_v;
    kernels_.pack_transposed(k, width_, sized(made_.keys_t, columns_ * head_), head_, keys_, columns_);
    kernels_.pack_transposed(v, width_, sized(made_.values_t, columns_ * head_), head_, keys_, columns_);
    kernels_.pack(k, width_, sized(made_.keys, columns_ * head_), keys_, head_, columns_);
    made_.d_k.assign(columns_ * head_, 0.0f), made_.d_v.assign(columns_ * head_, 0.0f);
  }
  // Q K^T of some rows, and dO V^T.
  void scores(int64_t rows, const T* q, float* out) { product(rows, columns_, head_, width_, q, made_.keys_t.data(), out, false); }
  void d_probabilities(int64_t rows, const T* d_out, float* out) {
    product(rows, columns_, head_, width_, d_out, made_.values_t.data(), out, false);
  }
  // P V, and dS K.
  void output(int64_t rows, const T* p, T* out) { to_rows(rows, p, made_.values, out); }
  void d_queries(int64_t rows, const T* d_s, T* out) { to_rows(rows, d_s, made_.keys, out); }
  // dV += P^T dO and dK += dS^T Q; p and d_s get rows of zeros up to the multiple.
  void add_to_gradients(int64_t rows, T* p, T* d_s, const T* q, const T* d_out) {
    add_product(rows, p, d_out, made_.d_v);
    add_product(rows, d_s, q, made_.d_k);
  }
  void finish_backward() {
    kernels_.from_float(made_.d_k.data(), head_, d_k_, width_, keys_, head_);
    kernels_.from_float(made_.d_v.data(), head_, d_v_, width_, keys_, head_);
  }

 private:
  static constexpr bool kVnni = !std::is_same_v<T, float>;
  struct Made {
    Scratch<T> keys, keys_t, values, values_t, turned, right;
    Scratch<float> d_k, d_v, result;
  };
  static Made& kept() {
    thread_local Made made;
    return made;
  }
  template <class V>
  static auto* sized(V& scratch, int64_t count) {
    scratch.resize(count);
    return scratch.data();
  }

  // C [rows x n] = A [rows x inner] B [inner x n] with B packed; lda is A's stride.
  static void product(int64_t rows, int64_t n, int64_t inner, int64_t lda, const T* a, const T* b, float* c, bool add) {
    at::native::cpublas::brgemm(rows, n, inner, lda, n, n, add, reinterpret_cast<const Element*>(a), reinterpret_cast<const Element*>(b), c, kVnni);
  }
  void to_rows(int64_t rows, const T* left, const Scratch<T>& right, T* out) {
    float* result = sized(made_.result, rows * head_);
    product(rows, head_, columns_, columns_, left, right.data(), result, false);
    kernels_.from_float(result, head_, out, width_, rows, head_);
  }
  void add_product(int64_t rows, T* left, const T* right, Scratch<float>& sum) {
    const int64_t rows_filled = filled(rows);
    std::fill(left + rows * columns_, left + rows_filled * columns_, T{});
    T *turned = sized(made_.turned, rows_filled * columns_), *packed = sized(made_.right, rows_filled * head_);
    kernels_.transpose(left, turned, rows_filled, columns_);
    kernels_.pack(right, width_, packed, rows, head_, rows_filled);
    product(columns_, head_, rows_filled, rows_filled, turned, packed, sum.data(), true);
  }

  int64_t keys_, columns_, head_, width_;
  T *d_k_ = nullptr, *d_v_ = nullptr;
  Made& made_;
  const KernelTable<T>& kernels_ = table<E>();
};

// Every operand where it stands, in fp32: BLAS takes strides and transposes, and packs for itself.
class Strided {
 public:
  using Element = float;
  using T = float;
  Strided(int64_t keys, int64_t head, int64_t width) : keys_(keys), columns_(filled(keys)), head_(head), width_(width) {}

  // As many as the cache holds beside the keys: scores of 128 KiB, of a long sequence of 64 queries.
  static int64_t block(int64_t columns) { return std::clamp<int64_t>(32768 / columns / kMultiple * kMultiple, 64, 512); }
  static void release() {}

  void start_forward(const float* k, const float* v) { k_ = k, v_ = v; }
  void start_backward(const float* k, const float* v, float* d_k, float* d_v) {
    start_forward(k, v);
    d_k_ = d_k, d_v_ = d_v;
    for (float* d : {d_k, d_v})
      for (int64_t row = 0; row < keys_; row++) std::fill_n(d + row * width_, head_, 0.0f);
  }
  void scores(int64_t rows, const float* q, float* out) { product({q, width_}, {k_, width_, true}, rows, keys_, head_, {out, columns_}); }
  void d_probabilities(int64_t rows, const float* d_out, float* out) {
    product({d_out, width_}, {v_, width_, true}, rows, keys_, head_, {out, columns_});
  }
  void output(int64_t rows, const float* p, float* out) { product({p, columns_}, {v_, width_}, rows, head_, keys_, {out, width_}); }
  void d_queries(int64_t rows, const float* d_s, float* out) { product({d_s, columns_}, {k_, width_}, rows, head_, keys_, {out, width_}); }
  void add_to_gradients(int64_t rows, const float* p, const float* d_s, const float* q, const float* d_out) {
    product({p, columns_, true}, {d_out, width_}, keys_, head_, rows, {d_v_, width_}, true);
    product({d_s, columns_, true}, {q, width_}, keys_, head_, rows, {d_k_, width_}, true);
  }
  void finish_backward() {}

 private:
  struct Matrix {
    const float* first;
    int64_t stride;
    bool is_turned = false;
  };
  struct Result {
    float* first;
    int64_t stride;
  };

  // C [rows x columns] = A [rows x inner] B [inner x columns]. BLAS counts by columns: C^T = B^T A^T.
  static void product(const Matrix& a, const Matrix& b, int64_t rows, int64_t columns, int64_t inner, const Result& c, bool add = false) {
    const int m = static_cast<int>(columns), n = static_cast<int>(rows), k = static_cast<int>(inner);
    const int lda = static_cast<int>(a.stride), ldb = static_cast<int>(b.stride), ldc = static_cast<int>(c.stride);
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    sgemm_(b.is_turned ? "T" : "N", a.is_turned ? "T" : "N", &m, &n, &k, &one, b.first, &ldb, a.first, &lda, &beta, c.first, &ldc);
  }

  int64_t keys_, columns_, head_, width_;
  const float *k_ = nullptr, *v_ = nullptr;
  float *d_k_ = nullptr, *d_v_ = nullptr;
};

}  // namespace linformer
