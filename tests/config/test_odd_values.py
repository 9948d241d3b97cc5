"""Values that no run can use: each is refused in one line before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest

from fedpisa.cli.main import main as command_line
from fedpisa.config.run import load_config
from fedpisa.simulation.devices import resolve_device
from fedpisa.simulation.parts import build_model, load_dataset


@pytest.mark.parametrize("key", ["batch-size", "local-steps", "local-epochs", "num-clients", "eval-every"])
def test_counts_are_small_enough_to_compute_with(key: str) -> None:
    with pytest.raises(ValueError, match=rf"key '{key}' = 2147483648: must be .*less than 2147483648"):
        load_config({"algorithm": "fedavg", key: 2**31})


@pytest.mark.parametrize("size", ["9" * 5000 + "GB", "9223372036854775808", "1" + "0" * 400])
def test_a_memory_beyond_64_bits_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="key 'state-memory'"):
        load_config({"state-memory": size})


@pytest.mark.parametrize("key", [3, None, ("seed",), 0.5])
def test_a_key_is_a_string(key: Any) -> None:
    with pytest.raises(ValueError, match="is not a string"):
        load_config({key: 1})


@pytest.mark.parametrize(
    "error", [RuntimeError("can't allocate memory"), MemoryError(), RuntimeError("two\nlines")]
)
def test_a_model_that_cannot_be_built_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    config = load_config({"model": "mlp", "widths": [2**31 - 1]})
    data = load_dataset(config)
    monkeypatch.setattr("torch.nn.Linear", fail)
    with pytest.raises(ValueError, match="model 'mlp' cannot be built") as caught:
        build_model(config, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "device", ["meta", "hpu", "privateuseone", "xla", "cuda:99999999999999999999", "", "CPU"]
)
def test_a_device_that_cannot_compute_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="is not available") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 2 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fedpisa.runs.runner.run", fail)
    monkeypatch.setattr("fedpisa.config.run.load_config", fail)
    assert command_line(["run", "-c", "num-server-rounds=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the memory is too small ({error})")
