// A device for tests, "pretend": its memory is the host's, its operations are the CPU's, and a
// tensor of it beside one of the CPU is an error, as on a GPU. What reads it back is counted.
//
// torch has a key for devices from outside, PrivateUse1, to which everything here is registered;
// the rest of a device (guard, hooks, random states) is made in Python by accelerator.py.

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <torch/extension.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::DeviceType;

const c10::Device kPretend(DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet kPretendKey(c10::DispatchKey::PrivateUse1);

// Called with "item" or "copy" when the host waits for the device. Never freed: Python is gone
// then.
py::function* on_read = nullptr;

void report_read(const char* what) {
  if (on_read != nullptr) {
    py::gil_scoped_acquire gil;
    (*on_read)(what);
  }
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : std::malloc(bytes);
    if (data != nullptr) {
      std::memset(data, 0xFF, bytes);  // NaN: what is never written shows
    }
    return {data, data, &std::free, kPretend};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Allocator allocator;

bool is_pretend(const Tensor& tensor) { return tensor.device().type() == DeviceType::PrivateUse1; }

// A tensor on `device` over the memory of another, which it keeps.
Tensor over_memory_of(const Tensor& tensor, c10::Device device, c10::DispatchKeySet key,
                      c10::Allocator* owner) {
  auto* kept = new Tensor(tensor);
  c10::DataPtr data(
      tensor.storage().mutable_data(), kept,
      [](void* pointer) { delete static_cast<Tensor*>(pointer); }, device);
  c10::Storage storage(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(data),
                       owner, /*resizable=*/true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), key, tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                    tensor.storage_offset());
  return made;
}

Tensor on_cpu(const Tensor& tensor) {
  return over_memory_of(tensor, c10::kCPU, c10::DispatchKeySet(c10::DispatchKey::CPU),
                        c10::GetAllocator(c10::kCPU));
}

Tensor on_pretend(const Tensor& tensor) {
  return over_memory_of(tensor, kPretend, kPretendKey, &allocator);
}

// The arguments of one call on the CPU, and the way back.
class Call {
 public:
  explicit Call(std::string name) : name_(std::move(name)) {}

  Tensor enter(const Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    if (!is_pretend(tensor)) {
      // GPUs take numbers, and positions, from the host.
      const bool allowed = tensor.dim() == 0 || name_.rfind("aten::index", 0) == 0;
      TORCH_CHECK(allowed, "a tensor of the CPU beside one of the pretend device in ", name_);
      return tensor;
    }
    for (const auto& [outer, inner] : entered_) {
      if (outer.is_same(tensor)) {
        return inner;
      }
    }
    entered_.emplace_back(tensor, on_cpu(tensor));
    return entered_.back().second;
  }

  Tensor leave(const Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    for (const auto& [outer, inner] : entered_) {
      if (inner.is_same(tensor)) {
        return outer;
      }
    }
    return tensor.device().is_cpu() ? on_pretend(tensor) : tensor;
  }

  // out= arguments may have been given other sizes and memory.
  void update_resized() {
    for (const auto& [outer, inner] : entered_) {
      if (outer.sizes() == inner.sizes() && outer.data_ptr() == inner.data_ptr()) {
        continue;
      }
      auto* tensor = outer.unsafeGetTensorImpl();
      tensor->set_storage_keep_dtype(on_pretend(inner).storage());
      tensor->set_sizes_and_strides(inner.sizes(), inner.strides(), inner.storage_offset());
    }
  }

 private:
  std::string name_;
  std::vector<std::pair<Tensor, Tensor>> entered_;  // on the device, on the CPU
};

// Every tensor of a value by way of `change`.
template <typename Change>
void for_tensors(c10::IValue& value, Change change) {
  if (value.isTensor()) {
    value = change(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> changed;
    for (const Tensor& tensor : value.toTensorVector()) {
      changed.push_back(change(tensor));
    }
    value = changed;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      changed.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    }
    value = changed;
  }
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call(schema.operator_name().name);
  for (auto i = stack->size() - schema.arguments().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    for_tensors(value, [&](const Tensor& tensor) { return call.enter(tensor); });
    if (value.isDevice() && value.toDevice() == kPretend) {
      value = c10::Device(c10::kCPU);
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.update_resized();
  for (auto i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    for_tensors((*stack)[i], [&](const Tensor& tensor) { return call.leave(tensor); });
  }
}

c10::ScalarType type_of(std::optional<c10::ScalarType> dtype) {
  return dtype.value_or(c10::typeMetaToScalarType(c10::get_default_dtype()));
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
             std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>,
             std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, kPretendKey, type_of(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                     std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                     std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, kPretendKey, type_of(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool /*non_blocking*/) {
  if (is_pretend(from) && !is_pretend(to)) {
    report_read("copy");
  }
  (is_pretend(to) ? on_cpu(to) : to).copy_(is_pretend(from) ? on_cpu(from) : from);
  return to;
}

c10::Scalar item(const Tensor& tensor) {
  report_read("item");
  return on_cpu(tensor).item();
}

const Tensor& resize(const Tensor& tensor, c10::SymIntArrayRef size,
                     std::optional<c10::MemoryFormat>) {
  auto* resized = tensor.unsafeGetTensorImpl();
  resized->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t bytes = (resized->numel() + resized->storage_offset()) * tensor.element_size();
  const auto& storage = tensor.storage();
  if (storage.nbytes() < bytes) {
    auto data = allocator.allocate(bytes);
    if (storage.nbytes() > 0) {
      std::memcpy(data.get(), storage.data(), storage.nbytes());
    }
    storage.set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
  return tensor;
}

Tensor& set_storage(Tensor& tensor, c10::Storage storage, int64_t offset, c10::IntArrayRef size,
                    c10::IntArrayRef stride) {
  auto* changed = tensor.unsafeGetTensorImpl();
  changed->set_storage_keep_dtype(std::move(storage));
  changed->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

Tensor& set_whole_storage(Tensor& tensor, c10::Storage storage) {
  const auto size = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
  return set_storage(tensor, std::move(storage), 0, {size}, {1});
}

Tensor& set_tensor(Tensor& tensor, const Tensor& from) {
  return set_storage(tensor, from.storage(), from.storage_offset(), from.sizes(), from.strides());
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("_copy_from", copy_from);
  library.impl("_local_scalar_dense", item);
  library.impl("resize_", resize);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("set_.source_Storage", set_whole_storage);
  library.impl("set_.source_Tensor", set_tensor);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  c10::SetAllocator(DeviceType::PrivateUse1, &allocator);
  module.def(
      "on_read", [](const py::function& call) { on_read = new py::function(call); },
      "call(what) from now on, whenever the host reads the device");
}
