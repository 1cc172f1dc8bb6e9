"""Writes the files that the tests of the scan read. Run it in its folder, with numpy installed; nothing here is ever loaded."""

import collections, io, os, pickle, sys, types, zipfile

import numpy

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "files")


def stub(module, *names):
    """A module with callables of these names, so that pickles name them as torch's do."""
    for parent in range(1, module.count(".") + 1):
        sys.modules.setdefault(".".join(module.split(".")[:parent]), types.ModuleType(module))
    made = sys.modules.setdefault(module, types.ModuleType(module))
    for name in names:
        function = types.FunctionType((lambda *a: a).__code__, {}, name)
        function.__module__, function.__qualname__ = module, name
        setattr(made, name, function)
    return made


class Calls:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Stored:
    """Stands for a tensor's bytes, which lie beside the pickle."""


class Torch(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", FLOATS, "0", "cpu", 4) if isinstance(value, Stored) else None


UTILS = stub("torch._utils", "_rebuild_tensor_v2")
FLOATS = stub("torch", "FloatStorage").FloatStorage
MINE = stub("my_model", "Net").Net


def state():
    tensor = Calls(UTILS._rebuild_tensor_v2, Stored(), 0, (2, 2), (2, 1), False, collections.OrderedDict())
    return collections.OrderedDict(weight=tensor)


def torch_pickle(value, protocol=2):
    out = io.BytesIO()
    Torch(out, protocol).dump(value)
    return out.getvalue()


def write(name, data):
    with open(os.path.join(OUT, name), "wb") as out:
        out.write(data)


def archive(entries, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


def torch_archive(data, compression=zipfile.ZIP_STORED):
    beside = [("archive/data/0", b"\x80\x02" + bytes(14)), ("archive/version", b"3\n"), ("archive/byteorder", b"little")]
    return archive([("archive/data.pkl", data), *beside], compression)


def numpy_file(array):
    out = io.BytesIO()
    numpy.save(out, array, allow_pickle=True)
    return out.getvalue()


system = Calls(os.system, "true")
evil = pickle.dumps({"weight": system}, 2)
write("torch.bin", torch_archive(torch_pickle(state())))
write("torch-evil.bin", torch_archive(torch_pickle(collections.OrderedDict(weight=system))))
write("torch-evil-packed.bin", torch_archive(evil, zipfile.ZIP_DEFLATED))
write("torch-own.pt", torch_archive(torch_pickle({"net": Calls(MINE), **state()})))
legacy = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
old = b"".join(pickle.dumps(part, 2) for part in legacy) + torch_pickle(state()) + pickle.dumps(["0"], 2)
write("torch-legacy.pth", old + b"\x80\x02cos\nsystem\n" + bytes(8))
for protocol in range(6):
    write(f"evil-{protocol}.pkl", pickle.dumps([1.5, {"a": system}], protocol))
    data = [1, -(1 << 70), 2.5, "text", b"bytes", None, True, {"k": (1, 2, 3)}, {1, 2}, collections.OrderedDict(a=1)]
    write(f"data-{protocol}.pkl", pickle.dumps(data, protocol))
write("evil-0.txt", pickle.dumps(system, 0))
write("evil-eval.bin", pickle.dumps(Calls(eval, "1"), 4))
write("hidden.safetensors", evil)
write("second.pkl", pickle.dumps([1], 4) + pickle.dumps(system, 4))
write("numbers.npy", numpy_file(numpy.arange(6).reshape(2, 3)))
write("objects.npy", numpy_file(numpy.array([{"a": 1}, None], dtype=object)))
write("evil.npy", numpy_file(numpy.array([system], dtype=object)))
write("evil.npz", archive([("x.npy", numpy_file(numpy.array([system], dtype=object)))], zipfile.ZIP_DEFLATED))
write("out.pt", archive([("../../etc/x", b"1"), ("archive/data.pkl", torch_pickle(state()))]))
write("two.pt", archive([("archive/data.pkl", torch_pickle(state())), ("archive/data.pkl", evil)]))
write("lambda.keras", archive([("config.json", b'{"layers": [{"class_name": "Lambda"}]}')]))
