"""Pretrained language models: the same logits, and adapters that are all that is trained, sent and stored."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.families import models
from fedpisa.models.hugging_face import CausalLM, hf_causal_lm
from fedpisa.runs.merged import save_merged
from fedpisa.runs.results import load_result
from fedpisa.runs.run_files import RunReader
from fedpisa.runs.simulation import Simulation

transformers = pytest.importorskip("transformers", reason="needs the extra language")
peft = pytest.importorskip("peft", reason="needs the extra language")

V, T, D, LAYERS, RANK = 65, 8, 32, 2, 2
ADAPTERS = LAYERS * RANK * (D + 3 * D)
"""Parameters of the adapters: A is (r, D) and B (3 D, r) in each layer's projection to queries, keys and values."""


def saved(folder: Path, config: Any) -> Path:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.GPT2Config(
        n_layer=LAYERS, n_embd=D, n_head=2, vocab_size=V, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return saved(tmp_path_factory.mktemp("gpt2"), config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=V,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return saved(tmp_path_factory.mktemp("llama"), config)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("the cat sat on the mat. " * 12)
    (folder / "b.txt").write_text("a dog dug a bog, and hid. " * 17)
    (folder / "c.txt").write_text("so we go, no? " * 20)
    return folder


def tokens(*shape: int, high: int = V) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0))


def loaded(folder: Path) -> nn.Module:
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model


def wrapped(folder: Path, num_outputs: int = V, **keys: Any) -> CausalLM:
    model = hf_causal_lm((T,), num_outputs, pretrained=str(folder), **keys)
    assert isinstance(model, CausalLM)
    return model


def config(base: Path, texts: Path, **values: Any) -> dict[str, Any]:
    run = {
        "dataset": "text",
        "data-file": str(texts),
        "window": T,
        "partitioner": "natural",
        "num-clients": 3,
        "fraction-train": 1.0,
        "batch-size": 4,
        "num-server-rounds": 3,
        "model": "hf-causal-lm",
        "pretrained": str(base),
        "algorithm": "sisa",
        "sigma": 0.05,
        "rho": 100.0,
        "lora-rank": RANK,
        "engine": "loop",
    }
    merged = {**run, **values}
    if merged["algorithm"] != "sisa":
        merged.pop("sigma"), merged.pop("rho")
    return merged


