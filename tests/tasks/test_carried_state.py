"""A recurrent state that clients carry: order of the windows, closed forms, engines, and resumed runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fedpisa
from fedpisa import RunConfig
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.batches import CarryState, Epochs, Periodic, Streams
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.datasets.base import Dataset
from fedpisa.datasets.text import windows
from fedpisa.models.language import lstm
from fedpisa.models.recurrent import Steps, awd_lstm
from fedpisa.runs.simulation import Simulation
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.tasks.base import Samples
from fedpisa.tasks.language import language
from fedpisa.tasks.supervised import Supervised

TOKENS, WINDOW = 6, 4


def own_rnn(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Return a user's recurrent model."""
    return OwnRNN(num_outputs)


class OwnRNN(nn.Module):
    state_size = 5

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(tokens, 3), nn.Linear(5, tokens)
        self.below, self.across = nn.Linear(3, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor, state_BZ: Tensor | None = None) -> Tensor | Steps:
        x_BTD = self.embed(x)
        h_BH = torch.zeros_like(x_BTD[:, 0, :1]).expand(-1, 5) if state_BZ is None else state_BZ
        outputs = []
        for x_BD in x_BTD.unbind(1):
            h_BH = torch.tanh(self.below(x_BD) + self.across(h_BH))
            outputs.append(h_BH)
        h_BTH = torch.stack(outputs, 1)
        logits = self.head(h_BTH)
        return logits if state_BZ is None else Steps(logits, h_BH, h_BTH, h_BTH)


def text(*, seed: int = 0, num_clients: int = 3) -> Dataset:
    """Return windows of random texts, of another length for each client."""
    rng = np.random.default_rng(5)
    parts = [windows(rng.integers(0, TOKENS, WINDOW * n + 1), WINDOW) for n in (7, 4, 10)[:num_clients]]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    groups = np.repeat(np.arange(num_clients), [len(part[0]) for part in parts])
    return Dataset.of("text", (x, y), parts[0], num_classes=TOKENS, groups=groups, vocabulary=tuple("abcdef"))


def keys(**more: object) -> dict[str, object]:
    base: dict[str, object] = {
        "dataset": f"{__name__}:text",
        "task": "language",
        "partitioner": "natural",
        "num-clients": 3,
        "model": "lstm",
        "embed": 3,
        "hidden": 5,
        "batch-size": 2,
        "num-server-rounds": 5,
        "dtype": "float64",
        "carry-state": "epoch",
        "sample-tokens": 0,
    }
    return {**base, **{name.replace("_", "-"): value for name, value in more.items()}}


def task_of(module: nn.Module, **options: Any) -> Supervised:
    return Supervised(module.double(), language(**options))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 3), st.booleans()
)
def test_streams_read_each_text_in_order(sizes: list[int], size: int, batches: int, drop_last: bool) -> None:
    sizes_S, ids_S = np.array(sizes), np.arange(len(sizes))
    for base in (Periodic(size, batches, 2, drop_last), Epochs(size, 2, None, drop_last)):
        streams = base.in_order("epoch")
        last: dict[tuple[int, int], int] = {}
        for number in (1, 2, 3):
            drawn, plain = (one.draw(sizes_S, ids_S, number, 0) for one in (streams, base))
            assert drawn.gradients_S.tolist() == plain.gradients_S.tolist()
            assert drawn.steps_S.tolist() == plain.steps_S.tolist()
            assert drawn.fresh_SKC is not None
            for place in np.ndindex(drawn.fresh_SKC.shape):
                client, fresh = place[0], drawn.fresh_SKC[place]
                weight_B, index_B = drawn.weight_SKCB[place], drawn.index_SKCB[place]
                assert weight_B.sum() == pytest.approx(plain.weight_SKCB[place].sum())
                for row in np.flatnonzero(weight_B):
                    assert row == 0 or weight_B[row - 1] > 0  # padding comes last
                    index = int(index_B[row])
                    assert fresh or index == last[client, row] + 1
                    last[client, row] = index


def test_an_epoch_has_each_window_once() -> None:
    streams = Streams(batch_size=3, local_epochs=1)
    drawn = streams.draw(np.array([8]), np.array([0]), 1, 0)
    assert sorted(drawn.index_SKCB[drawn.weight_SKCB > 0]) == list(range(8))
    assert drawn.fresh_SKC is not None
    assert drawn.fresh_SKC.ravel().tolist() == [True, False, False]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("model", [lstm, awd_lstm])
