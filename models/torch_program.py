"""Programs of `torch.export`, read without `torch.export.load`: that unpickles, and evaluates text of the file.

The graph is JSON and the weights are plain bytes. Here only functions of `torch.ops.aten` and arithmetic of sizes are
called, by a graph that is built anew; whatever else a file asks for is refused.
"""

import json
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from raydistill.models.exported import Exported
from raydistill.models.weight_files import CONTRACT, normalises_inside

FORMAT = 8  # the major version of the schema that is read
NAME = re.compile(r"\w+(\.\w+)*")
ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z]\w*|_[A-Za-z]\w*)\.([A-Za-z]\w*)")
FORBIDDEN = ("from_file",)  # of the functions of tensors the one that opens a file
SIZES: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "getitem")
}
# The numbers of the schema.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
PLAIN = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string")


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """What a program holds that is not read, with the way out."""


def read_program(path: Path) -> Exported:
    """The program of a file that `torch.export.save` wrote."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"`{path}` is no program of `torch.export`, or is truncated; write or fetch it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            opened = _Archive(archive)
            program = _read(opened)
            program.takes_raw = normalises_inside(opened.contract)
            return program
    except zipfile.BadZipFile as error:
        raise ValueError(f"`{path}` is damaged: {error}; write or fetch it again") from error
    except _Refused as error:
        raise ValueError(f"`{path}` {error}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`{path}` is damaged, or of another version of torch.export: {type(error).__name__} {said}"
        ) from error


class _Archive:
    """The files of a program, below whatever folder they have in common."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "serialized_exported_program.json" in archive.namelist():
            raise _Refused(
                "was saved by a version of torch before 2.8, whose programs hold pickles; where you trust it, save it"
                ' again: `torch.export.save(torch.export.load("old.pt2"), "new.pt2")`'
            )
        if any(name.startswith("data/aotinductor/") for name in self._names):
            raise _Refused("holds compiled code; save the program itself with `torch.export.save`")
        if any(info.compress_type != zipfile.ZIP_STORED for info in self._names.values()):
            raise _Refused("is compressed, as `torch.export.save` leaves no program")
        if "models/model.json" not in self._names:
            raise _Refused("is no program of `torch.export`: it has no `models/model.json`")
        if self.bytes("byteorder") != b"little":
            raise _Refused("was saved on a machine with another order of bytes")

    @property
    def contract(self) -> "bytes | None":
        """What `distill export` wrote of inputs and outputs."""
        return self.bytes(CONTRACT) if CONTRACT in self._names else None

    def bytes(self, name: str) -> bytes:
        return self._archive.read(self._names[name])

    def json(self, name: str) -> Any:
        return json.loads(self.bytes(name))

    def tensors(self, folder: str, config: str) -> Iterator[tuple[str, Tensor, bool]]:
        """Name, tensor, and whether it is a parameter; equal files are one storage."""
        storages: dict[str, bytearray] = {}
        for name, item in self.json(f"data/{folder}/{config}")["config"].items():
            meta, file = item["tensor_meta"], item["path_name"]
            if item["use_pickle"] or meta is None or meta["layout"] != 7:
                raise _Refused(
                    f"holds `{name}` as a pickle, which may run code; export it with plain dense tensors"
                )
            if not NAME.fullmatch(name):
                raise _Refused(f"names a tensor {name[:60]!r}, as torch names none")
            data = storages.setdefault(file, bytearray(self.bytes(f"data/{folder}/{file}")))
            dtype, shape = DTYPES[meta["dtype"]], _sizes(meta["sizes"])
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            yield (
                name,
                flat.as_strided(shape, _sizes(meta["strides"]), meta["storage_offset"]["as_int"]),
                item["is_param"],
            )


def _sizes(values: Sequence[Mapping[str, int]]) -> tuple[int, ...]:
    return tuple(value["as_int"] for value in values)


