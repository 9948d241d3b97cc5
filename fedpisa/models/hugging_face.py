"""Pretrained causal language models in Hugging Face's folders: trained whole, or by low-rank adapters.

Shapes: ``B`` sequences of ``T`` tokens, ``V`` tokens of the data's vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpisa.typing import NonNegativeInt, PositiveInt

_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_CHUNK: Final = 1 << 24


def hf_causal_lm(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    pretrained: str,
    lora_rank: NonNegativeInt = 0,
    lora_alpha: PositiveInt = 8,
    lora_modules: tuple[str, ...] = (),
) -> nn.Module:
    """Causal language model in a local folder of Hugging Face's ``transformers``, with all weights or LoRA [1]_.

    It needs the extra ``language``. With ``lora-rank`` r each chosen layer ``W`` becomes ``W + (alpha / r) B A``. Only
    ``A`` and ``B`` are trained and sent. ``B`` starts at zero, so round 0 is the pretrained model. The weights are read
    as float32. Nothing is downloaded, no code of the folder is run, and pickled weights are refused.

    Token ``i`` of the data is token ``i`` of the model. The data's vocabulary may be smaller than the model's: the
    logits of further tokens are left out, so the probabilities are those among the data's tokens.

    `fedpisa.runs.merged.save_merged` writes the trained model of a run's directory as such a folder.

    Parameters
    ----------
    shape
        ``(T,)``, length of a sequence.
    num_outputs
        Size V of the data's vocabulary.
    pretrained
        Folder with ``config.json`` and ``model.safetensors``, as ``save_pretrained`` writes it.
    lora_rank
        Rank r of the adapters; 0 trains all weights.
    lora_alpha
        Scale of the adapters; their product is multiplied by ``lora-alpha / lora-rank``.
    lora_modules
        Names of the layers with adapters, as ``target_modules`` of ``peft``; ``all-linear`` alone names all linear
        layers but the last. By default those that ``peft`` chooses for the architecture.

    Raises
    ------
    ValueError
        If the extra is missing, the folder has no safetensors or cannot be read, the vocabulary or the window does not
        fit, or the adapters' keys do not.

    References
    ----------
    .. [1] Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685.
    """
    if len(shape) != 1:
        raise ValueError(
            f"model 'hf-causal-lm' needs sequences of tokens (length,), and a sample has shape {shape}: take text, "
            "such as dataset = 'tinyshakespeare'"
        )
    if lora_modules and not lora_rank:
        raise ValueError(
            "lora-modules has no effect with lora-rank = 0: set lora-rank, such as 8, or remove it"
        )
    folder = Path(os.path.expanduser(pretrained))
    files = _weight_files(folder)
    with _quiet():
        base = _load(folder)
        _require_fit(base.config, shape[0], num_outputs)
        model = _with_adapters(base, lora_rank, lora_alpha, lora_modules) if lora_rank else base
    return CausalLM(model, num_outputs, str(folder), _digest(folder, files))


@final
class CausalLM(nn.Module):
    """A model of ``transformers``, or of ``peft`` around one, as a function of tokens alone.

    Parameters
    ----------
    model
        The model.
    num_outputs
        Size V of the data's vocabulary.
    pretrained, digest
        The folder that the model comes from, and a digest of its configuration and weights.
    """

    def __init__(self, model: nn.Module, num_outputs: int, pretrained: str, digest: str) -> None:
        super().__init__()
        self.model = model.train()
        self.num_outputs = num_outputs
        self.pretrained, self.digest = pretrained, digest
        _keep_constants(self)

    @property
    def base(self) -> dict[str, str]:
        """The folder and its digest."""
        return {"pretrained": self.pretrained, "digest": self.digest}

    @property
    def is_adapted(self) -> bool:
        """Whether adapters are trained and the base is frozen."""
        return hasattr(self.model, "merge_and_unload")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, T, V)`` for tokens ``(B, T)``."""
        logits_BTV: Tensor = self.model(input_ids=x, use_cache=False).logits[..., : self.num_outputs]
        return logits_BTV


