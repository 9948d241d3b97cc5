"""Classification: one of several classes for each sample.

Shapes: ``B`` samples of a mini-batch, ``n`` samples in all, ``C`` classes, ``F`` outputs of a sample: ``C``, or 1 for
two classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fedpisa.tasks.criterion import Criterion
from fedpisa.tasks.losses import Loss, sample_losses
from fedpisa.tasks.measures import ACCURACY, LOSS, Measure
from fedpisa.tasks.scores import MEASURES, ClassMetric, of_classes, require_distinct
from fedpisa.typing import Decay, NonNegative


def classification(
    num_outputs: int,
    labels: NDArray[np.int64] | None,
    *,
    class_weights: Literal["none", "balanced"] | tuple[NonNegative, ...] = "none",
    label_smoothing: Decay = 0.0,
    focal_gamma: NonNegative = 0.0,
    metrics: tuple[ClassMetric, ...] = (),
) -> Criterion:
    r"""Cross-entropy of class labels.

    ``loss_i = (1 - p_y)^gamma sum_c t_c w_c (-log p_c)``, where ``p`` are the classes' probabilities and
    ``t_c = (1 - s) [c = y] + s / C``. Loss columns hold this loss on every set.

    Parameters
    ----------
    num_outputs
        Number of classes.
    labels
        The training labels ``(n,)``; ``None`` if clients bring their own.
    class_weights
        Weights ``w_c`` of the classes, one each; ``balanced`` for ``n / (C' n_c)``, where ``n_c`` training samples
        have the class and ``C'`` classes occur, so that all classes count the same.
    label_smoothing
        Share ``s`` of the label that all classes get equally.
    focal_gamma
        Exponent ``gamma`` of the focal loss, which gives less weight to samples that are classified well.
    metrics
        Further measures: ``f1-macro``, ``f1-micro``, ``balanced-accuracy``, ``top-5``, ``auroc``.

    Raises
    ------
    ValueError
        If the weights do not fit the classes, the labels to balance are no classes, or a metric is named twice.

    References
    ----------
    Lin, Goyal, Girshick, He, Dollár (2017), Focal loss for dense object detection.
    """
    require_distinct(metrics)
    weights = _class_weights(class_weights, num_outputs, labels)
    return Classification(num_outputs, weights, label_smoothing, focal_gamma, metrics)


def _class_weights(
    given: Literal["none", "balanced"] | tuple[float, ...], classes: int, labels: NDArray[np.int64] | None
) -> tuple[float, ...] | None:
    if given == "none":
        return None
    if given == "balanced":
        if labels is None:
            raise ValueError(
                'class-weights = "balanced" needs the training labels, which only the nodes have: give a list with '
                "one weight for each class"
            )
        Classification(classes).check(torch.tensor(labels[:1]))
        counts_C = np.bincount(labels, minlength=classes)
        occur = counts_C > 0
        weights_C = np.where(occur, len(labels) / (occur.sum() * np.maximum(counts_C, 1)), 1.0)
        return tuple(weights_C.tolist())
    if len(given) != classes or not any(given):
        raise ValueError(
            f"class-weights = {list(given)}: give one weight for each of the {classes} classes, not all 0"
        )
    return given


@final
@dataclass(frozen=True)
class Classification(Criterion):
    """Cross-entropy of class labels; see `classification`.

    Examples
    --------
    >>> plain, smooth = Classification(2), Classification(2, label_smoothing=0.5)
    >>> outputs, y = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> [round(float(one.loss(outputs, y)), 4) for one in (plain, smooth)]
    [0.1269, 0.6269]
    """

    num_classes: int
    weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    metrics: tuple[ClassMetric, ...] = ()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Accuracy, loss and the further metrics."""
        return (ACCURACY, LOSS, *(MEASURES[name] for name in self.metrics))

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return the loss without weights, smoothing and focus; a single output for two classes is a logit."""
        if self.weights or self.label_smoothing or self.focal_gamma:
            return None
        return "binary" if self.num_classes == 2 and num_outputs == 1 else "cross-entropy"

    def check(self, y: Tensor) -> None:
        """Refuse targets that are not one class for each sample."""
        if y.is_floating_point() or y.dim() != 1:
            what = "numbers" if y.is_floating_point() else f"targets of shape {tuple(y.shape[1:])}"
            raise ValueError(
                f"task = 'classification' needs one class for each sample, and the data have {what}: take "
                f"{'regression' if y.dim() == 1 else 'multi-label'}"
            )

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss ``(B,)`` from the outputs ``(B, F)``."""
        closed = self.closed_form(outputs.shape[-1])
        if closed:
            return sample_losses(closed, outputs, y)
        outputs, weights_C = self._per_class(outputs), None
        if self.weights:
            weights_C = torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)
        losses_B = F.cross_entropy(
            outputs, y, weights_C, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.focal_gamma:
            miss_B = -torch.expm1(-F.cross_entropy(outputs, y, reduction="none"))
            # The derivative of a fractional power is infinite at 0.
            losses_B = losses_B * miss_B.clamp(min=torch.finfo(outputs.dtype).tiny) ** self.focal_gamma
        return losses_B

    def sample_scores(self, outputs: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return whether each sample is classified correctly ``(B,)``."""
        if self.num_classes == 2 and outputs.shape[-1] == 1:
            return {"accuracy": (outputs.reshape(y.shape) > 0) == (y > 0)}
        return {"accuracy": outputs.argmax(-1) == y}

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means, which are measures."""
        return dict(means)

    def set_scores(self) -> Callable[[Tensor, Tensor], Mapping[str, float]] | None:
        """Return the further metrics as a function, or ``None`` if there are none."""
        return self._scores if self.metrics else None

    def _scores(self, outputs: Tensor, y_n: Tensor) -> dict[str, float]:
        probs_nC, y = self._per_class(outputs).double().softmax(-1).numpy(), y_n.numpy()
        return {MEASURES[name].column: of_classes(name, probs_nC, y) for name in self.metrics}

    def _per_class(self, outputs: Tensor) -> Tensor:
        """Return one output for each class; a logit ``z`` stands for ``(0, z)``."""
        if self.num_classes == 2 and outputs.shape[-1] == 1:
            return torch.cat([torch.zeros_like(outputs), outputs], -1)
        return outputs