class _TorchProgram(Exported):
    """A program of torch. `program` holds its tensors under the names that they had."""

    def __init__(self, program: nn.Module, names: Sequence[str], meta: Mapping[str, Any]) -> None:
        sizes = [size.get("as_int") for size in meta["sizes"]]
        super().__init__(names, sizes[1:], sizes[0], DTYPES[meta["dtype"]])
        self.program = program

    def run(self, inputs: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = self.program(inputs)
        return outputs


def _read(archive: _Archive) -> Exported:
    model = archive.json("models/model.json")
    if model["schema_version"]["major"] != FORMAT:
        raise _Refused(
            f"is of version {model['schema_version']['major']} of torch's format, and {FORMAT} is read; save it with"
            " the torch that is installed here"
        )
    module, signature = nn.Module(), model["graph_module"]["signature"]
    found = {
        name: (tensor, is_parameter)
        for folder, config in (
            ("weights", "model_weights_config.json"),
            ("constants", "model_constants_config.json"),
        )
        for name, tensor, is_parameter in archive.tensors(folder, config)
    }
    builder = _Builder(model["graph_module"]["graph"])
    inputs = []
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            inputs.append(value["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = value[f"{kind}_name"]
            _put(module, name, *found[name])
            builder.nodes[value["arg"]["name"]] = builder.graph.get_attr(name)
        else:
            raise _Refused(f"needs a `{kind}` beside its inputs; export a module that takes one tensor")
    if len(inputs) != 1:
        raise _Refused(f"takes {len(inputs)} tensors; a teacher takes one: export it so")
    outputs = []
    for spec in signature["output_specs"]:
        ((kind, value),) = spec.items()
        if kind != "user_output":
            raise _Refused(
                "changes its own tensors while it answers; call `model.eval()` before you export it"
            )
        outputs.append(value["arg"])
    builder.build(inputs[0], outputs)
    program = fx.GraphModule(module, builder.graph)
    names = _output_names(model["graph_module"]["module_call_graph"], len(outputs))
    meta = model["graph_module"]["graph"]["tensor_values"][inputs[0]]
    return _TorchProgram(program.eval().requires_grad_(False), names, meta)


def _put(module: nn.Module, name: str, tensor: Tensor, is_parameter: bool) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if is_parameter:
        module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    else:
        module.register_buffer(last, tensor)


def _output_names(calls: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """The keys of a mapping that it returns; numbers otherwise."""
    spec = json.loads(calls[0]["signature"]["out_spec"])[1]
    if spec["type"] == "builtins.dict" and all(not child["children_spec"] for child in spec["children_spec"]):
        keys = json.loads(spec["context"])
        if len(keys) == count and all(isinstance(key, str) for key in keys):
            return keys
    return [f"output{index}" for index in range(count)]


class _Builder:
    """A graph of torch.fx from that of a file. `nodes` are those that stand for the names of the file."""

    def __init__(self, written: Mapping[str, Any]) -> None:
        self.written, self.graph = written, fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self._device: fx.Node | None = None

    def build(self, input_name: str, outputs: Sequence[Mapping[str, Any]]) -> None:
        # The one placeholder stands first, though tensors of the model were asked for before.
        first = next(iter(self.graph.nodes), None)
        with self.graph.inserting_before(first):
            self.nodes[input_name] = self.graph.placeholder("inputs")
        self._device = self.graph.call_function(getattr, (self.nodes[input_name], "device"))
        for node in self.written["nodes"]:
            if node["outputs"]:  # those without only assert
                self._add(node)
        self.graph.output(tuple(self.nodes[output["as_tensor"]["name"]] for output in outputs))

    def _add(self, node: Mapping[str, Any]) -> None:
        function = _function(node["target"])
        arguments, named = [], {}
        for item in node["inputs"]:
            ((kind, value),) = item["arg"].items()
            if item["name"] in ("training", "train") and value is True:
                raise _Refused("was exported in training mode; call `model.eval()` before you export it")
            if item.get("kind") == 2:
                if not str(item["name"]).isidentifier():
                    raise _Refused(f"names an argument {str(item['name'])[:60]!r}")
                named[item["name"]] = self._value(kind, value)
            else:
                arguments.append(self._value(kind, value))
        made = self.graph.call_function(function, tuple(arguments), named)
        self._keep(node["outputs"], made)

    def _keep(self, outputs: Sequence[Mapping[str, Any]], made: fx.Node) -> None:
        names: list[str | None] = []
        for output in outputs:
            ((kind, value),) = output.items()
            names += [item["name"] for item in value] if kind == "as_tensors" else [_name(kind, value)]
        if len(names) == 1 and "as_tensors" not in outputs[0]:
            self.nodes[str(names[0])] = made
            return
        for index, name in enumerate(names):
            if name is not None:
                self.nodes[name] = self.graph.call_function(operator.getitem, (made, index))

    def _value(self, kind: str, value: Any) -> Any:
        if kind == "as_none":
            return None
        if kind in PLAIN:
            return value
        if kind in ("as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
            return self._one(value)
        if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
            return [self._one(item) for item in value]
        if kind == "as_scalar_type":
            return DTYPES[value]
        if kind == "as_memory_format":
            return MEMORY_FORMATS[value]
        if kind == "as_layout" and value == 7:
            return torch.strided
        if kind == "as_device":  # where it was exported; it runs where its inputs are
            return self._device
        raise _Refused(
            f"gives a function a value `{kind[:40]}`, which is not read; export it without control flow"
        )

    def _one(self, value: Mapping[str, Any]) -> Any:
        """One of a node's inputs: `{name}`, `{as_name}`, `{as_int}`, `{as_none}`, `{as_tensor: {name}}`, …"""
        ((kind, inner),) = value.items()
        if kind in ("name", "as_name"):
            return self.nodes[inner]
        return self._value(kind, inner)


def _name(kind: str, value: Any) -> str | None:
    if kind == "as_none":
        return None
    name: str = value["as_name"] if "as_name" in value else value["name"]
    return name


def _function(target: str) -> Callable[..., Any]:
    if target in SIZES:
        return SIZES[target]
    found = ATEN.fullmatch(target)
    if found is None or found[1] in FORBIDDEN:
        raise _Refused(
            f"calls `{target[:80]}`, and only functions of `torch.ops.aten` are called from a file; export it"
            " without gradients switched inside, or save the state dict alone"
        )
    function: Callable[..., Any] = getattr(getattr(torch.ops.aten, found[1]), found[2])
    if not isinstance(function, torch._ops.OpOverload):
        raise _Refused(f"calls `{target[:80]}`, which is no function of torch")
    # The same name space holds what scripts call beside tensors' functions: it writes files, and turns gradients and
    # random numbers of the whole process. None of it goes through the dispatcher and returns something.
    if not (torch._C._dispatch_has_kernel(function.name()) and function._schema.returns):
        raise _Refused(f"calls `{target[:80]}`, which is no function of tensors; save the state dict alone")
    return function