@pytest.mark.parametrize("base", ["gpt2", "llama"])
@pytest.mark.parametrize("keys", [{}, {"lora_rank": 3}])
def test_logits_are_those_of_transformers(
    base: str, keys: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    folder, x = request.getfixturevalue(base), tokens(3, T)
    model = wrapped(folder, **keys).eval()
    torch.testing.assert_close(model(x), loaded(folder)(x).logits, rtol=0, atol=1e-6)


def test_a_model_in_several_files_and_half_precision(gpt2: Path, tmp_path: Path) -> None:
    """The weights become float32; the digest sees each file."""
    model: Any = loaded(gpt2)
    model.bfloat16().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = wrapped(tmp_path)
    assert {p.dtype for p in found.parameters() if p.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(found.eval()(tokens(3, T)), model.float()(tokens(3, T)).logits)
    content = bytearray(shards[-1].read_bytes())
    content[-1] ^= 1
    shards[-1].write_bytes(content)
    assert wrapped(tmp_path).digest != found.digest


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_a_smaller_vocabulary_takes_the_first_logits(base: str, request: pytest.FixtureRequest) -> None:
    folder, x = request.getfixturevalue(base), tokens(2, T, high=20)
    torch.testing.assert_close(
        wrapped(folder, 20).eval()(x), loaded(folder)(x).logits[..., :20], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_nothing_but_parameters_is_a_buffer(base: str, request: pytest.FixtureRequest) -> None:
    """Constants such as frequencies are neither averaged nor sent."""
    assert not list(wrapped(request.getfixturevalue(base)).buffers())


def test_adapters_start_at_zero_and_depend_on_the_seed(gpt2: Path) -> None:
    first, again, other = (
        models.build(
            "hf-causal-lm",
            (T,),
            V,
            seed,
            target_shape=(T,),
            integers=True,
            pretrained=str(gpt2),
            lora_rank=RANK,
        )
        for seed in (0, 0, 1)
    )
    trained = {n: p for n, p in first.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == ADAPTERS
    assert all(bool((p == 0).all()) == ("lora_B" in name) for name, p in trained.items())
    a, b, c = (torch.cat([p.flatten() for p in m.parameters()]) for m in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("algorithm", ["sisa", "fedavg"])
@pytest.mark.parametrize("rank", [0, RANK])
def test_engines_agree(gpt2: Path, texts: Path, algorithm: str, rank: int) -> None:
    """Dropout of 0.1, which GPT-2 has, is drawn alike."""
    found = [
        fedpisa.run(
            config(gpt2, texts, algorithm=algorithm, engine=engine, dtype="float64", **{"lora-rank": rank})
        )
        for engine in ("loop", "vmap")
    ]
    one, two = (result.parameters for result in found)
    assert one.keys() == two.keys()
    assert all(np.abs(one[name] - two[name]).max() < 1e-12 for name in one)
    losses = [result.history["train_loss"].to_numpy() for result in found]
    np.testing.assert_allclose(*losses, rtol=1e-12)


@pytest.mark.parametrize("algorithm", ["sisa", "fedavg"])
def test_only_adapters_are_trained_sent_and_stored(
    gpt2: Path, texts: Path, algorithm: str, tmp_path: Path
) -> None:
    simulation = Simulation(RunConfig.from_mapping(config(gpt2, texts, algorithm=algorithm)))
    module = simulation.federation.task.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    rows = list(simulation.rows())
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert torch.equal(parameter, before[name])  # the module's own values; the run's are a vector
    assert [row["bytes_up"] for row in rows[1:]] == [4 * ADAPTERS * 3] * 3
    assert any(np.abs(array).max() > 0 for name, array in simulation.parameters().items() if "lora_B" in name)
    assert sum(array.size for array in simulation.parameters().values()) == ADAPTERS
    assert rows[-1]["test_loss"] < rows[0]["test_loss"]


def test_a_run_holds_its_adapters_and_where_the_base_is(gpt2: Path, texts: Path, tmp_path: Path) -> None:
    result = fedpisa.run(config(gpt2, texts), out=tmp_path / "run")
    again = load_result(tmp_path / "run")
    assert again.parameters.keys() == result.parameters.keys()
    assert sum(array.size for array in again.parameters.values()) == ADAPTERS
    base = RunReader(tmp_path / "run").base()
    assert base["pretrained"] == str(gpt2)
    assert base["digest"] == wrapped(gpt2).digest
    assert (tmp_path / "run" / "model.safetensors").stat().st_size < 4 * ADAPTERS + 4096


@pytest.mark.parametrize(
    ("base", "keys"),
    [
        ("gpt2", {"lora-rank": RANK}),
        ("gpt2", {"lora-rank": 4, "lora-alpha": 3, "lora-modules": ["c_attn", "c_fc"]}),
        ("gpt2", {"lora-rank": 0}),
        ("llama", {"lora-rank": RANK, "lora-modules": ["all-linear"]}),
    ],
)
def test_the_merged_model_has_the_trained_models_logits(
    base: str, keys: dict[str, Any], texts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, x = request.getfixturevalue(base), tokens(3, T)
    result = fedpisa.run(
        config(folder, texts, algorithm="fedavg", **{"learning-rate": 0.5}, **keys), tmp_path / "run"
    )
    values = {key.replace("-", "_"): value for key, value in keys.items()}
    model = wrapped(folder, **values).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in result.parameters:
                weight.copy_(torch.from_numpy(result.parameters[name]))
    save_merged(tmp_path / "run", tmp_path / "merged")
    found, start = loaded(tmp_path / "merged")(x).logits, loaded(folder)(x).logits
    torch.testing.assert_close(found, model(x), rtol=0, atol=1e-6)
    assert (found - start).abs().max() > 1e-3
    with pytest.raises(ValueError, match="not empty: name a new folder"):
        save_merged(tmp_path / "run", tmp_path / "merged")


def test_the_tied_head_is_one_tensor(gpt2: Path, texts: Path, tmp_path: Path) -> None:
    result = fedpisa.run(config(gpt2, texts, **{"lora-rank": 0}), out=tmp_path / "run")
    size = V * D + 32 * D + LAYERS * (12 * D**2 + 13 * D) + 2 * D
    assert sum(array.size for array in result.parameters.values()) == size
    save_merged(tmp_path / "run", tmp_path / "merged")
    merged: Any = loaded(tmp_path / "merged")
    assert merged.lm_head.weight is merged.transformer.wte.weight
    embedding = result.parameters["model.transformer.wte.weight"]
    assert np.array_equal(merged.lm_head.weight.detach().numpy(), embedding)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_gradients_of_stacked_clients(
    base: str, rank: int, shared: bool, request: pytest.FixtureRequest
) -> None:
    """They are those of one client after the other, from one model or from a model each."""
    model = wrapped(request.getfixturevalue(base), lora_rank=rank).eval().double()
    x, y = tokens(3, 4, T), tokens(3, 4, T).flip(0)
    noise = torch.Generator().manual_seed(0)
    one = {
        name: p.detach() + 0.1 * torch.randn(p.shape, generator=noise, dtype=torch.float64)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    each = {name: torch.stack([p * factor for factor in (1.0, 0.5, -1.0)]) for name, p in one.items()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (x,)).flatten(0, 1), y.flatten())

    with sdpa_kernel(SDPBackend.MATH):
        stacked = vmap(grad(loss), in_dims=(None if shared else 0, 0, 0))(one if shared else each, x, y)
    for client in range(3):
        params = one if shared else {name: p[client] for name, p in each.items()}
        for name, value in grad(loss)(params, x[client], y[client]).items():
            torch.testing.assert_close(stacked[name][client], value)


def test_a_run_goes_on_to_the_same_bytes_from_the_same_base_alone(
    gpt2: Path, texts: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(gpt2, base)
    whole = fedpisa.run(config(base, texts, engine="vmap"))
    fedpisa.run(config(base, texts, engine="vmap", **{"num-server-rounds": 2}), out=tmp_path / "run")
    size = sum(file.stat().st_size for file in (tmp_path / "run" / "checkpoint").iterdir())
    vectors = 1 + 1 + 3 + 2 * 3  # the model twice, each client's last z, its dual and second moment
    assert size < 4 * ADAPTERS * (vectors + 2) + 20_000
    resumed = fedpisa.run({"num-server-rounds": 3}, resume=tmp_path / "run")
    for name, array in whole.parameters.items():
        assert np.array_equal(array, resumed.parameters[name])
    other: Any = loaded(base)
    with torch.no_grad():
        other.lm_head.weight += 1
    other.save_pretrained(base)
    with pytest.raises(ValueError, match="is not the one with which"):
        fedpisa.run({"num-server-rounds": 4}, resume=tmp_path / "run")


def test_a_run_prints_nothing(
    gpt2: Path, texts: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    level = transformers.utils.logging.get_verbosity()
    fedpisa.run(config(gpt2, texts))
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if "transformers" in w.filename or "peft" in w.filename]
    assert transformers.utils.logging.get_verbosity() == level


def test_another_base_is_refused(gpt2: Path, llama: Path, texts: Path, tmp_path: Path) -> None:
    fedpisa.run(config(gpt2, texts), out=tmp_path / "run")
    with pytest.raises(ValueError, match="is not the one that the run was trained from"):
        save_merged(tmp_path / "run", tmp_path / "merged", str(llama))


def refused(folder: Path, **keys: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        hf_causal_lm(keys.pop("shape", (T,)), keys.pop("num_outputs", V), pretrained=str(folder), **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit(gpt2: Path) -> None:
    assert "the data have 66 tokens, and the pretrained model 65" in refused(gpt2, num_outputs=66)
    assert "set window to at most 32" in refused(gpt2, shape=(33,))
    assert "needs sequences of tokens (length,)" in refused(gpt2, shape=(1, 8, 8))
    assert "lora-modules has no effect with lora-rank = 0" in refused(gpt2, lora_modules=("c_attn",))
    assert "name some of c_attn, c_fc, c_proj" in refused(gpt2, lora_rank=1, lora_modules=("query",))


def test_folders_that_are_refused(gpt2: Path, tmp_path: Path) -> None:
    assert "is not a folder with config.json" in refused(tmp_path / "none")
    (tmp_path / "config.json").write_bytes((gpt2 / "config.json").read_bytes())
    assert "has no weights and no model.safetensors" in refused(tmp_path)
    torch.save(loaded(gpt2).state_dict(), tmp_path / "pytorch_model.bin")
    message = refused(tmp_path)
    assert "pickled weights (pytorch_model.bin)" in message
    assert "safe_serialization=True" in message
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}))
    assert "names 'pytorch_model.bin', which is no safetensors file" in refused(tmp_path)
    index.write_text("{}")
    assert "is damaged" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be read as a causal language model" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge them first" in refused(tmp_path)


def test_code_in_the_folder_is_not_run(gpt2: Path, tmp_path: Path) -> None:
    values = json.loads((gpt2 / "config.json").read_text())
    values |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes((gpt2 / "model.safetensors").read_bytes())
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot be read as a causal language model" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_extra(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        assert "pip install 'fedpisa[language]'" in refused(gpt2, lora_rank=1)
        patch.setitem(sys.modules, "transformers", None)
        assert "pip install 'fedpisa[language]'" in refused(gpt2)
