"""Files of weights as people have them: the same tensors arrive, or one line says what is wrong."""

import argparse
import json
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raydistill.models.checkpoints import load_weights

State = dict[str, Tensor]


def network(outputs: int = 3, width: int = 4) -> nn.Module:
    body = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU())
    return nn.ModuleDict({"body": body, "fc": nn.Linear(width, outputs)})


def trained(seed: int = 7, **sizes: int) -> State:
    """A state dict whose every number, running statistics too, is one that no fresh model has."""
    torch.manual_seed(seed)
    state = network(**sizes).state_dict()
    return {key: torch.randn(value.shape).add(2).to(value.dtype) for key, value in state.items()}


STATE = trained()


def prefixed(prefix: str, state: State = STATE) -> State:
    return {prefix + key: value for key, value in state.items()}


class Plain:
    """An object that a script left beside the weights."""

    def __init__(self) -> None:
        self.rate = 0.1


FORMS: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "model": {"model": STATE, "args": argparse.Namespace(lr=1), "best": np.float64(3.0)},
    "model_state_dict": {"model_state_dict": STATE, "mean": np.arange(3), "place": pathlib.Path("x")},
    "ema alone": {"ema": STATE},
    "ema in its module": {"model_ema": {"module": STATE}},
    "beside an object": {"net": STATE, "config": Plain()},
    "beside an optimizer": {"optimizer": torch.optim.Adam(network().parameters()).state_dict(), "m": STATE},
    "module": prefixed("module."),
    "_orig_mod": prefixed("_orig_mod."),
    "_orig_mod inside": {key.replace("body.", "body._orig_mod."): value for key, value in STATE.items()},
    "module and _orig_mod": {"state_dict": prefixed("module._orig_mod.")},
    "backbone": prefixed("backbone."),
    "any prefix": prefixed("student.encoder."),
    "a body alone has it": {key.replace("body.", "backbone.body."): value for key, value in STATE.items()},
    "parameters": {
        key: nn.Parameter(value) if value.is_floating_point() else value for key, value in STATE.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_arrive_from_every_form(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form], tmp_path / "w.pth")
    assert_arrives(tmp_path / "w.pth")