def save_merged(
    parameters: Mapping[str, NDArray[Any]], out: str | Path, *, digest: str = "", **keys: Any
) -> None:
    """Write the trained model, with its adapters merged into the weights, as a folder for ``from_pretrained``.

    The folder has no tokenizer: copy that of the base if you need it. `fedpisa.runs.merged.save_merged` does the same
    from the directory of a run.

    Parameters
    ----------
    parameters
        The run's ``result.parameters``.
    out
        The folder, which is new or empty.
    digest
        Digest of the base with which the run was trained; empty for any.
    keys
        The run's keys ``pretrained``, ``lora_rank``, ``lora_alpha`` and ``lora_modules``.

    Raises
    ------
    ValueError
        If ``out`` is not empty, the base is another one, or the parameters are those of another model.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty: name a new folder")
    wrapped = hf_causal_lm((1,), 1, **keys)
    assert isinstance(wrapped, CausalLM)
    if digest and digest != wrapped.digest:
        raise ValueError(
            f"the model in {wrapped.pretrained} is not the one that the run was trained from: put the original back"
        )
    trained = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    missing = [name for name in trained if name not in parameters]
    if missing:
        raise ValueError(f"the parameters lack {missing[0]!r}: give those of a run with the same keys")
    with torch.no_grad(), _quiet():
        for name, weight in trained.items():
            weight.copy_(torch.from_numpy(parameters[name]))
        model: Any = wrapped.model
        merged = model.merge_and_unload() if wrapped.is_adapted else model
        merged.save_pretrained(folder)


def _load(folder: Path) -> Any:
    """Return the model in a folder, in float32."""
    transformers = _transformers()
    try:
        # Attention is named because a configuration could name a kernel that is downloaded.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
        )
    except Exception as error:  # of any kind, by a damaged file or an unknown architecture
        raise ValueError(
            f"pretrained {folder} cannot be read as a causal language model ({' '.join(str(error).split())}): write it "
            "with save_pretrained of transformers"
        ) from error
    return model.float()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "model 'hf-causal-lm' needs the extra language; run pip install 'fedpisa[language]'"
        ) from error
    return transformers


def _with_adapters(base: nn.Module, rank: int, alpha: int, modules: tuple[str, ...]) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            "lora-rank > 0 needs the package peft; run pip install 'fedpisa[language]'"
        ) from error
    target = "all-linear" if list(modules) == ["all-linear"] else list(modules) or None
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=target)
    try:
        model: nn.Module = peft.get_peft_model(base, config)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, layer in base.named_modules() if _is_linear(layer)})
        raise ValueError(
            f"no adapters for lora-modules = {list(modules)} ({' '.join(str(error).split())}): name some of "
            f"{', '.join(names)}"
        ) from error
    return model


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _require_fit(config: Any, window: int, num_outputs: int) -> None:
    """Refuse data with more tokens, or longer sequences, than the model has."""
    if num_outputs > config.vocab_size:
        raise ValueError(
            f"the data have {num_outputs} tokens, and the pretrained model {config.vocab_size}: take data with its "
            "vocabulary, or another model"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise ValueError(
            f"the pretrained model takes sequences of at most {longest} tokens, and a sample has {window}: set window "
            f"to at most {longest}"
        )


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files with weights; refuse what is pickled, or is no whole model."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"pretrained {folder} is not a folder with config.json; give a local folder that save_pretrained of "
            "transformers wrote"
        )
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"pretrained {folder} has adapters; merge them first, with merge_and_unload and save_pretrained"
        )
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if not (folder / _INDEX).is_file():
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        found = f"pickled weights ({pickled[0].name})" if pickled else "no weights"
        raise ValueError(
            f"pretrained {folder} has {found} and no model.safetensors, and only safetensors are read; write it again "
            "with model.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        names = sorted(set(json.loads((folder / _INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{folder / _INDEX} is damaged; write the model again with save_pretrained"
        ) from error
    for name in names:
        if not name.endswith(".safetensors") or Path(name).name != name or not (folder / name).is_file():
            raise ValueError(
                f"{folder / _INDEX} names {name!r}, which is no safetensors file beside it; write the model again with "
                "save_pretrained"
            )
    return [_INDEX, *names]


def _digest(folder: Path, files: list[str]) -> str:
    """Return 32 hexadecimal digits of the configuration and the weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ["config.json", *files]:
        with open(folder / name, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _keep_constants(module: nn.Module) -> None:
    """Make buffers that are not stored, such as masks and frequencies, frozen parameters, which are not sent."""
    for layer in module.modules():
        for name in sorted(layer._non_persistent_buffers_set & set(layer._buffers)):
            constant = layer._buffers[name]
            if constant is not None:
                delattr(layer, name)
                setattr(layer, name, nn.Parameter(constant, requires_grad=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ``transformers`` and ``peft`` from printing inside the block."""
    log = _transformers().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
