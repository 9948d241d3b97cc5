"""Models of all kinds train as in plain PyTorch on every engine, or a clear error refuses them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.contracts import zoo_tricks  # noqa: F401  (its models enter the table)
from tests.contracts.plain_fedavg import difference, plain, settings, simulated
from tests.contracts.zoo_layers import DATA, SHAPES, TOKENS

BY_AUTOGRAD = {
    # torch.func has no batching rule, or its rule assumes one model for all clients
    *("lstm", "lstm_bidirectional", "lstm_projected", "gru_sequence_first", "rnn_relu", "Attention"),
    *("transformer_encoder", "transformer_decoder", "MaxUnpool", "Bilinear", "embedding_bag", "activations"),
    *("in_place", "weight_norm", "weight_norm_by_hook", "spectral_norm", "spectral_norm_by_hook"),
}
"""Models whose clients run one by one in the stacked engine. Another version of PyTorch may stack them."""
LEFT_TO_THE_LOOP = {
    # kernels without a batching rule, and a shape or a layout that depends on the samples
    *("PackedSequence", "embedding_sparse"),
    # layers that mix samples, and statistics other than BatchNorm's
    *("instance_norm_with_statistics", "batch_norm_frozen", "FunctionalBatchNorm", "ghost_batch_norm"),
    *("RebindsBuffers", "Retrieval", "MovingAverage"),
    # code and tensors that `torch.func` cannot see or cannot reach
    *("checkpointed", "checkpointed_reentrant", "patched_by_closure", "TensorsInAList", "backward_hooks"),
    *("gradient_hooks", "accumulation_hooks", "own_function", "GradientInside", "DataDependent", "ByItem"),
    *("ByNumpy", "Experts", "NotToBeCopied", "SharesItsCopies", "CountsItsCalls"),
}
"""Models that are not stacked. Another version of PyTorch may stack them."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", DATA)
def test_the_model_is_trained_as_in_plain_pytorch(model: str) -> None:
    kind = DATA[model]
    keys = settings(f"tests.contracts.{model}", SHAPES[kind], whole=kind == TOKENS)
    wanted = plain(keys)
    paths = {}
    for engine in ("loop", "vmap", "auto"):
        outcome = simulated(keys, engine)
        paths[engine] = outcome.path
        if outcome.path == "refused":
            assert "\n" not in outcome.reason
            assert 'use engine = "loop"' in outcome.reason
        else:
            error, name = difference(outcome, wanted)
            assert error < 1e-9, f"{engine} ({outcome.path}): {name} differs by {error:.1e}"
    assert paths["loop"] == "loop"
    assert paths["auto"] == ("loop" if paths["vmap"] == "refused" else paths["vmap"])
    name = model.partition(":")[2]
    assert paths["vmap"] != "refused" or name in LEFT_TO_THE_LOOP
    assert paths["vmap"] != "autograd" or name in BY_AUTOGRAD
    assert paths["vmap"] != "stacked" or name not in {"lstm", "gru_sequence_first", "transformer_encoder"}


def test_there_are_models_of_all_kinds() -> None:
    assert len(DATA) >= 60
    assert {model.partition(":")[2] for model in DATA} >= LEFT_TO_THE_LOOP | BY_AUTOGRAD
