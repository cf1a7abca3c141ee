"""ONNX models written byte by byte, without a library of that format (onnx.proto's field numbers)."""

from collections.abc import Sequence

_FLOAT, _INT, _INTS = 1, 2, 7


def model(opset: int, nodes: Sequence[bytes], tensors: Sequence[bytes], taken: bytes, given: bytes) -> bytes:
    """A ModelProto whose graph has these nodes, initial tensors, one input and one output."""
    parts = [bytes_field(1, node) for node in nodes] + [bytes_field(2, b"graph")]
    parts += [bytes_field(5, each) for each in tensors] + [bytes_field(11, taken), bytes_field(12, given)]
    return number_field(1, 8) + bytes_field(8, bytes_field(1, b"") + number_field(2, opset)) + bytes_field(
        7, b"".join(parts)
    )  # fmt: skip


def node(kind: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    """A NodeProto."""
    named = b"".join(bytes_field(1, name.encode()) for name in inputs)
    settings = b"".join(bytes_field(5, attribute) for attribute in attributes)
    return named + bytes_field(2, output.encode()) + bytes_field(4, kind.encode()) + settings


def attribute(name: str, ints: Sequence[int] = (), number: int | None = None) -> bytes:
    """An AttributeProto of whole numbers, or of one."""
    values = b"".join(number_field(8, value) for value in ints) if number is None else number_field(3, number)
    return bytes_field(1, name.encode()) + values + number_field(20, _INTS if number is None else _INT)


def value(name: str, *shape: int | str) -> bytes:
    """A ValueInfoProto of float32; a name stands for any size."""
    sizes = (number_field(1, size) if isinstance(size, int) else bytes_field(2, size.encode()) for size in shape)
    tensor = number_field(1, _FLOAT) + bytes_field(2, b"".join(bytes_field(1, size) for size in sizes))
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, tensor))


def tensor_head(name: str, *shape: int) -> bytes:
    """The beginning of a TensorProto of float32, without its data."""
    return b"".join(number_field(1, size) for size in shape) + number_field(2, _FLOAT) + bytes_field(8, name.encode())


def number_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def bytes_field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])
