"""A language model on nodes, each with a text of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpisa
from fedpisa.config.run import RunConfig
from fedpisa.datasets.text import own_windows


def text(seed: int, size: int, tokens: str = "abcd e") -> str:
    return "".join(np.random.default_rng(seed).choice(list(tokens), size))


@pytest.fixture
def server(tmp_path: Path) -> RunConfig:
    (tmp_path / "server.txt").write_text(text(9, 300))
    keys = {
        "dataset": "text",
        "data-file": str(tmp_path / "server.txt"),
        "window": 5,
        "model": "lstm",
        "hidden": 4,
    }
    more = {
        "num-clients": 3,
        "num-server-rounds": 3,
        "batch-size": 4,
        "partitioner": "iid",
        "algorithm": "sisa",
    }
    return RunConfig.from_mapping({**keys, **more, "dtype": "float64"})


def test_nodes_train_on_texts_of_their_own(nodes: Any, server: RunConfig, tmp_path: Path) -> None:
    """The model is that of a simulation whose clients have the nodes' windows."""
    sizes = (61, 97, 160)
    files = []
    for client, size in enumerate(sizes):
        folder = tmp_path / f"own-{client}"
        folder.mkdir()
        (folder / "a.txt").write_text(text(client, size))
        files.append(str(folder) if client else str(folder / "a.txt"))
    network = nodes.network(tmp_path / "nodes", server, data=files)
    result = nodes.start(network, server, tmp_path / "run", own_data=True)
    assert result.status == "finished"
    assert result.headline.column == "test_perplexity"

    vocabulary = tuple(sorted("abcd e"))
    parts = [own_windows(Path(file), vocabulary, False, 5) for file in files]
    assert [len(x) for x, _ in parts] == [(size - 1) // 5 for size in sizes]
    from fedpisa.families import data

    whole = data.load("text", data_file=server.options["data-file"], window=5)
    groups = np.repeat(np.arange(3), [len(x) for x, _ in parts])
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    simulated = fedpisa.datasets.Dataset.of(
        "own", (x, y), (whole.x_test, whole.y_test), num_classes=6, vocabulary=vocabulary, groups=groups
    )
    SETS["own"] = simulated
    keys = {**server.to_mapping(), "dataset": f"{__name__}:own", "partitioner": "natural"}
    wanted = fedpisa.run(
        {key: value for key, value in keys.items() if key not in ("data-file", "window", "tokens")}
    )
    for name, value in wanted.parameters.items():
        np.testing.assert_allclose(result.parameters[name], value, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        result.history["test_perplexity"], wanted.history["test_perplexity"], rtol=1e-12
    )


def test_nodes_get_the_tokenizer_from_the_server(nodes: Any, server: RunConfig, tmp_path: Path) -> None:
    """It reads X as a, which no vocabulary of characters could."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra language")
    numbers = {token: number for number, token in enumerate("e dcba")}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="a"))
    own.normalizer = tokenizers.normalizers.Replace("X", "a")
    own.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    own.save(str(tmp_path / "tokenizer.json"))
    content = (tmp_path / "tokenizer.json").read_text()
    files = [tmp_path / f"{client}.own" for client in range(3)]
    for client, file in enumerate(files):
        file.write_text(text(client, 80).replace("a", "X"))
    x, _ = own_windows(files[0], (), False, 5, content)
    assert x.ravel().tolist() == [numbers[one] for one in text(0, 80)[:75]]
    config = server.replace({"tokens": str(tmp_path / "tokenizer.json")})
    network = nodes.network(tmp_path / "nodes", config, data=list(map(str, files)))
    result = nodes.start(network, config, tmp_path / "run", own_data=True)
    assert result.status == "finished"
    assert (tmp_path / "run" / "tokenizer.json").read_text() == content


SETS: dict[str, Any] = {}


def own() -> Any:
    return SETS["own"]


@pytest.mark.parametrize(
    ("content", "cause"), [("abcxyz" * 9, "lacks, such as"), ("abc", "no text for a window of 5")]
)
def test_what_cannot_be_used_is_said_on_the_node_alone(
    nodes: Any, server: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, cause: str
) -> None:
    files = [tmp_path / f"{client}.own" for client in range(3)]
    for client, file in enumerate(files):
        file.write_text(content if client == 1 else text(client, 80))
    network = nodes.network(tmp_path / "nodes", server, data=list(map(str, files)))
    with pytest.raises(ValueError, match="the node's own data cannot be used: its log says why") as caught:
        nodes.start(network, server, None, own_data=True)
    assert cause in caplog.text
    assert cause not in str(caught.value)
