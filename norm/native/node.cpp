// Forward and backward of a normalization as one node of torch's graph, without Python between its pieces. A thin layer
// that looks at tensors and calls the functions of kernels.c by address; see extension.py. Whatever it does not take
// (None is returned), and every second derivative, is left to norm.backends.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

namespace syncnorm {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

// The functions of kernels.c for one element type.
struct Kernels {
    void (*measure)(const void *, long, long, long, int, int, double *);
    void (*finish_forward)(const void *, void *, long, long, long, int, int, const double *, long, long, double *, double,
                           const void *, const void *, int, double, void *, void *, int, int64_t *, int64_t *);
    void (*gradient_sums)(const void *, const void *, long, long, long, int, int, const double *, double *);
    void (*finish_backward)(const void *, const void *, void *, long, long, long, int, int, const double *,
                            const double *, const double *, long, long, double *, double, const void *, int, void *,
                            void *);
    void (*group_forward)(const void *, void *, long, long, long, long, int, double, const void *, const void *, int,
                          double *);
    void (*group_backward)(const void *, const void *, void *, long, long, long, long, int, const double *, const void *,
                           int, void *, void *);
};

static Kernels of_float, of_double, of_bfloat16;
static c10::DispatchKeySet plain_keys; // of a dense tensor in the memory of the CPU that nothing wraps

// --- Python objects --------------------------------------------------------------------------------------------------

// Within it, this thread may use Python, whether it holds the interpreter's lock or not.
struct WithPython {
    PyGILState_STATE state = PyGILState_Ensure();
    ~WithPython() { PyGILState_Release(state); }
};

// Within it, other threads may use Python.
struct WithoutPython {
    PyThreadState *state = PyEval_SaveThread();
    ~WithoutPython() { PyEval_RestoreThread(state); }
};

// A reference to a Python object that may be let go by any thread.
struct Held {
    PyObject *object;
    explicit Held(PyObject *given) : object(given) {}
    Held(const Held &) = delete;
    Held &operator=(const Held &) = delete;
    ~Held() {
        if (!object || !Py_IsInitialized()) return;
        WithPython python;
        Py_DECREF(object);
    }
};

// Raises the Python exception that is set.
static void require(const void *result) {
    if (result) return;
    python_error error;
    error.persist();
    throw error;
}

static bool is_plain(const Tensor &t) { return t.key_set() == plain_keys; }

// What `object` holds, nothing for None; false for tensors that the kernels can't read.
static bool unpack(PyObject *object, MaybeTensor &out) {
    if (object == Py_None) return true;
    if (!THPVariable_CheckExact(object)) return false;
    out = THPVariable_Unpack(object);
    return is_plain(*out);
}

// --- tensors ---------------------------------------------------------------------------------------------------------

static const Kernels *kernels_of(const Tensor &x) {
    switch (x.scalar_type()) {
    case at::kFloat: return &of_float;
    case at::kDouble: return &of_double;
    case at::kBFloat16: return &of_bfloat16;
    default: return nullptr;
    }
}

// Of the weight and bias that the kernels read with x.
static at::ScalarType affine_type(const Tensor &x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// What the kernels read in the place of a weight or bias.
static Tensor readable(const MaybeTensor &t, at::ScalarType type) {
    if (!t || !t->defined()) return {};
    return t->scalar_type() == type && t->is_contiguous() ? *t : t->to(type).contiguous();
}

static void *address(const Tensor &t) { return t.defined() ? t.data_ptr() : nullptr; }

static at::MemoryFormat by_rows_format(const Tensor &x) {
    return x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

// Whether x is dense as rows and not as planes too: channels_last, with several channels and positions.
static bool is_by_rows(const Tensor &x) {
    return (x.dim() == 4 || x.dim() == 5) && !x.is_contiguous() && x.is_contiguous(by_rows_format(x));
}

static Tensor in_format(const Tensor &t, at::MemoryFormat format, at::ScalarType type) {
    Tensor dense = t.contiguous(format);
    return dense.scalar_type() == type ? dense : dense.to(type);
}

static Tensor in_type_of(const Tensor &gradient, const Tensor &t) {
    return gradient.scalar_type() == t.scalar_type() ? gradient : gradient.to(t.scalar_type());
}

// --- gradients -------------------------------------------------------------------------------------------------------

// Which of x, weight and bias need a gradient.
struct Needed {
    bool x, weight, bias;
    Needed(AutogradContext *ctx, const Tensor &w, const Tensor &b) {
        x = ctx->needs_input_grad(0);
        weight = w.defined() && ctx->needs_input_grad(1);
        bias = b.defined() && ctx->needs_input_grad(w.defined() ? 2 : 1);
    }
    PyObject *as_tuple() const { return Py_BuildValue("(iii)", x, weight, bias); }
};

// A function of norm.backends. Python must be usable.
static Held function_of(const char *module, const char *name) {
    Held found(PyImport_ImportModule(module));
    require(found.object);
    return Held(PyObject_GetAttrString(found.object, name));
}

// (x, weight, bias), as Python has them. Python must be usable.
static PyObject *as_tuple(const Tensor &x, const Tensor &weight, const Tensor &bias) {
    return Py_BuildValue("(NNN)", THPVariable_Wrap(x), THPVariable_Wrap(weight), THPVariable_Wrap(bias));
}

// The gradients (x, weight, bias) that a function in Python returned, each a tensor or None.
static variable_list from_python(PyObject *result) {
    require(result);
    Held found(PySequence_Fast(result, "gradients must be a sequence"));
    Py_DECREF(result);
    require(found.object);
    variable_list gradients(4);
    for (int i = 0; i < 3; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(found.object, i);
        if (item != Py_None) gradients[i] = THPVariable_Unpack(item);
    }
    return gradients;
}

#include "sample_node.cpp"
#include "sync_node.cpp"

// --- the module ------------------------------------------------------------------------------------------------------

template <typename F> static void find(void *library, const char *name, const char *type, F &function) {
    std::string symbol = std::string(name) + "_" + type;
    function = reinterpret_cast<F>(dlsym(library, symbol.c_str()));
    TORCH_CHECK(function, "the compiled kernels have no function ", symbol);
}

static void find_exchange(void *library) {
    exchange_row = reinterpret_cast<decltype(exchange_row)>(dlsym(library, "exchange_row"));
    arrived_rows = reinterpret_cast<decltype(arrived_rows)>(dlsym(library, "arrived_rows"));
    row_stride = reinterpret_cast<decltype(row_stride)>(dlsym(library, "row_stride"));
    TORCH_CHECK(exchange_row && arrived_rows && row_stride, "the compiled kernels have no exchange");
}

static void find_all(void *library, const char *type, Kernels &kernels) {
    find(library, "measure", type, kernels.measure);
    find(library, "finish_forward", type, kernels.finish_forward);
    find(library, "gradient_sums", type, kernels.gradient_sums);
    find(library, "finish_backward", type, kernels.finish_backward);
    find(library, "group_forward", type, kernels.group_forward);
    find(library, "group_backward", type, kernels.group_backward);
}

// bind(handle of the loaded kernels, address of the address of the clock of exchanges)
static PyObject *bind(PyObject *, PyObject *const *arguments, Py_ssize_t) {
    HANDLE_TH_ERRORS
    void *library = PyLong_AsVoidPtr(arguments[0]);
    if (PyErr_Occurred()) throw python_error();
    find_all(library, "f32", of_float);
    find_all(library, "f64", of_double);
    find_all(library, "bf16", of_bfloat16);
    find_exchange(library);
    clock_s = static_cast<double **>(PyLong_AsVoidPtr(arguments[1]));
    if (PyErr_Occurred()) throw python_error();
    plain_keys = at::empty({0}).key_set();
    Py_RETURN_NONE;
    END_HANDLE_TH_ERRORS
}

static PyMethodDef methods[] = {
    {"bind", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(bind)), METH_FASTCALL, nullptr},
    {"group_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(group_norm)), METH_FASTCALL, nullptr},
    {"batch_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batch_norm)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "syncnorm_node", nullptr, -1, methods};

} // namespace syncnorm

PyMODINIT_FUNC PyInit_syncnorm_node() { return PyModule_Create(&syncnorm::definition); }
