"""Names and values in the form that users write and read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    name: keys
    for names, keys in (
        ("lr eta step-size stepsize client-lr local-lr", ("learning-rate",)),
        ("rounds num-rounds n-rounds global-rounds comm-rounds communication-rounds", ("num-server-rounds",)),
        ("clients n-clients num-users users num-nodes nodes n-parties num-supernodes", ("num-clients",)),
        ("epochs num-epochs n-epochs local-ep max-epochs", ("local-epochs", "local-steps")),
        ("steps num-steps local-iterations iterations iters", ("local-steps",)),
        ("bs batch batchsize local-bs train-batch-size", ("batch-size",)),
        ("alpha dirichlet concentration dir-alpha", ("dirichlet-alpha",)),
        ("prox-mu proximal-mu", ("mu",)),
        ("wd l2 decay weightdecay", ("weight-decay", "lambda")),
        ("opt optim client-optimizer local-optimizer server-optimizer", ("optimizer", "server-strategy")),
        ("scheduler lr-scheduler lr-schedule", ("schedule",)),
        ("warmup warmup-steps warmup-epochs", ("warmup-rounds",)),
        ("alg algo method aggregator", ("algorithm",)),
        ("strategy aggregation", ("algorithm", "server-strategy")),
        ("data dataset-name data-name data-set", ("dataset",)),
        ("data-path dataset-path dataroot root datadir path", ("data-dir", "data-file")),
        ("net network arch architecture model-name", ("model",)),
        ("hidden hidden-sizes hidden-size layers units width", ("widths",)),
        ("partition split distribution sampler non-iid niid iid", ("partitioner",)),
        ("classes-per-client shards-per-client num-classes-per-client", ("labels-per-client",)),
        (
            "participation participation-rate frac fraction fraction-fit sample-fraction client-fraction join-ratio",
            ("fraction-train",),
        ),
        ("random-seed random-state manual-seed rng", ("seed",)),
        ("gpu cuda use-cuda accelerator", ("device",)),
        ("precision float-type", ("dtype", "autocast")),
        ("amp mixed-precision bf16 fp16", ("autocast",)),
        ("clip-grad-norm grad-clip gradient-clip clip clip-norm clipping-norm", ("max-grad-norm",)),
        ("accumulation-steps gradient-accumulation", ("micro-batch-size",)),
        ("target-acc goal", ("target-accuracy",)),
        ("eval-freq eval-interval evaluate-every test-every eval-gap", ("eval-every",)),
        ("save-every checkpoint-interval checkpoint-freq save-freq", ("checkpoint-every",)),
        ("dp privacy", ("differential-privacy",)),
        ("timeout", ("round-timeout",)),
        ("workers num-workers jobs", ("num-cpus", "engine")),
        ("backend", ("engine", "device")),
        ("min-clients min-fit-clients min-available-clients", ("min-replies",)),
    )
    for name in names.split()
}
"""What other programs call a key, and the keys that are meant."""
MOST_LISTED: Final = 12
"""Names up to which an error message lists all."""


def kebab(name: str) -> str:
    """Return the kebab-case name of a Python name.

    Examples
    --------
    >>> kebab("label_dirichlet"), kebab("NewtonSchulz"), kebab("RMSProp"), kebab("lambda_")
    ('label-dirichlet', 'newton-schulz', 'rmsprop', 'lambda')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name.rstrip("_")).replace("_", "-").lower()


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidates, at most three, that a name may stand for.

    These are its synonyms, those with a similar spelling, and those that contain it. Return ``""`` if there are none.

    Examples
    --------
    >>> nearest("sigm", ["rho", "sigma"])
    "; did you mean 'sigma'?"
    >>> nearest("rounds", ["num-clients", "num-server-rounds", "warmup-rounds"])
    "; did you mean 'num-server-rounds' or 'warmup-rounds'?"
    """
    wanted, names = kebab(name), list(candidates)
    synonyms = [key for key in SYNONYMS.get(wanted, ()) if key in names]
    similar = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    longer = [one for one in names if len(wanted) > 2 and wanted in one]
    close = [repr(one) for one in dict.fromkeys([*synonyms, *similar, *longer])][:3]
    return f"; did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}?" if close else ""


def listed(names: Collection[str], family: str) -> str:
    """Return the names of a family's components, or the command that lists them if they are many.

    Examples
    --------
    >>> listed(["iid", "natural"], "partitioner"), listed(range(20), "algorithm")
    ('iid, natural', 'see fedpisa list algorithms')
    """
    plural = f"{family}s" if not family.endswith("y") else f"{family[:-1]}ies"
    return ", ".join(names) if len(names) <= MOST_LISTED else f"see fedpisa list {plural}"


def name_of(part: object) -> str:
    """Return the component name of a class or an instance: its attribute ``name``, or else its class name.

    Examples
    --------
    >>> class NewtonSchulz: ...
    >>> name_of(NewtonSchulz()), name_of(NewtonSchulz)
    ('newton-schulz', 'newton-schulz')
    """
    own = getattr(part, "name", None)
    return own if isinstance(own, str) else kebab((part if isinstance(part, type) else type(part)).__name__)


def show(value: object) -> str:
    """Return the text of a value in an error message."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def printable(text: object, length: int = 200) -> str:
    r"""Return another program's text in one line, without control characters and cut to ``length`` characters.

    Examples
    --------
    >>> printable("red: \x1b[31m\nok"), printable("x" * 9, length=4)
    ('red: \\x1b[31m\\nok', 'xxxx...')
    """
    begin = escaped(str(text)[: length + 1])
    return begin if len(begin) <= length else f"{begin[:length]}..."


def escaped(text: str) -> str:
    r"""Return a text that a terminal shows as it is: characters that control it or hide are escaped.

    Examples
    --------
    >>> escaped("a word"), escaped("\x1b[31mred\n")
    ('a word', '\\x1b[31mred\\n')
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def one_line(message: object) -> str:
    r"""Return an error's message, or another text, in one line that a terminal shows as it is.

    Examples
    --------
    >>> one_line(ValueError("two\nlines")), one_line("\x1b[2J")
    ('two lines', '\\x1b[2J')
    """
    return escaped(" ".join(str(message).split())) or type(message).__name__
