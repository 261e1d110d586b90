"""Reads and writes checkpoints with the standard library alone: name -> (dtype, shape, little-endian bytes)."""
import collections
import io
import json
import pickle
import struct
import zipfile


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], data[8 + size + begin:8 + size + end])
    return tensors


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def converted(tensors, dtype):
    """bfloat16 tensors as F32 or F16."""
    out = {}
    for name, (_, shape, data) in tensors.items():
        wide = bytearray(2 * len(data))  # a bfloat16 is the upper half of a float32
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        if dtype == "F16":
            values = memoryview(bytes(wide)).cast("f")
            wide = struct.pack(f"<{len(values)}e", *values)
        out[name] = (dtype, shape, bytes(wide))
    return out


def read_torch_bf16(path):
    """A file of torch.save with nested dictionaries of contiguous bfloat16 tensors, their keys joined by dots."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]

        class Reader(pickle.Unpickler):
            def persistent_load(self, key):
                return archive.read(f"{root}/data/{key[2]}")

            def find_class(self, module, name):
                if name == "_rebuild_tensor_v2":
                    return lambda data, offset, size, *rest: (data, offset, list(size))
                return collections.OrderedDict if name == "OrderedDict" else str

        tensors = {}

        def walk(value, name):
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(inner, f"{name}.{key}" if name else key)
            else:
                data, offset, shape = value
                count = 1
                for side in shape:
                    count *= side
                tensors[name] = ("BF16", shape, data[2 * offset:2 * (offset + count)])

        walk(Reader(io.BytesIO(archive.read(f"{root}/data.pkl"))).load(), "")
        return tensors
