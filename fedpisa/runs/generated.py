"""What a run's model makes for people to look at, texts or images, and a language model's tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import torch

from fedpisa.datasets.tokens import decode
from fedpisa.rng import seeded, torch_seed
from fedpisa.simulation.evaluated import examples
from fedpisa.tasks.gan import Gan
from fedpisa.tasks.generation import continued
from fedpisa.tasks.language import Language
from fedpisa.tasks.module_values import own_attributes
from fedpisa.tasks.supervised import Supervised

if TYPE_CHECKING:
    from torch import Tensor

    from fedpisa.simulation.federation import Federation

NUM_PROMPTS: Final = 3
"""Number of texts; each begins with the first half of a window of the test set."""
NUM_IMAGES: Final = 64
"""Number of generated images."""


def generated_files(federation: Federation, params_P: Tensor, buffers_Q: Tensor) -> dict[str, bytes]:
    """Return what the model makes, as files by name; most tasks make nothing.

    A further kind of samples is a further line here. Trackers show texts and PNG files.
    """
    made = {
        "samples.txt": _texts(federation, params_P, buffers_Q),
        "samples.png": _images(federation, params_P, buffers_Q),
    }
    return {name: content for name, content in made.items() if content is not None}


def _images(federation: Federation, params_P: Tensor, buffers_Q: Tensor) -> bytes | None:
    """Return images that the generator makes, side by side, as a PNG file; ``None`` without a generator of images.

    The seed decides the latent vectors. The darkest and the lightest pixel are those of the test set, by channel.
    """
    task = federation.task
    if not isinstance(task, Gan):
        return None
    x, _ = examples(federation.test)
    if x.dim() != 4:
        return None
    from fedpisa.plots.images import image_grid  # loads pandas, which most runs do without

    key = torch.tensor(torch_seed(federation.config.seed, "generated-images"), device=x.device)
    images = task.generated(params_P, buffers_Q, NUM_IMAGES, key)
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    return image_grid(*(part.double().cpu().numpy() for part in (images, low, high)))


def vocabulary_file(federation: Federation) -> bytes | None:
    """Return the tokens in the order of their numbers, as JSON; ``None`` without any, or with a tokenizer."""
    if federation.vocabulary is None or federation.tokenizer is not None:
        return None
    return (json.dumps(list(federation.vocabulary), ensure_ascii=False) + "\n").encode()


def tokenizer_file(federation: Federation) -> bytes | None:
    """Return the ``tokenizer.json`` that made the tokens; ``None`` if none did."""
    return None if federation.tokenizer is None else federation.tokenizer.encode()


@torch.no_grad()
def _texts(federation: Federation, params_P: Tensor, buffers_Q: Tensor) -> bytes | None:
    """Return texts that the model writes after prompts of the test set; ``None`` if there are none to write.

    The seed decides the draws, so the same model writes the same texts.
    """
    task, vocabulary = federation.task, federation.vocabulary
    if vocabulary is None or not isinstance(task, Supervised) or not isinstance(task.criterion, Language):
        return None
    length, x = task.criterion.sample_tokens, federation.test.x
    if not length or x.dim() != 2:
        return None
    rows = torch.linspace(0, len(x) - 1, min(NUM_PROMPTS, len(x))).round().long()
    window = x.shape[1]
    prompts = x[rows.to(x.device), : max(1, window // 2)]
    generator = torch.Generator().manual_seed(torch_seed(federation.config.seed, "generated-text"))
    held = task.holding(params_P, buffers_Q)
    with seeded(0, "evaluation"), own_attributes(task.module), held:
        texts = continued(task.eval_outputs, prompts, length, window, generator)
    parts = []
    for prompt, text in zip(prompts.tolist(), texts.tolist(), strict=True):
        before, after = (
            decode(part, vocabulary, federation.tokenizer) for part in (prompt, text[len(prompt) :])
        )
        parts.append(f"=== after {before!r}\n{after}\n")
    return "\n".join(parts).encode()
