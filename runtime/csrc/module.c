/* The Python face of the kernels: edgeid.runtime._native, for the stable ABI of Python 3.11. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "program.h"

typedef struct {
    PyObject_HEAD
    Pool *pool;
} PoolObject;

typedef struct {
    PyObject_HEAD
    Program *program;
} ProgramObject;

typedef struct {
    PyTypeObject *pool, *program;
} State;

static void release(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc deallocate = (freefunc)PyType_GetSlot(type, Py_tp_free);
    deallocate(self);
    Py_DECREF(type);
}

static PyObject *object_new(PyTypeObject *type) {
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

/* ---- Pool(threads) ---- */

static PyObject *pool_make(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"threads", NULL};
    int threads;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "i", names, &threads))
        return NULL;
    if (threads < 1 || threads > 256)
        return PyErr_Format(PyExc_ValueError, "threads must be 1..256, not %d", threads);
    PoolObject *self = (PoolObject *)object_new(type);
    if (self && !(self->pool = pool_new(threads))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void pool_drop(PyObject *self) {
    Pool *pool = ((PoolObject *)self)->pool;
    Py_BEGIN_ALLOW_THREADS
    pool_free(pool);
    Py_END_ALLOW_THREADS
    release(self);
}

static PyType_Slot pool_slots[] = {
    {Py_tp_new, (void *)pool_make},
    {Py_tp_dealloc, (void *)pool_drop},
    {Py_tp_doc, "Pool(threads): threads that wait for work."},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    "edgeid.runtime._native.Pool", sizeof(PoolObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, pool_slots};

/* ---- Program(records, slots, blob, input, output, result, isa) ---- */

static int bytes_are(const Py_buffer *buffer, Py_ssize_t unit, const char *what) {
    if (buffer->len % unit == 0 && (uintptr_t)buffer->buf % 8 == 0)
        return 1;
    PyErr_Format(PyExc_ValueError, "%s must be whole and aligned", what);
    return 0;
}

static PyObject *program_make(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"records", "slots", "blob", "input", "output", "result", "isa", NULL};
    Py_buffer records, slots, blob;
    long long input, output, result;
    const char *isa;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "y*y*y*LLLz", names, &records, &slots,
                                     &blob, &input, &output, &result, &isa))
        return NULL;
    ProgramObject *self = NULL;
    char problem[160] = "";
    const Kernels *kernels = kernels_for(isa);
    if (!kernels)
        PyErr_Format(PyExc_ValueError, "this machine has no instruction set '%s'", isa);
    else if (bytes_are(&records, FIELDS * 8, "records") && bytes_are(&slots, 16, "slots") &&
             bytes_are(&blob, 1, "blob") && (self = (ProgramObject *)object_new(type))) {
        Program *program;
        Py_BEGIN_ALLOW_THREADS
        program = program_new(records.buf, records.len / (FIELDS * 8), slots.buf, slots.len / 16,
                              blob.buf, blob.len, input, output, result, kernels, problem);
        Py_END_ALLOW_THREADS
        self->program = program;
        if (!program) {
            PyErr_SetString(PyExc_ValueError, problem);
            Py_CLEAR(self);
        }
    }
    PyBuffer_Release(&records);
    PyBuffer_Release(&slots);
    PyBuffer_Release(&blob);
    return (PyObject *)self;
}

static void program_drop(PyObject *self) {
    program_free(((ProgramObject *)self)->program);
    release(self);
}

/* the images of a call, or -1 with an error set */
static int64_t images_of(const Program *program, const Py_buffer *input,
                         const Py_buffer *output) {
    int64_t each_in = program_input(program) * 4, each_out = program_output(program) * 4;
    int64_t images = input->len / each_in;
    if (input->len % each_in || output->len != images * each_out ||
        (uintptr_t)input->buf % 4 || (uintptr_t)output->buf % 4) {
        PyErr_Format(PyExc_ValueError, "takes float32 arrays (N, %lld) and (N, %lld)",
                     (long long)program_input(program), (long long)program_output(program));
        return -1;
    }
    return images;
}

/* the two arrays of a call; 0 with an error set where they do not fit */
static int call_of(ProgramObject *object, const Py_buffer *input, const Py_buffer *output,
                   Call *call) {
    int64_t images = images_of(object->program, input, output);
    *call = (Call){object->program, input->buf, output->buf, images};
    return images >= 0;
}

static int run_released(Pool *pool, const Call *calls, int32_t count, double *seconds) {
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = programs_run(pool, calls, count, seconds);
    Py_END_ALLOW_THREADS
    if (failed)
        PyErr_NoMemory();
    return !failed;
}

