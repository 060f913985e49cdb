"""A thin recorder of ONNX graphs: an op is a method, a number is a constant, a weight is a name.

    g = Graph(weights)
    x = g.input("x", ("n", 64))
    with g.scope("mlp"):
        y = g.Gemm(x, g.weight("mlp.weight"), transB=1)
    g.output("y", y, ("n", 32))
    data = g.serialize(places)

Weights stay in their files: the graph knows their names, types and shapes, and who writes or runs it says where their
bytes are to be found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from diptych.errors import FileError
from diptych.graph.int8 import GROUP, PANEL, packed, packed_shape, quantised, shift
from diptych.graph.unfused import unfused

if TYPE_CHECKING:
    from diptych.weights import Tensor, Weights

OPSET = 21  # the first with DequantizeLinear by blocks
IR_VERSION = 10  # that of opset 21
Q8_0_BLOCK = 32  # weights to a scale
FLOATS = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}

Value = ir.Value
Operand = Value | int | float | bool | Sequence[int] | Sequence[float] | NDArray[Any] | None
Products = Literal["f32", "bf16", "f16", "int8"]
Kernel = Literal["linear", "attention"]
Place = tuple[str, int]  # file, as the ONNX file names it, and offset


@dataclass(frozen=True)
class Stored:
    """A weight that the graph reads: `element_type` is ONNX's number of its type, `read` gives its bytes as an array.

    `place` is the tensor whose bytes these are as they stand in its file, if they are.
    """

    name: str
    element_type: int
    shape: tuple[int, ...]
    n_bytes: int
    read: Callable[[], NDArray[Any]]
    tensor: Tensor | None = None


class Graph:
    """Records ops in order. `fixed` makes it static: an input of that name takes the shape, or becomes the array.

    Layers of a `portable` graph keep to ONNX's own ops, for any runtime and execution provider, and a static one is
    portable; in others they take ONNX Runtime's where those are faster, and of Diptych's own `kernels` those named.
    `unpack` makes quantised weights float32 once; ONNX Runtime would do so in every run, which takes 6 s at 675 million.
    `widen` makes all weights so, which it does itself with float16 when it loads, and takes 8 s for. `products` is the type
    linear layers keep their matrices in: `f32` takes them as they come, `int8` is with a scale for each row, and not for
    those whose names begin as one of `wide`.
    """

    def __init__(
        self,
        weights: Weights,
        fixed: Mapping[str, NDArray[Any] | tuple[int, ...]] | None = None,
        *,
        unpack: bool = False,
        widen: bool = False,
        portable: bool = False,
        kernels: frozenset[Kernel] = frozenset(),
        products: Products = "f32",
        wide: tuple[str, ...] = (),
    ) -> None:
        self.stored: dict[str, Stored] = {}
        self.static = fixed is not None
        self.portable = portable or self.static
        self.kernels = frozenset() if self.portable else kernels
        self._tensors = unfused(weights.tensors)
        self._unpack, self._widen = unpack or widen, widen
        self._products, self._wide = products, wide
        self._last: tuple[str, tuple[NDArray[np.int8], NDArray[np.float32]]] | None = None
        self._made: dict[Hashable, tuple[Value, ...]] = {}
        self._fixed = fixed or {}
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._top: list[ir.Node] = []
        self._nodes = self._top  # where ops go: a loop's body while one is recorded
        self._domains = {"": OPSET}
        self._initializers: dict[str, Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._float32: dict[str, Value] = {}
        self._matrices: dict[str, Value] = {}
        self._scopes: list[str] = []
        self._names: dict[str, int] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: type[np.generic] = np.float32) -> Value:
        """An input of the graph; in a static graph its fixed shape, or a constant that takes its place."""
        fixed = self._fixed.get(name)
        if isinstance(fixed, np.ndarray):
            return self.constant(fixed)
        value = _value(name, fixed or shape, dtype)
        self._inputs.append(value)
        return value

    def output(self, name: str, value: Value, shape: Sequence[int | str]) -> None:
        """Name a value as an output, of float32 if no other type was said (`shaped`)."""
        out = self.Identity(value)
        out.name, out.shape, out.type = name, ir.Shape(shape), value.type or ir.TensorType(ir.DataType.FLOAT)
        self._outputs.append(out)

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the file."""
        return self._tensor(name).shape

    def weight(self, name: str) -> Value:
        """A tensor of the file, as float32. It is kept in the type it has; other quantised types than q8_0 are unpacked.

        Raises FileError when the file has no such tensor.
        """
        if name not in self._float32:
            tensor = self._tensor(name)
            inside, self._nodes = self._nodes, self._top
            packed = tensor.type.name == "Q8_0" and not self._unpack
            self._float32[name] = self._dequantised(tensor) if packed else self._cast(tensor)
            self._nodes = inside
        return self._float32[name]

    def matrix(self, name: str) -> Value:
        """The weight (out, in) of a linear layer in the type of its products: bfloat16 or float16, else float32.

        Raises FileError when the file has no such tensor.
        """
        tensor = self._tensor(name)
        if self._products == "f32" or len(tensor.shape) != 2 or self._stays_wide(name):
            return self.weight(name)
        if name not in self._matrices:
            inside, self._nodes = self._nodes, self._top
            self._matrices[name] = self._by_row(tensor) if self._products == "int8" else self._narrow(tensor)
            self._nodes = inside
        return self._matrices[name]

    def columns(self, name: str) -> tuple[Value, Value] | None:
        """The weight of a linear layer as ONNX Runtime's own int8 op takes it: int8 (in, out), a scale for each column (out,).

        None where it is kept otherwise. Raises FileError when the file has no such tensor.
        """
        tensor = self._tensor(name)
        if self.portable or "linear" in self.kernels or not self._in_int8(tensor):
            return None
        values, scales = self.once(("columns", name), lambda: self._by_column(tensor))
        return values, scales

    def panels(self, name: str) -> tuple[Value, Value, Value] | None:
        """The weight of a linear layer as Diptych's own kernel takes it: packed int8, a scale for each row, and the shift.

        None where it is kept otherwise. Raises FileError when the file has no such tensor.
        """
        tensor = self._tensor(name)
        if "linear" not in self.kernels or not self._in_int8(tensor):
            return None
        values, scales, shift = self.once(("panels", name), lambda: self._by_panel(tensor))
        return values, scales, shift

    def once(self, key: Hashable, make: Callable[[], tuple[Value, ...]]) -> tuple[Value, ...]:
        """What `make` records, which is recorded the first time only: values that many layers share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def constant(self, value: Operand) -> Value:
        """A constant; equal ones are made once. Python's int and float become int64 and float32."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray) and array.dtype.kind in "if":
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            made = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.Tensor(array, name=name),
            )
            self._initializers[name] = self._constants[key] = made
        return self._constants[key]

    def known(self, value: Value) -> NDArray[Any] | None:
        """What a value is, where that is known while the graph is written: a constant's array."""
        known = any(value is c for c in self._constants.values())
        return value.const_value.numpy() if known and value.const_value is not None else None

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put a name before those of the nodes made inside."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def __getattr__(self, op: str) -> Callable[..., Value]:
        if not op[0].isupper():
            raise AttributeError(op)

        def record(*operands: Operand, **attributes: Any) -> Value:  # noqa: ANN401
            return self.op(op, *operands, **attributes)[0]

        return record

    def op(self, op: str, *operands: Operand, domain: str = "", n_out: int = 1, **attributes: object) -> Sequence[Value]:
        """Record any op: one of another domain, or with several outputs. Returns its outputs."""
        inputs = [o if o is None or isinstance(o, ir.Value) else self.constant(o) for o in operands]
        name = self._unique("/".join([*self._scopes, op]))
        outputs = [Value(name=name if n_out == 1 else f"{name}:{i}") for i in range(n_out)]
        made = ir.Node(domain, op, inputs, ir.convenience.convert_attributes(attributes), outputs=outputs, name=name)
        self._nodes.append(made)
        self._domains.setdefault(domain, 1)
        return outputs

    def shaped(self, value: Value, shape: Sequence[int | str], element_type: int) -> None:
        """Say what a value is, ONNX's number of its type, where nothing is said of it yet: runtimes know no operator of ours."""
        if value.shape is None:
            value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType(element_type))

    def loop(self, n: Value, state: Value, step: Callable[[Value, Value], Value]) -> Value:
        """`state = step(i, state)` for i from 0 to n - 1, where the state is a sequence of float32 tensors."""
        name = self._unique("/".join([*self._scopes, "body"]))
        i, go = _value(f"{name}.i", (), np.int64), _value(f"{name}.go", (), np.bool_)
        before = ir.Value(name=f"{name}.state", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
        outside, self._nodes = self._nodes, []
        after = step(i, before)
        still = self.Identity(go)
        body = ir.Graph([i, go, before], [still, after], nodes=self._nodes, name=name)
        self._nodes = outside
        return self.Loop(n, np.array(True), state, body=body)

    def signature(self) -> tuple[dict[str, str], dict[str, str]]:
        """The inputs and the outputs by name, as `float32 (n_patch, 1176)`."""
        inputs, outputs = ({str(v.name): _describe(v) for v in values} for values in (self._inputs, self._outputs))
        return inputs, outputs

    def serialize(self, places: Mapping[str, Place], metadata: Mapping[str, str] | None = None) -> bytes:
        """The ONNX file, with the stored weights referred to at their places. The recorder is used up by it."""
        self._leave_out_what_nobody_reads()
        for name, stored in self.stored.items():
            file, offset = places[name]
            self._initializers[name].const_value = ir.ExternalTensor(
                file, offset, stored.n_bytes, ir.DataType(stored.element_type), shape=ir.Shape(stored.shape), name=name
            )
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._top,
            initializers=[v for v in self._initializers.values() if v.uses()],
            opset_imports=self._domains,
            name="encoder",
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="diptych", metadata_props=dict(metadata or {}))
        data: bytes = ir.to_proto(model).SerializeToString()
        return data

    def _leave_out_what_nobody_reads(self) -> None:
        """Nodes that others have taken the place of."""
        for node in reversed(self._top):
            if not any(value.uses() for value in node.outputs) and not any(value in self._outputs for value in node.outputs):
                for i in range(len(node.inputs)):
                    node.replace_input_with(i, None)
                self._top.remove(node)

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise FileError(f"the file has no tensor {name}, which its encoder needs; convert the model again") from None

    def _cast(self, tensor: Tensor) -> Value:
        dtype = FLOATS.get(tensor.type.name)
        if dtype is None or (self._widen and dtype is not ir.DataType.FLOAT):
            return self._store(tensor.name, ir.DataType.FLOAT, tensor.shape, tensor.float32)
        value = self._store(tensor.name, dtype, tensor.shape, tensor.read, tensor)
        return value if dtype is ir.DataType.FLOAT else self._named(tensor.name, "Cast", value, to=ir.DataType.FLOAT)

    def _dequantised(self, tensor: Tensor) -> Value:
        """int8 (out, in) and float16 scales (out, in / 32), apart: a block in the file holds its scale and its weights."""

        def scales() -> NDArray[Any]:
            return _blocks(tensor)[..., :2].view(np.float16).squeeze(-1)

        def numbers() -> NDArray[Any]:
            return _blocks(tensor)[..., 2:].view(np.int8).reshape(tensor.shape)

        *outer, n_in = tensor.shape
        values = self._store(tensor.name, ir.DataType.INT8, tensor.shape, numbers)
        halves = self._store(f"{tensor.name}.scale", ir.DataType.FLOAT16, (*outer, n_in // Q8_0_BLOCK), scales)
        scale = self._named(tensor.name, "Cast", halves, to=ir.DataType.FLOAT)
        return self._named(tensor.name, "DequantizeLinear", values, scale, axis=len(outer), block_size=Q8_0_BLOCK)

    def _narrow(self, tensor: Tensor) -> Value:
        """bfloat16 or float16 (out, in). There is no float32 in the graph that a runtime might unpack it to."""
        dtype = ir.DataType.BFLOAT16 if self._products == "bf16" else ir.DataType.FLOAT16
        return self._store(tensor.name, dtype, tensor.shape, lambda: tensor.float32().astype(dtype.numpy()))

    def _by_row(self, tensor: Tensor) -> Value:
        """int8 (out, in) and a float32 scale (out,) a row."""
        values = self._store(tensor.name, ir.DataType.INT8, tensor.shape, lambda: self._quantised(tensor)[0])
        return self._named(tensor.name, "DequantizeLinear", values, self._row_scales(tensor), axis=0)

    def _by_column(self, tensor: Tensor) -> tuple[Value, Value]:
        """int8 (in, out) and a float32 scale (out,) a column."""
        values = self._store(tensor.name, ir.DataType.INT8, tensor.shape[::-1], lambda: self._quantised(tensor)[0].T)
        return values, self._row_scales(tensor)

    def _by_panel(self, tensor: Tensor) -> tuple[Value, Value, Value]:
        """int8 packed, a float32 scale a row, and the int32 shift; all for as many rows as whole panels have."""
        shape = packed_shape((tensor.shape[0], tensor.shape[1]))
        n_rows, n_group = shape[0] * PANEL, -(-tensor.shape[1] // GROUP)

        def scales() -> NDArray[Any]:
            return np.pad(self._quantised(tensor)[1], (0, n_rows - tensor.shape[0]), constant_values=1)

        values = self._store(tensor.name, ir.DataType.INT8, shape, lambda: packed(self._quantised(tensor)[0]))
        scale = self._store(f"{tensor.name}.scale", ir.DataType.FLOAT, (n_rows,), scales)
        name, read = f"{tensor.name}.shift", lambda: shift(self._quantised(tensor)[0])
        return values, scale, self._store(name, ir.DataType.INT32, (n_group, n_rows), read)

    def _row_scales(self, tensor: Tensor) -> Value:
        return self._store(f"{tensor.name}.scale", ir.DataType.FLOAT, tensor.shape[:1], lambda: self._quantised(tensor)[1])

    def _quantised(self, tensor: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Numbers and scales of a matrix; those of the last one are kept, since they are asked for one after the other."""
        if self._last is None or self._last[0] != tensor.name:
            self._last = tensor.name, quantised(tensor.float32())
        return self._last[1]

    def _in_int8(self, tensor: Tensor) -> bool:
        return self._products == "int8" and len(tensor.shape) == 2 and not self._stays_wide(tensor.name)

    def _stays_wide(self, name: str) -> bool:
        return self._products == "int8" and name.startswith(self._wide)

    def _store(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        read: Callable[[], NDArray[Any]],
        tensor: Tensor | None = None,
    ) -> Value:
        n_bytes = math.prod(shape) * dtype.itemsize
        self.stored[name] = Stored(name, int(dtype), shape, int(n_bytes), read, tensor)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self._initializers[name] = value
        return value

    def _named(self, name: str, op: str, *operands: Operand, **attributes: object) -> Value:
        outside, self._scopes = self._scopes, [name]
        value: Value = getattr(self, op)(*operands, **attributes)
        self._scopes = outside
        return value

    def _unique(self, name: str) -> str:
        n = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}.{n}" if n else name


def _value(name: str, shape: Sequence[int | str], dtype: type[np.generic]) -> Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))))


def _describe(value: Value) -> str:
    assert value.dtype is not None  # given by `input` and `output`
    return f"{value.dtype.numpy()} ({', '.join(map(str, value.shape or ()))})"


def _blocks(tensor: Tensor) -> NDArray[np.uint8]:
    """(…, n_block, 34) bytes of a q8_0 tensor: a float16 scale and 32 int8 a block."""
    raw = tensor.read()
    return raw.reshape(*raw.shape[:-1], -1, 2 + Q8_0_BLOCK)