def assert_arrives(path: Path, expected: State = STATE) -> None:
    model = network()
    assert load_weights(model, path) == ()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_the_same_weights_arrive_from_older_and_other_files(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_arrives(tmp_path / "old.pth")
    save_file(STATE, tmp_path / "w.safetensors")
    assert_arrives(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "renamed.bin")
    assert_arrives(tmp_path / "renamed.bin")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two files of tensors and their index."""
    places = {key: f"model-{index % 2}.safetensors" for index, key in enumerate(STATE)}
    for name in set(places.values()):
        save_file({key: STATE[key] for key in STATE if places[key] == name}, tmp_path / name)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def test_weights_in_several_files_arrive_through_their_index(sharded: Path) -> None:
    assert_arrives(sharded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_arrives_as_the_numbers_that_it_stands_for(dtype: torch.dtype, tmp_path: Path) -> None:
    halves = {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}
    torch.save(halves, tmp_path / "w.pth")
    assert_arrives(tmp_path / "w.pth", {key: value.to(STATE[key].dtype) for key, value in halves.items()})


def test_the_best_fit_among_several_state_dicts_is_taken(tmp_path: Path) -> None:
    others = {"generator": trained(1, width=9), "discriminator": STATE}
    torch.save(others, tmp_path / "w.pth")
    assert_arrives(tmp_path / "w.pth")


def test_of_weights_and_their_running_mean_the_weights_are_taken_and_that_is_said(tmp_path: Path) -> None:
    torch.save({"ema": trained(1), "model": STATE}, tmp_path / "w.pth")
    model = network()
    (remark,) = load_weights(model, tmp_path / "w.pth")
    assert "taken is `model`, not `ema`" in remark
    assert torch.equal(model.state_dict()["fc.weight"], STATE["fc.weight"])


def test_a_model_in_a_wrapper_takes_the_weights_of_the_model(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    wrapper = nn.ModuleDict({"net": network()})
    load_weights(wrapper, tmp_path / "w.pth")
    assert torch.equal(wrapper.state_dict()["net.fc.weight"], STATE["fc.weight"])


def test_files_of_old_versions_lack_a_counter(tmp_path: Path) -> None:
    torch.save({key: value for key, value in STATE.items() if "num_batches" not in key}, tmp_path / "w.pth")
    load_weights(network(), tmp_path / "w.pth")


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    torch.save({"a.weight": torch.eye(3)}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.state_dict()["b.weight"], torch.eye(3))


def test_what_is_ignored_stays_as_drawn(tmp_path: Path) -> None:
    torch.save(trained(outputs=9) | {"criterion.weight": torch.ones(2)}, tmp_path / "w.pth")
    model = network()
    before = model.state_dict()["fc.weight"].clone()
    load_weights(model, tmp_path / "w.pth", ["fc.*", "criterion.*"])
    after = model.state_dict()
    assert torch.equal(after["fc.weight"], before)
    assert torch.equal(after["body.0.weight"], trained(outputs=9)["body.0.weight"])


def test_a_head_for_other_classes_stays_as_drawn_where_one_is_known(tmp_path: Path) -> None:
    torch.save(trained(outputs=9), tmp_path / "w.pth")
    model = network()
    before = model.state_dict()["fc.weight"].clone()
    (remark,) = load_weights(model, tmp_path / "w.pth", head=lambda: ["fc.weight", "fc.bias"])
    assert "`ignore: [fc.*]`" in remark
    assert torch.equal(model.state_dict()["fc.weight"], before)


class Call:
    """Unpickling it would call a function."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


def torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/constants.pkl", b"")
        archive.writestr("w/code/module.py", b"")


def saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def truncated(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:900])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "code": (saved({"state_dict": STATE, "x": Call(print, "executed")}), "it asks for `builtins.print`"),
    "a shell": (
        saved(Call(__import__("os").system, "echo executed")),
        "without running code: it asks for `posix",
    ),
    "a whole model": (
        saved(nn.Sequential(nn.Linear(2, 2))),
        "it asks for `torch.nn.modules.container.Sequential`",
    ),
    "TorchScript": (torchscript, "is a TorchScript program, which is code"),
    "truncated": (truncated, "cannot be read as weights"),
    "empty": (written(b""), "is empty"),
    "text": (written(b"not weights at all"), "cannot be read as weights: it is no pickle"),
    "a pointer": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:1"), "`git lfs pull`"),
    "a web page": (written(b"\n<!DOCTYPE html><title>404"), "is a web page"),
    "Keras": (written(b"\x89HDF\r\n"), "save the model as a state dict"),
    "no mapping": (saved([1, 2]), "holds no state dict"),
    "NaN": (saved(STATE | {"fc.bias": torch.full((3,), torch.nan)}), "is damaged: `fc.bias` holds NaN"),
    "another architecture": (
        saved(nn.Conv2d(2, 2, 2).state_dict()),
        "of another architecture: none of its 2",
    ),
    "a head": (saved(trained(outputs=9)), "`fc.weight` (9, 4), the model needs (3, 4)"),
    "less": (
        saved({key: value for key, value in STATE.items() if "fc" not in key}),
        "missing: `fc.weight`, `fc.bias`",
    ),
    "more": (
        saved(STATE | {"aux.bias": torch.ones(2)}),
        "unexpected: `aux.bias`; `ignore: [aux.*]` leaves them out",
    ),
    "integers": (
        saved(STATE | {"fc.bias": torch.ones(3, dtype=torch.int8)}),
        "`fc.bias` of int8, no weights",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_one_line_and_leaves_the_model_alone(
    bad: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write, words = BAD[bad]
    write(tmp_path / "w.pth")
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as raised:
        load_weights(model, tmp_path / "w.pth")
    (line,) = str(raised.value).splitlines()
    assert "w.pth`" in line
    assert words in line
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "executed" not in capfd.readouterr().out


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pth` does not exist"):
        load_weights(network(), tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="is a folder; name the file in it"):
        load_weights(network(), tmp_path)


@pytest.mark.parametrize("place", ["../model-0.safetensors", "/model-0.safetensors", "absent.safetensors"])
def test_an_index_leads_to_files_beside_it(place: str, sharded: Path) -> None:
    index = json.loads(sharded.read_text())
    index["weight_map"]["fc.bias"] = place
    sharded.write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match="does not exist" if "absent" in place else "does not lie in its folder"
    ):
        load_weights(network(), sharded)


def test_ten_of_many_misfits_are_listed(tmp_path: Path) -> None:
    def layers(count: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(2, 2) for _ in range(count)))

    torch.save(layers(20).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError) as raised:
        load_weights(layers(10), tmp_path / "w.pth")
    assert str(raised.value).count("weight`") + str(raised.value).count("bias`") == 10
    assert "and 10 more" in str(raised.value)


@pytest.mark.parametrize("patterns", [["head.*"], ["fc.*", "nothing"]])
def test_a_pattern_that_is_about_nothing_is_refused(patterns: Sequence[str], tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="is about no tensor of the model"):
        load_weights(network(), tmp_path / "w.pth", patterns)
