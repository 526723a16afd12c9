// Group normalization of channels_last tensors, included by node.cpp. See norm/backends/by_sample/cpu_rows.py, which does
// the same from Python.

static int threads_for(const Tensor &x) { return x.numel() > 32768 ? at::get_num_threads() : 1; }

struct GroupCall {
    int64_t num_groups;
    double eps;
};

struct GroupNorm : Function<GroupNorm> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, MaybeTensor weight, MaybeTensor bias, GroupCall call) {
        at::AutoDispatchBelowADInplaceOrView below;
        int64_t N = x.size(0), C = x.size(1);
        Tensor w = readable(weight, affine_type(x)), b = readable(bias, affine_type(x));
        Tensor y = at::empty_like(x);
        Tensor statistics = at::empty({N, 2, call.num_groups}, at::kDouble);
        {
            WithoutPython lockless;
            kernels_of(x)->group_forward(x.data_ptr(), y.data_ptr(), N, C, x.numel() / (N * C), call.num_groups,
                                         threads_for(x), call.eps, address(w), address(b), x.scalar_type() == at::kDouble,
                                         statistics.data_ptr<double>());
        }
        ctx->save_for_backward({x, weight.value_or(Tensor()), bias.value_or(Tensor()), statistics});
        ctx->saved_data["num_groups"] = call.num_groups;
        ctx->saved_data["eps"] = call.eps;
        return y;
    }

    static variable_list backward(AutogradContext *ctx, variable_list gradients) {
        variable_list saved = ctx->get_saved_variables();
        const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &statistics = saved[3], &dy = gradients[0];
        Needed needed(ctx, weight, bias);
        bool is_ours = !at::GradMode::is_enabled() && is_plain(x) && is_plain(dy) && is_by_rows(x);
        if (!is_ours) return differentiable(ctx, saved, dy, needed);
        at::AutoDispatchBelowADInplaceOrView below;
        int64_t N = x.size(0), C = x.size(1);
        Tensor w = readable(weight, affine_type(x)), given = in_format(dy, by_rows_format(x), x.scalar_type());
        Tensor dx = at::empty_like(x), by_weight = at::empty({C}, affine_type(x)), by_bias = at::empty_like(by_weight);
        kernels_of(x)->group_backward(x.data_ptr(), given.data_ptr(), dx.data_ptr(), N, C, x.numel() / (N * C),
                                      statistics.size(2), threads_for(x), statistics.data_ptr<double>(), address(w),
                                      x.scalar_type() == at::kDouble, by_weight.data_ptr(), by_bias.data_ptr());
        return {needed.x ? dx : Tensor(), needed.weight ? in_type_of(by_weight, weight) : Tensor(),
                needed.bias ? in_type_of(by_bias, bias) : Tensor(), Tensor()};
    }

    // Those of F.group_norm, with which create_graph and vmap work.
    static variable_list differentiable(AutogradContext *ctx, const variable_list &saved, const Tensor &dy, Needed needed) {
        WithPython python;
        Held function = function_of("syncnorm.norm.backends.by_sample.group_norm", "torch_gradients");
        require(function.object);
        return from_python(PyObject_CallFunction(
            function.object, "NNNLd", as_tuple(saved[0], saved[1], saved[2]), THPVariable_Wrap(dy), needed.as_tuple(),
            (long long)ctx->saved_data["num_groups"].toInt(), ctx->saved_data["eps"].toDouble()));
    }
};

static bool is_affine_of(const Tensor &x, const MaybeTensor &t) {
    if (!t) return true;
    bool is_wider = t->scalar_type() == at::kFloat && x.scalar_type() == at::kBFloat16;
    return (is_wider || t->scalar_type() == x.scalar_type()) && t->dim() == 1 && t->size(0) == x.size(1);
}

// group_norm(x, num_groups, weight, bias, eps) -> the output, or None where the kernels do not take these tensors
static PyObject *group_norm(PyObject *, PyObject *const *arguments, Py_ssize_t) {
    HANDLE_TH_ERRORS
    MaybeTensor x, weight, bias;
    if (!unpack(arguments[0], x) || !unpack(arguments[2], weight) || !unpack(arguments[3], bias)) Py_RETURN_NONE;
    long num_groups = PyLong_AsLong(arguments[1]);
    double eps = PyFloat_AsDouble(arguments[4]);
    if (PyErr_Occurred()) throw python_error();
    if (!kernels_of(*x) || !is_by_rows(*x) || num_groups < 1 || x->size(1) % num_groups) Py_RETURN_NONE;
    if (!is_affine_of(*x, weight) || !is_affine_of(*x, bias)) Py_RETURN_NONE;
    if (weight && bias && weight->scalar_type() != bias->scalar_type()) Py_RETURN_NONE;
    return THPVariable_Wrap(GroupNorm::apply(*x, weight, bias, GroupCall{num_groups, eps}));
    END_HANDLE_TH_ERRORS
}
