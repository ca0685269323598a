"""Networks that exist as programs answer as the network did that they were made from."""

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydistill.models.programs import open_program
from raydistill.models.taps import Tapped

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


class Net(nn.Module):
    """A small network of pictures; `several` returns the features beside the logits."""

    def __init__(self, several: bool = False) -> None:
        super().__init__()
        self.several = several
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Any:
        rows = self.drop(self.norm(self.conv(inputs)).relu().mean((2, 3)))
        logits = self.fc(rows.view(rows.shape[0], -1))
        return {"logits": logits, "embedding": rows} if self.several else logits


def network(several: bool = False) -> Net:
    torch.manual_seed(1)
    model = Net(several)
    model(torch.randn(20, 1, 8, 8))
    return model.eval()


BATCH = ({0: torch.export.Dim("batch")},)


def torch_program(model: nn.Module, file: Path, rows: int = 2, *, dynamic: bool = True) -> Path:
    inputs = (torch.randn(rows, 1, 8, 8),)
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=BATCH if dynamic else None), file)
    return file


def onnx_program(
    file: Path, *, batch: int | str | None = "batch", data: str | None = None, **more: Any
) -> Path:
    """`flatten` → linear → ReLU → linear, its weights of seed 0; written by hand, without torch."""
    hidden, last = mlp()
    tensors = {
        name: value.detach().numpy()
        for name, value in (
            ("w1", hidden.weight.T),
            ("b1", hidden.bias),
            ("w2", last.weight.T),
            ("b2", last.bias),
        )
    }
    shape = [1, 8, 8] if batch is None else [batch, 1, 8, 8]
    flat = [1, 64] if batch is None else [-1, 64]
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w1", "b1"], ["pre"]),
        helper.make_node("Relu", ["pre"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "w2", "b2"], ["two_axes"]),
        helper.make_node("Reshape", ["two_axes", "end"], ["logits"]),
    ]
    initial = [onnx.numpy_helper.from_array(value.copy(), name) for name, value in tensors.items()]
    initial.append(onnx.numpy_helper.from_array(np.array(flat, dtype=np.int64), "flat"))
    initial.append(
        onnx.numpy_helper.from_array(np.array([3] if batch is None else [-1, 3], dtype=np.int64), "end")
    )
    outputs = [helper.make_tensor_value_info("logits", kind, None)]
    if more.get("several"):
        outputs.append(helper.make_tensor_value_info("embedding", kind, None))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if data is not None:
        Path(file.parent / data).parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(model, file, save_as_external_data=True, location=data, size_threshold=0)
    else:
        onnx.save_model(model, file)
    return file


def mlp() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(64, 16), nn.Linear(16, 3)


