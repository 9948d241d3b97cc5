"""Networks of workloads that fedpisa has not by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn

from fedpisa.bench.workloads import SEED
from fedpisa.models.hugging_face import hf_causal_lm

RANK: Final = 4
"""Rank of the adapters."""


def vit(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """Torchvision's vision transformer for small grey images: patches of 7x7, width 64, 4 layers, 4 heads.

    The classes of torchvision's names take images of 224x224 alone.

    Parameters
    ----------
    shape
        ``(1, H, H)``, shape of an image; ``H`` is a multiple of 7.
    num_outputs
        Number of classes.

    Examples
    --------
    >>> sum(parameter.numel() for parameter in vit((1, 28, 28), 10).parameters())
    139018
    """
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=shape[-1],
        patch_size=7,
        num_layers=4,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=num_outputs,
    )
    model.conv_proj = nn.Conv2d(shape[0], 64, kernel_size=7, stride=7)
    return model


def lora(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """``hf-causal-lm`` with adapters of rank 4 on a random GPT-2 of width 64, 2 layers and 4 heads.

    The pretrained folder is temporary.

    Parameters
    ----------
    shape
        ``(T,)``, length of a sequence.
    num_outputs
        Number of tokens.
    """
    with TemporaryDirectory() as folder:
        save_random_gpt2(Path(folder), shape[0], num_outputs)
        return hf_causal_lm(shape, num_outputs, pretrained=folder, lora_rank=RANK)


def save_random_gpt2(folder: Path, window: int, tokens: int) -> None:
    """Write a small GPT-2 with random weights, the same in every process, and without dropout."""
    transformers: Any = import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    config = transformers.GPT2Config(
        vocab_size=tokens,
        n_positions=window,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
