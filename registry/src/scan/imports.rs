//! What a pickle may name: a list of what checkpoints need, and words for what is known to be an attack. It judges names, not uses.
//!
//! Invariant: what is not on the list is not safe; the words for attacks only make the finding clearer.

/// What a name in a pickle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Import {
    /// Rebuilds data and nothing else.
    Listed,
    /// Not on the list.
    Unknown,
    /// Runs programs or code, opens files or connections.
    Dangerous,
}

/// Modules with the names in them that rebuild data. The second of the pair is separated by spaces.
const LISTED: [(&str, &str); 19] = [
    ("collections", "OrderedDict defaultdict Counter deque"),
    ("builtins", "set frozenset bytearray bytes list dict tuple int float complex bool str slice range object"),
    ("_codecs", "encode"),
    ("copyreg", "_reconstructor"),
    ("datetime", "datetime date time timedelta timezone"),
    ("decimal", "Decimal"),
    (
        "numpy",
        "ndarray dtype bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 \
         longlong str_ bytes_",
    ),
    ("numpy.core.multiarray", "_reconstruct scalar"),
    ("numpy._core.multiarray", "_reconstruct scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    (
        "torch",
        "Size device Tensor dtype FloatStorage HalfStorage BFloat16Storage DoubleStorage LongStorage IntStorage ShortStorage \
         CharStorage ByteStorage BoolStorage ComplexFloatStorage ComplexDoubleStorage QUInt8Storage QInt8Storage QInt32Storage \
         float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool complex64 complex128 half float double long int \
         float8_e4m3fn float8_e5m2 uint16 uint32 uint64 quint8 qint8 qint32 strided sparse_coo per_tensor_affine \
         per_channel_affine",
    ),
    (
        "torch._utils",
        "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state \
         _rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage _rebuild_nested_tensor \
         _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor",
    ),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter Buffer"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage TypedStorage"),
    ("torch.torch_version", "TorchVersion"),
    ("sklearn.utils._bunch", "Bunch"),
];

/// Modules in which any name is an attack, with all that they hold.
const DANGEROUS: [&str; 60] = [
    "os",
    "posix",
    "nt",
    "ntpath",
    "posixpath",
    "sys",
    "subprocess",
    "_posixsubprocess",
    "pty",
    "shutil",
    "socket",
    "_socket",
    "ssl",
    "http",
    "urllib",
    "ftplib",
    "smtplib",
    "requests",
    "aiohttp",
    "httpx",
    "webbrowser",
    "ctypes",
    "_ctypes",
    "cffi",
    "importlib",
    "imp",
    "runpy",
    "pkgutil",
    "zipimport",
    "code",
    "codeop",
    "types",
    "marshal",
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "bdb",
    "pdb",
    "cProfile",
    "profile",
    "timeit",
    "trace",
    "doctest",
    "operator",
    "_operator",
    "functools",
    "asyncio",
    "multiprocessing",
    "threading",
    "_thread",
    "signal",
    "tempfile",
    "pathlib",
    "pip",
    "distutils",
    "commands",
];

/// Names that run or open something, wherever they come from.
const DANGEROUS_NAMES: [&str; 22] = [
    "eval",
    "exec",
    "execfile",
    "compile",
    "open",
    "getattr",
    "setattr",
    "delattr",
    "__import__",
    "globals",
    "locals",
    "vars",
    "apply",
    "breakpoint",
    "input",
    "system",
    "popen",
    "load",
    "loads",
    "import_module",
    "run_path",
    "memoryview",
];

/// What a pickle's global is.
pub(super) fn judge(module: &str, name: &str) -> Import {
    // Pickles of Python 2.
    let module = match module {
        "__builtin__" => "builtins",
        "copy_reg" => "copyreg",
        module => module,
    };
    if LISTED.iter().any(|(listed, names)| *listed == module && names.split_whitespace().any(|listed| listed == name)) {
        return Import::Listed;
    }
    let outermost = module.split('.').next().unwrap_or(module);
    let is_dangerous = DANGEROUS.contains(&outermost)
        || name.split('.').any(|part| DANGEROUS_NAMES.contains(&part) || DANGEROUS.contains(&part))
        || module == "torch.hub";
    if is_dangerous { Import::Dangerous } else { Import::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_exact_and_attacks_are_called_so() {
        for (module, name, import) in [
            ("torch._utils", "_rebuild_tensor_v2", Import::Listed),
            ("__builtin__", "set", Import::Listed),
            ("torch", "hub.os.system", Import::Dangerous),
            ("torch", "load", Import::Dangerous),
            ("builtins", "eval", Import::Dangerous),
            ("__builtin__", "getattr", Import::Dangerous),
            ("os.path", "join", Import::Dangerous),
            ("posix", "system", Import::Dangerous),
            ("numpy.testing._private.utils", "runstring", Import::Unknown),
            ("my.model", "Net", Import::Unknown),
            ("collections", "OrderedDict.fromkeys", Import::Unknown),
            ("", "", Import::Unknown),
        ] {
            assert_eq!(judge(module, name), import, "{module} {name}");
        }
    }
}