static PyObject *program_profile(PyObject *object, PyObject *arguments) {
    ProgramObject *self = (ProgramObject *)object;
    PyObject *pool_object, *done = NULL;
    Py_buffer input, output, seconds;
    if (!PyArg_ParseTuple(arguments, "Oy*w*w*", &pool_object, &input, &output, &seconds))
        return NULL;
    State *state = PyType_GetModuleState(Py_TYPE(object));
    Call call;
    if (!state || !PyObject_TypeCheck(pool_object, state->pool))
        PyErr_SetString(PyExc_TypeError, "the first argument must be a Pool");
    else if (seconds.len != program_steps(self->program) * 8 || (uintptr_t)seconds.buf % 8)
        PyErr_SetString(PyExc_ValueError, "takes a float64 for every step");
    else if (call_of(self, &input, &output, &call) &&
             run_released(((PoolObject *)pool_object)->pool, &call, 1, seconds.buf))
        done = Py_NewRef(Py_None);
    PyBuffer_Release(&input);
    PyBuffer_Release(&output);
    PyBuffer_Release(&seconds);
    return done;
}

static PyObject *program_bytes_get(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(program_bytes(((ProgramObject *)self)->program));
}

static PyMethodDef program_methods[] = {
    {"profile", program_profile, METH_VARARGS,
     "profile(pool, input, output, seconds): compute images, adding the time of every step."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef program_getset[] = {
    {"bytes", program_bytes_get, NULL, "weights, activations and scratch of one image", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot program_slots[] = {
    {Py_tp_new, (void *)program_make},
    {Py_tp_dealloc, (void *)program_drop},
    {Py_tp_methods, program_methods},
    {Py_tp_getset, program_getset},
    {Py_tp_doc, "Program(records, slots, blob, input, output, result, isa)"},
    {0, NULL},
};

static PyType_Spec program_spec = {
    "edgeid.runtime._native.Program", sizeof(ProgramObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, program_slots};

/* ---- the module ---- */

static PyObject *levels(PyObject *module, PyObject *nothing) {
    (void)module, (void)nothing;
    const char *names[MOST_LEVELS];
    int32_t count = kernel_levels(names);
    PyObject *tuple = PyTuple_New(count);
    for (int32_t i = 0; tuple && i < count; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyTuple_SetItem(tuple, i, name))
            Py_CLEAR(tuple);
    }
    return tuple;
}

static int module_fill(PyObject *module) {
    State *state = PyModule_GetState(module);
    state->pool = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pool_spec, NULL);
    if (!state->pool || PyModule_AddType(module, state->pool))
        return -1;
    state->program = (PyTypeObject *)PyType_FromModuleAndSpec(module, &program_spec, NULL);
    if (!state->program || PyModule_AddType(module, state->program))
        return -1;
    return PyModule_AddIntConstant(module, "FIELDS", FIELDS);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = PyModule_GetState(module);
    Py_VISIT(state->pool);
    Py_VISIT(state->program);
    return 0;
}

static int module_clear(PyObject *module) {
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->pool);
    Py_CLEAR(state->program);
    return 0;
}

/* run(pool, program, input, output, ...): up to MOST_TOGETHER programs side by side */
static PyObject *run(PyObject *module, PyObject *arguments) {
    State *state = PyModule_GetState(module);
    Py_ssize_t count = (PyTuple_Size(arguments) - 1) / 3;
    if (PyTuple_Size(arguments) != 1 + 3 * count || count < 1 || count > MOST_TOGETHER)
        return PyErr_Format(PyExc_TypeError, "run(pool, program, input, output, ...), 1 to %d",
                            MOST_TOGETHER);
    PyObject *pool_object = PyTuple_GetItem(arguments, 0), *done = NULL;
    Py_buffer buffers[2 * MOST_TOGETHER];
    Call calls[MOST_TOGETHER];
    int32_t held = 0, good = 1;
    if (!PyObject_TypeCheck(pool_object, state->pool)) {
        PyErr_SetString(PyExc_TypeError, "the first argument must be a Pool");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count && good; i++) {
        PyObject *program = PyTuple_GetItem(arguments, 1 + 3 * i);
        PyObject *input = PyTuple_GetItem(arguments, 2 + 3 * i);
        PyObject *output = PyTuple_GetItem(arguments, 3 + 3 * i);
        good = PyObject_TypeCheck(program, state->program);
        if (!good) {
            PyErr_SetString(PyExc_TypeError, "takes programs, each with its input and output");
            break;
        }
        good = !PyObject_GetBuffer(input, &buffers[held], PyBUF_C_CONTIGUOUS);
        held += good;
        if (good) {
            good = !PyObject_GetBuffer(output, &buffers[held], PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE);
            held += good;
        }
        good = good && call_of((ProgramObject *)program, &buffers[held - 2], &buffers[held - 1],
                               &calls[i]);
    }
    if (good && run_released(((PoolObject *)pool_object)->pool, calls, (int32_t)count, NULL))
        done = Py_NewRef(Py_None);
    while (held > 0)
        PyBuffer_Release(&buffers[--held]);
    return done;
}

static PyMethodDef module_methods[] = {
    {"run", run, METH_VARARGS,
     "run(pool, program, input, output, ...): compute images by programs side by side."},
    {"levels", levels, METH_NOARGS, "Instruction sets of this machine, best last."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_fill},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "Kernels of the native engine.", sizeof(State),
    module_methods, module_slots, module_traverse, module_clear, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module); }