def test_two_windows_with_a_state_are_one_of_twice_the_length(model: Any, layers: int) -> None:
    torch.manual_seed(0)
    module = model((WINDOW,), TOKENS, embed=3, hidden=5, layers=layers).double().eval()
    x = torch.randint(TOKENS, (2, 2 * WINDOW))
    first = module(x[:, :WINDOW], torch.zeros(2, module.state_size).double())
    second = module(x[:, WINDOW:], first.state_BZ)
    torch.testing.assert_close(torch.cat([first.outputs, second.outputs], 1), module(x))


def test_the_gradient_ends_where_the_window_begins() -> None:
    torch.manual_seed(0)
    task = task_of(lstm((WINDOW,), TOKENS, embed=3, hidden=5), carry_state="epoch")
    x, y = torch.randint(TOKENS, (2, 2, 3, WINDOW))
    weight_CB, w_P = torch.full((2, 3), 1 / 6).double(), task.initial_params()
    batch = MiniBatches(x, y, weight_CB, fresh_C=torch.tensor([True, False]))
    gradient = AutogradGradient(task, torch.zeros(0), task.initial_memory(3))
    loss, g_P = gradient(w_P, batch)
    # The same by hand: the state after the first window is a constant of the second one.
    module = task.module
    first = module(x[0], torch.zeros(3, module.state_size).double())
    second = module(x[1], first.state_BZ.detach())
    losses = [
        F.cross_entropy(s.outputs.flatten(0, 1), t.flatten()) for s, t in zip((first, second), y, strict=True)
    ]
    mean = (losses[0] + losses[1]) / 2
    torch.testing.assert_close(loss, mean.detach())
    wanted = torch.autograd.grad(mean, list(module.parameters()))
    torch.testing.assert_close(g_P, task.layout.flatten(dict(zip(task.layout.names, wanted, strict=True))))
    torch.testing.assert_close(gradient.memory_after["hidden"], second.state_BZ.detach())


