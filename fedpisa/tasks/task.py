"""A task: a module and its loss, called with flat vectors.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``B`` samples of a mini-batch, ``n`` samples in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpisa.rng import seeded
from fedpisa.tasks.batchnorm import MaskedBatchNorm, mask_batchnorms, real_rows
from fedpisa.tasks.buffers import BufferLayout
from fedpisa.tasks.features import FeatureLoss, with_features
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.losses import Loss, sample_losses
from fedpisa.tasks.module_values import Held, holding, own_attributes
from fedpisa.tasks.modules import places


@final
@dataclass(frozen=True)
class Task:
    """A module and its loss as functions of flat parameter and buffer vectors.

    Parameters
    ----------
    module
        The network. Its plain BatchNorms are replaced in place by `MaskedBatchNorm`; its tensors serve only as initial
        values.
    num_classes
        Number of labels; ``None`` for regression.
    autocast
        Whether the forward pass of training uses bfloat16 where `torch.autocast` finds that safe.

    Examples
    --------
    >>> task = Task(nn.Linear(3, 2), num_classes=2)
    >>> task.layout.size, task.buffer_layout.size, task.loss(2)
    (8, 0, 'cross-entropy')
    """

    module: nn.Module
    num_classes: int | None
    autocast: bool = False
    layout: ParamLayout = field(init=False)
    buffer_layout: BufferLayout = field(init=False)
    _observed: nn.Module = field(init=False, repr=False)
    _places: Mapping[str, tuple[str, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", mask_batchnorms(self.module))
        object.__setattr__(self, "layout", ParamLayout.of_parameters(self.module))
        object.__setattr__(self, "buffer_layout", BufferLayout.of(self.module))
        object.__setattr__(self, "_observed", _Observed(self.module))
        object.__setattr__(self, "_places", places(self._observed))
        if not self.layout.names:
            raise ValueError(
                "the model has no trainable parameters: give it a layer that learns, or unfreeze one"
            )

    def loss(self, num_outputs: int) -> Loss:
        """Return the loss for a number of outputs; a single output for two classes is a logit."""
        if self.num_classes is None:
            return "half-squared-error"
        return "binary" if self.num_classes == 2 and num_outputs == 1 else "cross-entropy"

    @property
    def mixes_samples(self) -> bool:
        """Whether the outputs or buffers depend on several samples, as with BatchNorm's statistics."""
        return bool(self.buffer_layout.names) or any(
            isinstance(layer, MaskedBatchNorm) for layer in self.module.modules()
        )

    def initial_params(self) -> Tensor:
        """Return the module's initial parameters as a flat vector ``(P,)``."""
        return self.layout.flatten({n: p.detach() for n, p in self.module.named_parameters()})

    def initial_buffers(self) -> Tensor:
        """Return the module's initial buffers as a flat vector ``(Q,)`` of the parameters' dtype."""
        return self.buffer_layout.flatten(dict(self.module.named_buffers()), self.layout.dtype)

    def holding(self, params_P: Tensor, buffers_Q: Tensor) -> AbstractContextManager[Held]:
        """Put these values into the module inside the block. Calls with ``params = None`` use them."""
        return holding(self.module, self.layout, self.buffer_layout, params_P, buffers_Q)

    def losses(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        x: Tensor,
        y_B: Tensor,
        mask_B: Tensor | None,
        extra: FeatureLoss | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the samples' losses ``(B,)`` in training mode, and the buffers ``(Q,)`` after the pass.

        ``params = None`` stands for what the module holds; see `holding`. ``mask_B`` is 1 for a sample and 0 for
        padding, or ``None`` without padding. ``extra`` changes only the derivatives of the losses; see `FeatureLoss`.
        """
        if extra is None:
            outputs, buffers = self.outputs(params, buffers_Q, x, mask_B)
        else:
            held = params is None
            anchors = [self.features(anchor_P, buffers_Q, x, mask_B, held=held) for anchor_P in extra.anchors]
            (outputs, buffers), features_BF = with_features(
                self.module, lambda: self.outputs(params, buffers_Q, x, mask_B)
            )
        losses_B = sample_losses(self.loss(outputs.shape[-1]), outputs, y_B)
        if extra is not None:
            extra_B = extra.loss(features_BF.to(x.dtype), *anchors)
            losses_B = losses_B + (extra_B - extra_B.detach())
        if self.buffer_layout.names:
            buffers_Q = self.buffer_layout.flatten(buffers, buffers_Q.dtype)
        return losses_B, buffers_Q

    def outputs(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the module's outputs in training mode, and its buffers after the pass."""
        self.module.train()
        with real_rows(mask_B), self._precision(x):
            outputs, buffers = self._call(params, buffers_Q, x)
        return outputs.to(x.dtype), buffers

    def _call(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the module's outputs and its buffers after the pass; the arguments stay unchanged."""
        # A forward pass may write into its input and its buffers, so it gets copies.
        if params is None:
            outputs, after = self._observed(x.clone())
        else:
            buffers = {name: b.clone() for name, b in self.buffer_layout.unflatten(buffers_Q).items()}
            tensors = {
                place: tensor
                for name, tensor in {**params, **buffers}.items()
                for place in self._places[f"module.{name}"]
            }
            # `_places` resolves ties: for a layer with two names, PyTorch would leave a substituted tensor there.
            outputs, after = functional_call(self._observed, tensors, (x.clone(),), tie_weights=False)
        if not isinstance(outputs, Tensor):
            mode = "training" if self.module.training else "evaluation"
            raise ValueError(
                f"the model returns a {type(outputs).__name__} in {mode}: return one tensor (samples, outputs)"
            )
        return outputs, after

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast)

    def features(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None, *, held: bool = False
    ) -> Tensor:
        """Return the samples' features ``(B, F)`` without dropout, and with BatchNorms as in training.

        BatchNorms use the mini-batch's statistics, because the running ones belong to another model, and do not update
        the running ones. The features carry no gradient. See `with_features`. The module holds ``params_P`` meanwhile
        if ``held`` is true.
        """
        if held:
            with torch.no_grad(), self.holding(params_P, buffers_Q):
                return self._features(None, buffers_Q, x, mask_B)
        return self._features(self.layout.unflatten(params_P), buffers_Q, x, mask_B)

    def _features(
        self, params: Mapping[str, Tensor] | None, buffers_Q: Tensor, x: Tensor, mask_B: Tensor | None
    ) -> Tensor:
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, MaskedBatchNorm):
                layer.train()
        with real_rows(mask_B), self._precision(x):
            _, features_BF = with_features(self.module, lambda: self._call(params, buffers_Q, x))
        return features_BF.detach().to(x.dtype)

    def eval_losses(self, x: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples' losses and whether each is classified correctly, both ``(B,)``, in evaluation mode.

        The module's own parameters and buffers are used; see `holding`.
        """
        self.module.eval()
        outputs, _ = self._call(None, x.new_zeros(0), x)
        loss = self.loss(outputs.shape[-1])
        if loss == "cross-entropy":
            correct_B = outputs.argmax(-1) == y_B
        else:
            correct_B = (outputs.reshape(y_B.shape) > 0) == (y_B > 0)
        return sample_losses(loss, outputs, y_B), correct_B

    @torch.no_grad()
    def evaluate(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor, batch_size: int = 4096
    ) -> dict[str, float]:
        """Return the mean loss and, for classification, the accuracy on ``n`` samples.

        Returns
        -------
        dict
            ``loss`` and ``accuracy`` (in [0, 1]; NaN if the loss is not finite, and absent for regression).
        """
        batch_size -= len(x) % batch_size == 1  # a single sample has no batch statistics
        totals = torch.zeros(2, dtype=torch.float64, device=x.device)
        with seeded(0, "evaluation"), own_attributes(self.module):
            for x_B, y_B in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
                with self.holding(params_P, buffers_Q):
                    losses_B, correct_B = self.eval_losses(x_B, y_B)
                totals += torch.stack([losses_B.sum(dtype=torch.float64), correct_B.sum(dtype=torch.float64)])
        loss, accuracy = (totals / len(x)).tolist()
        accuracy = (
            accuracy if math.isfinite(loss) else math.nan
        )  # outputs that are not finite classify nothing
        return {"loss": loss} if self.num_classes is None else {"loss": loss, "accuracy": accuracy}


@final
class _Observed(nn.Module):
    """A module that also returns its buffers, which a forward pass may replace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the module's outputs and its buffers by name."""
        return self.module(x), dict(self.module.named_buffers())
