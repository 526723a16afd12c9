// Forward and backward of a normalization as one node of torch's graph, without Python between its pieces. A thin layer
// that looks at tensors and calls the functions of kernels.c by address; see extension.py. Whatever it does not take
// (None is returned), and every second derivative, is left to norm.backends.

#include "tensors.cpp"
#include <ATen/Parallel.h>
#include <dlfcn.h>

namespace syncnorm {

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

static const Kernels *kernels_of(const Tensor &x) {
    switch (x.scalar_type()) {
    case at::kFloat: return &of_float;
    case at::kDouble: return &of_double;
    case at::kBFloat16: return &of_bfloat16;
    default: return nullptr;
    }
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
