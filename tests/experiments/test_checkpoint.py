from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import gymnasium
import pytest
import torch
from safetensors.torch import save_file

from metarl.core.errors import UsageError
from metarl.core.memory import MemoryConfig
from metarl.experiments.checkpoint import load_checkpoint, restore, save_checkpoint
from metarl.meta_rl.rl2_agent import RL2Agent

TENSORS = {
    "weight": torch.tensor([[0.1, -2.0], [3.0, float("nan")]]),
    "mean": torch.tensor([1e-300, 2.0], dtype=torch.float64),
    "updates": torch.tensor(7),
    "generator": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}
META = {"epoch": 3, "best_return": None, "note": "größer"}


def make_agent(width: int = 8, method: str = "gru") -> RL2Agent:
    box = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    return RL2Agent(box, box, memory=MemoryConfig(method, width=width))


def message_of(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {**TENSORS, "transposed": TENSORS["weight"].T}, META)
    tensors, meta = load_checkpoint(path)
    assert meta == META
    assert tensors.keys() == {*TENSORS, "transposed"}
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert tensors["transposed"][1, 0] == -2.0
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_no_damaged_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, {"epoch": 1})
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert str(path) in message_of(path)


def test_a_file_cut_short_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, META)
    whole = path.read_bytes()
    for length in (0, 1, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "is corrupt" in message_of(path)
        assert "copy best.safetensors over it" in message_of(path)


def test_missing_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("last.safetensors", "folder", "nowhere/last.safetensors"):
        assert message_of(tmp_path / name).startswith(f"no checkpoint at {tmp_path / name}: give the folder of a run")


def test_safetensors_of_another_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "metarl-checkpoint-0"}):
        save_file({"w": torch.ones(2)}, path, metadata=metadata)
        assert "another program or version wrote it" in message_of(path)
    save_file({"w": torch.ones(2)}, path, metadata={"format": "metarl-checkpoint-1"})  # neither meta nor checksum
    assert "is corrupt" in message_of(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    path, mark = tmp_path / "last.safetensors", tmp_path / "code ran"
    torch.save({"w": Bomb(mark)}, path)
    assert "is corrupt" in message_of(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    assert "is corrupt" in message_of(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the bomb was live


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, META)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save_checkpoint(path, {"w": torch.ones(2)}, {"epoch": 4})
    assert load_checkpoint(path)[1] == META
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_restore_brings_back_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    saved, other = make_agent(), make_agent()
    with torch.no_grad():
        next(saved.policy.parameters()).fill_(0.25)
    saved.updates = 12
    save_checkpoint(path, saved.state_dict(), META)
    assert restore(other, path) == META
    for name, tensor in saved.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"width": 16}, {"method": "lstm"}])
def test_restore_refuses_an_agent_with_other_settings(tmp_path: Path, settings) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, make_agent().state_dict(), META)
    with pytest.raises(UsageError, match=r"agent with other settings: config\.json beside it") as error:
        restore(make_agent(**settings), path)
    assert "\n" not in str(error.value)


def test_restore_refuses_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"w": torch.ones(2)}, META)
    with pytest.raises(UsageError, match="agent with other settings"):
        restore(make_agent(), path)