@pytest.mark.parametrize("fresh", [[True, False], [False, True]])
def test_stacked_and_plain_gradients_carry_the_same_state(fresh: list[bool]) -> None:
    torch.manual_seed(0)
    task = task_of(own_rnn((WINDOW,), TOKENS), carry_state="epoch", slowness_penalty=0.5)
    x, y = torch.randint(TOKENS, (2, 2, 3, WINDOW))
    weight_CB = torch.tensor([[1, 1, 0], [1, 0, 0]]).double() / torch.tensor([[4], [2]])
    memory = {"hidden": torch.cat([torch.randn(3, 5), torch.zeros(1, 5)]).double()}
    batch, w_P = MiniBatches(x, y, weight_CB, fresh_C=torch.tensor(fresh)), task.initial_params()
    plain, stacked = (
        kind(task, torch.zeros(0), memory=memory) for kind in (AutogradGradient, StackedGradient)
    )
    for method in ("__call__", "each"):
        for mine, theirs in zip(
            getattr(plain, method)(w_P, batch), getattr(stacked, method)(w_P, batch), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(plain.memory_after["hidden"], stacked.memory_after["hidden"])
    assert not plain.memory_after["hidden"][3].any()


def test_penalties_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    module = lstm((WINDOW,), TOKENS, embed=3, hidden=5)
    task, plain = task_of(module, activation_penalty=2.0, slowness_penalty=1.0), task_of(module)
    x, y = torch.randint(TOKENS, (2, 3, WINDOW))
    found, without = (one.losses(None, torch.zeros(0), Samples(x, y)).losses_B for one in (task, plain))
    h = module(x, torch.zeros(3, module.state_size).double()).hidden_BTH
    wanted = 2 * h.pow(2).mean((1, 2)) + (h[:, 1:] - h[:, :-1]).pow(2).mean((1, 2))
    torch.testing.assert_close(found - without, wanted)
    assert task.evaluate(task.initial_params(), torch.zeros(0), x, y) == plain.evaluate(
        plain.initial_params(), torch.zeros(0), x, y
    )


ALGORITHMS: list[dict[str, object]] = [
    {"algorithm": "sisa"},
    {"algorithm": "pisa", "batches-per-round": 2, "local-steps": 2},
    {"algorithm": "fedavg", "local-epochs": 1},
    {"algorithm": "scaffold", "local-steps": 3},
    {"algorithm": "fedgia"},
    {"algorithm": "scaffnew"},
    {"algorithm": "fedsgd", "optimizer": "adam"},
]


@pytest.mark.parametrize("options", ALGORITHMS, ids=lambda options: str(options["algorithm"]))
@pytest.mark.parametrize(
    ("carry", "model"),
    [("epoch", "lstm"), ("epoch", f"{__name__}:own_rnn"), ("round", f"{__name__}:own_rnn")],
)
def test_engines_agree(options: dict[str, object], carry: CarryState, model: str) -> None:
    if options["algorithm"] == "scaffnew":
        carry = "round"
    own = {} if model == "lstm" else {"model": model, "embed": None, "hidden": None}
    config = {k: v for k, v in keys(**options, carry_state=carry, **own).items() if v is not None}
    found = [fedpisa.run({**config, "engine": engine}).parameters for engine in ("loop", "vmap")]
    torch.testing.assert_close(
        *(torch.as_tensor(np.concatenate([v.ravel() for v in p.values()])) for p in found),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("carry", ["epoch", "round"])
@pytest.mark.parametrize("model", ["lstm", f"{__name__}:own_rnn"])
@pytest.mark.parametrize("size", [3, 5, 9])
def test_engines_agree_where_a_text_has_fewer_streams_than_a_batch(
    size: int, model: str, carry: CarryState
) -> None:
    """The clients have 7, 4 and 10 windows, and so, with 3 streams at most, 3, 2 and 3 of them."""
    own = {} if model == "lstm" else {"model": model, "embed": None, "hidden": None}
    given = keys(algorithm="fedavg", local_steps=3, carry_state=carry, **own, **{"batch-size": size})
    config = {k: v for k, v in given.items() if v is not None}
    loop, vmap = (fedpisa.run({**config, "engine": engine}).parameters for engine in ("loop", "vmap"))
    for name, value in loop.items():
        np.testing.assert_allclose(vmap[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_streams_of_one_window_are_full_batches_without_a_state(engine: str) -> None:
    """With room for all windows side by side, each stream begins anew in each step."""
    common = keys(algorithm="fedavg", local_steps=3, engine=engine)
    streams = fedpisa.run({**common, "batch-size": 12}).parameters
    full = fedpisa.run({**common, "batch-size": "full", "carry-state": "none"}).parameters
    for name, value in full.items():
        np.testing.assert_allclose(streams[name], value, rtol=1e-12, atol=1e-14)


def test_a_carried_state_changes_the_run() -> None:
    found = [
        fedpisa.run(keys(algorithm="fedavg", local_steps=2, carry_state=carry))
        for carry in ("none", "round", "epoch")
    ]
    losses = {result.history["test_loss"].iloc[-1] for result in found}
    assert len(losses) == 3


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_resumed_run_has_the_same_bytes(tmp_path: Path, engine: str) -> None:
    config = keys(algorithm="sisa", engine=engine, lstm_dropout=0.3, checkpoint_every=1)
    whole = fedpisa.run(config, out=tmp_path / "whole")
    fedpisa.run({**config, "num-server-rounds": 3}, out=tmp_path / "part")
    resumed = fedpisa.run({"num-server-rounds": 5}, resume=tmp_path / "part", allow=[__name__])
    assert whole.parameters.keys() == resumed.parameters.keys()
    for name, value in whole.parameters.items():
        assert np.array_equal(value, resumed.parameters[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partitioner": "iid"}, "do not follow each other"),
        ({"batch-size": "full"}, "carries nothing"),
        ({"model": "bigram", "embed": None, "hidden": None}, "recurrent model"),
        ({"algorithm": "moon"}, "compares features"),
        ({"algorithm": "scaffnew"}, "different numbers of steps"),
    ],
)
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_what_cannot_be_carried_is_refused(options: dict[str, object], message: str, engine: str) -> None:
    config = keys(algorithm="fedavg", engine=engine) | options
    with pytest.raises(ValueError, match=message):
        Simulation(RunConfig.from_mapping({k: v for k, v in config.items() if v is not None}))


def test_validation_windows_are_the_last_ones() -> None:
    result = fedpisa.run(keys(algorithm="fedavg", validation_fraction=0.3))
    assert result.history["validation_perplexity"].notna().all()


def test_one_text_is_cut_into_consecutive_pieces() -> None:
    result = fedpisa.run(keys(algorithm="fedavg", partitioner="consecutive", num_clients=1))
    assert np.isfinite(result.history["test_loss"]).all()