def answers(inputs: Tensor) -> tuple[Tensor, Tensor]:
    hidden, last = mlp()
    embedding = hidden(inputs.flatten(1)).relu()
    return last(embedding), embedding


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_program_of_torch_answers_bit_for_bit(rows: int, tmp_path: Path) -> None:
    model, inputs = network(), torch.randn(rows, 1, 8, 8)
    program = open_program(torch_program(model, tmp_path / "t.pt2"))
    assert torch.equal(program(inputs), model(inputs))
    kept = program.state_dict()
    assert all(torch.equal(kept[f"program.{name}"], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_program_for_one_batch_size_takes_any(rows: int, tmp_path: Path) -> None:
    model, inputs = network(), torch.randn(rows, 1, 8, 8)
    program = open_program(torch_program(model, tmp_path / "t.pt2", 4, dynamic=False))
    torch.testing.assert_close(program(inputs), model(inputs))


@pytest.mark.parametrize("batch", ["batch", 1, 3, None])
@pytest.mark.parametrize("rows", [1, 7])
def test_an_onnx_model_answers_for_any_batch(batch: Any, rows: int, tmp_path: Path) -> None:
    inputs = torch.randn(rows, 1, 8, 8)
    program = open_program(onnx_program(tmp_path / "t.onnx", batch=batch))
    torch.testing.assert_close(program(inputs), answers(inputs)[0])


def test_what_the_exporter_of_torch_wrote_answers_alike(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model, inputs = network(), torch.randn(5, 1, 8, 8)
    torch.onnx.export(
        model,
        (torch.randn(2, 1, 8, 8),),
        tmp_path / "t.onnx",
        dynamo=True,
        dynamic_shapes=BATCH,
        verbose=False,
    )
    torch.testing.assert_close(open_program(tmp_path / "t.onnx")(inputs), model(inputs), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_named_outputs_are_features(kind: str, tmp_path: Path) -> None:
    inputs = torch.randn(5, 1, 8, 8)
    if kind == "torch":
        model = network(several=True)
        program = open_program(torch_program(model, tmp_path / "t.pt2"))
        expected = model(inputs)
    else:
        program = open_program(onnx_program(tmp_path / "t.onnx", batch=2, several=True))
        expected = dict(zip(("logits", "embedding"), answers(inputs), strict=True))
    found = Tapped(program, ["embedding"])(inputs)
    torch.testing.assert_close(found.features["embedding"], expected["embedding"])
    torch.testing.assert_close(found.logits, expected)


def test_gradients_of_inputs_come_from_torch_alone(tmp_path: Path) -> None:
    inputs = torch.randn(2, 1, 8, 8, requires_grad=True)
    open_program(torch_program(network(), tmp_path / "t.pt2"))(inputs).sum().backward()
    assert inputs.grad is not None
    with pytest.raises(ValueError, match="gives no gradients of its inputs"):
        open_program(onnx_program(tmp_path / "t.onnx"))(inputs)


def test_a_session_is_not_pickled_but_opened_anew(tmp_path: Path) -> None:
    program, inputs = open_program(onnx_program(tmp_path / "t.onnx")), torch.randn(2, 1, 8, 8)
    expected = program(inputs)
    assert torch.equal(pickle.loads(pickle.dumps(program))(inputs), expected)


def test_it_is_run_where_torch_has_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **more: (
            seen.append(options.intra_op_num_threads) or real(path, options, **more)
        ),
    )
    open_program(onnx_program(tmp_path / "t.onnx"))
    assert seen == [torch.get_num_threads()]


def refused(file: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        open_program(file)(torch.randn(2, 1, 8, 8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_files_that_are_no_programs_are_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"t.{suffix}"
    whole = torch_program(network(), file) if suffix == "pt2" else onnx_program(file)
    data = whole.read_bytes()
    for content, words in (
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        (data[: len(data) // 2], "truncated|damaged"),
        (b"\x07hello world" * 9, "no program|no ONNX|cannot be read"),
    ):
        file.write_bytes(content)
        refused(file, words)


def test_inputs_of_another_shape_are_said(tmp_path: Path) -> None:
    for program in (
        open_program(torch_program(network(), tmp_path / "t.pt2")),
        open_program(onnx_program(tmp_path / "t.onnx")),
    ):
        with pytest.raises(ValueError, match=r"takes inputs of shape \(1, 8, 8\), not \(3, 8, 8\)"):
            program(torch.randn(2, 3, 8, 8))


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    refused(torch_program(network().train(), tmp_path / "t.pt2"), r"`model.eval\(\)` before you export it")


def test_without_the_runtime_the_line_to_install_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = onnx_program(tmp_path / "t.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(file, r"pip install 'raydistill\[onnx\]'")


# What a file may ask for, beside what `torch.export.save` writes.


class Bomb:
    def __reduce__(self) -> Any:
        return (Path("bomb").write_text, ("boom",))


def rewritten(file: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
    return file


def in_json(name: str, edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(member: str, data: bytes) -> bytes:
        if not member.endswith(name):
            return data
        values = json.loads(data)
        edit(values)
        return json.dumps(values).encode()

    return change


def nodes(values: Any) -> Any:
    return values["graph_module"]["graph"]["nodes"]


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.load",
        "os.system",
        "builtins.eval",
        "_operator.methodcaller",
        "torch.ops.aten.__class__.default",
        "torch.ops.aten.relu.__init__",
        "torch.ops.loaded_libraries.add",
        "torch.ops.higher_order.cond",
    ],
)
def test_no_function_but_atens_is_called(target: str, tmp_path: Path) -> None:
    file = torch_program(network(), tmp_path / "t.pt2")
    rewritten(file, in_json("models/model.json", lambda values: nodes(values)[-1].update(target=target)))
    refused(file, "only functions of `torch.ops.aten` are called")


@pytest.mark.parametrize(
    "name", ["save", "manual_seed", "set_grad_enabled", "seed", "warn", "format", "_print"]
)
def test_what_changes_the_process_or_writes_is_not_called(name: str, tmp_path: Path) -> None:
    file, target = torch_program(network(), tmp_path / "t.pt2"), f"torch.ops.aten.{name}.default"
    rewritten(file, in_json("models/model.json", lambda values: nodes(values)[-1].update(target=target)))
    refused(file, "no function of tensors")


def test_pickles_in_a_program_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    file = torch_program(network(), tmp_path / "t.pt2")
    rewritten(file, lambda name, data: buffer.getvalue() if "sample_inputs" in name else data)
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(open_program(file)(inputs), network()(inputs))

    def pickled(values: Any) -> None:
        values["config"]["fc.bias"]["use_pickle"] = True

    refused(rewritten(file, in_json("model_weights_config.json", pickled)), "holds `fc.bias` as a pickle")
    assert not (tmp_path / "bomb").exists()


EVIL = "x\"); __import__('pathlib').Path('bomb').write_text('boom'); (\"\n__import__('os')"


def test_text_of_a_file_never_becomes_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, text arguments, keywords, symbolic sizes, guards: whatever ends up in generated source elsewhere."""
    monkeypatch.chdir(tmp_path)
    evil = EVIL.replace('"', '\\"').replace("\n", "\\n")

    def everywhere(old: str) -> Callable[[str, bytes], bytes]:
        return lambda name, data: (
            data.replace(old.encode(), evil.encode()) if name.endswith("model.json") else data
        )

    def text_argument(values: Any) -> None:
        nodes(values)[-1]["inputs"].append({"name": "o", "arg": {"as_string": EVIL}, "kind": 1})

    def keyword(values: Any) -> None:
        nodes(values)[-1]["inputs"].append({"name": EVIL, "arg": {"as_int": 1}, "kind": 2})

    def symbols(values: Any) -> None:
        values["guards_code"] = [EVIL]
        for value in values["graph_module"]["graph"]["sym_int_values"].values():
            value["as_expr"]["expr_str"] = EVIL

    changes = [
        everywhere("batch_norm"),
        everywhere("fc.bias"),
        everywhere("p_fc_bias"),
        everywhere("sym_size_int_1"),
        in_json("models/model.json", text_argument),
        in_json("models/model.json", keyword),
        in_json("models/model.json", symbols),
    ]
    for change in changes:
        file = rewritten(torch_program(network(), tmp_path / "t.pt2"), change)
        with suppress(ValueError, RuntimeError, TypeError):
            open_program(file)(torch.randn(2, 1, 8, 8))
        assert not (tmp_path / "bomb").exists()
