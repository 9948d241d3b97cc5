"""The trained model of a run of ``hf-causal-lm``, as a folder of Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpisa.models import hugging_face
from fedpisa.runs.results import load_result
from fedpisa.runs.run_files import RunReader


def save_merged(directory: str | Path, out: str | Path, pretrained: str = "") -> None:
    """Write a run's model, with its adapters merged, as a folder that ``transformers`` reads.

    The folder has no tokenizer: copy that of the base if you need it.

    Parameters
    ----------
    directory
        The run's directory.
    out
        The folder, which is new or empty.
    pretrained
        Where the base lies now; by default where it was. Its digest must be that of the run.

    Raises
    ------
    ValueError
        If the run has another model or has not ended, ``out`` is not empty, or the base is another one.
    """
    result = load_result(directory)
    if result.config.model != "hf-causal-lm":
        raise ValueError(
            f"the run in {directory} has model {result.config.model!r}: name one of 'hf-causal-lm'"
        )
    if not result.parameters:
        raise ValueError(f"the run in {directory} has written no model yet: wait until it has ended")
    values: dict[str, Any] = {
        key.replace("-", "_"): value
        for key, value in result.config.values_of(result.config.component("model")).items()
    }
    if pretrained:
        values["pretrained"] = pretrained
    digest = RunReader(Path(directory)).base().get("digest", "")
    hugging_face.save_merged(result.parameters, out, digest=digest, **values)
