"""What is learned: a module, its loss, and how both are called with flat vectors.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``B`` samples of a mini-batch, ``n`` samples in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpisa.tasks.batchnorm import MaskedBatchNorm, mask_batchnorms, real_rows
from fedpisa.tasks.features import FeatureLoss, with_features
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.losses import Loss, sample_losses


@final
@dataclass(frozen=True)
class Task:
    """A module and its loss as functions of flat parameter and buffer vectors.

    Parameters
    ----------
    module
        The network; its BatchNorms are replaced in place by layers that know padding, its own tensors
        serve only as initial values.
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
    buffer_layout: ParamLayout = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", mask_batchnorms(self.module))
        object.__setattr__(self, "layout", ParamLayout.of_parameters(self.module))
        object.__setattr__(self, "buffer_layout", ParamLayout.of_buffers(self.module))

    def loss(self, num_outputs: int) -> Loss:
        """Return the loss that fits the number of outputs: one for two classes is a logit."""
        if self.num_classes is None:
            return "half-squared-error"
        return "binary" if self.num_classes == 2 and num_outputs == 1 else "cross-entropy"

    @property
    def mixes_samples(self) -> bool:
        """Whether a mini-batch is more than its samples, because the module takes or keeps statistics of it."""
        return bool(self.buffer_layout.names) or any(
            isinstance(layer, MaskedBatchNorm) for layer in self.module.modules()
        )

    def initial_params(self) -> Tensor:
        """Return the module's own parameters as a flat vector ``(P,)``."""
        return self.layout.flatten({n: p.detach() for n, p in self.module.named_parameters()})

    def initial_buffers(self) -> Tensor:
        """Return the module's own buffers as a flat vector ``(Q,)`` of the parameters' dtype."""
        dtype = self.layout.dtypes[0]
        return self.buffer_layout.flatten(dict(self.module.named_buffers()), dtype)

    def losses(
        self,
        params: dict[str, Tensor],
        buffers_Q: Tensor,
        x: Tensor,
        y_B: Tensor,
        mask_B: Tensor,
        extra: FeatureLoss | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the samples' losses ``(B,)`` in training mode, and the buffers ``(Q,)`` after the pass.

        ``extra`` adds to their derivatives alone; see `FeatureLoss`.
        """
        self.module.train()
        # The layers write into their buffers: give them copies.
        buffers = {name: b.clone() for name, b in self.buffer_layout.unflatten(buffers_Q).items()}
        with real_rows(mask_B), self._precision(x):
            if extra is None:
                outputs = functional_call(self.module, {**params, **buffers}, (x,))
            else:
                outputs, features_BF = with_features(self.module, {**params, **buffers}, x)
        outputs = outputs.to(x.dtype)
        losses_B = sample_losses(self.loss(outputs.shape[-1]), outputs, y_B)
        if extra is not None:
            anchors = (self.features(anchor_P, buffers_Q, x, mask_B) for anchor_P in extra.anchors)
            extra_B = extra.loss(features_BF.to(x.dtype), *anchors)
            losses_B = losses_B + (extra_B - extra_B.detach())
        if buffers:
            buffers_Q = self.buffer_layout.flatten(buffers, buffers_Q.dtype)
        return losses_B, buffers_Q

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast)

    def features(self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, mask_B: Tensor) -> Tensor:
        """Return the samples' features ``(B, F)`` without noise: no dropout, and BatchNorms as in training.

        They take the mini-batch's statistics, because running ones are another model's; none are kept, and
        nothing can be differentiated. See `with_features`.
        """
        self.module.eval()
        for layer in self.module.modules():
            if isinstance(layer, MaskedBatchNorm):
                layer.train()
        buffers = {name: b.clone() for name, b in self.buffer_layout.unflatten(buffers_Q).items()}
        with real_rows(mask_B), self._precision(x):
            _, features_BF = with_features(self.module, {**self.layout.unflatten(params_P), **buffers}, x)
        return features_BF.detach().to(x.dtype)

    def eval_losses(
        self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the samples' losses and whether each is classified correctly, both ``(B,)``, in evaluation mode."""
        self.module.eval()
        tensors = {**self.layout.unflatten(params_P), **self.buffer_layout.unflatten(buffers_Q)}
        outputs = functional_call(self.module, tensors, (x,))
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
            ``loss`` and ``accuracy`` (in [0, 1]; absent for regression).
        """
        totals = torch.zeros(2, dtype=torch.float64, device=x.device)
        for x_B, y_B in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            losses_B, correct_B = self.eval_losses(params_P, buffers_Q, x_B, y_B)
            totals += torch.stack([losses_B.sum(dtype=torch.float64), correct_B.sum(dtype=torch.float64)])
        loss, accuracy = (totals / len(x)).tolist()
        return {"loss": loss} if self.num_classes is None else {"loss": loss, "accuracy": accuracy}
