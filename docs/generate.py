"""Write ``docs/algorithms.md`` and ``docs/keys.md`` from the docstrings: ``python docs/generate.py``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedpisa.clients.base import LocalUpdate
from fedpisa.clients.preconditioners import Preconditioner
from fedpisa.components import REQUIRED, Component, Key, inspect_component, plain
from fedpisa.config.flower import NodeSettings
from fedpisa.config.run import run_keys
from fedpisa.families import available, keys_of
from fedpisa.strategies.base import Algorithm

HEAD = """\
# Algorithms

This page is generated from the docstrings by `python docs/generate.py`. Edit the docstrings.

Costs count vectors as long as the model, up and down per client and round. `N` is the number of clients. `K` is the
number of local steps, of one mini-batch each unless `batches-per-round` says more. The costs are those of the default
keys; the memory of another preconditioner or optimizer comes on top. `alpha_i` are the clients' weights, by default
`n_i / n`.

Some servers add uploads up (*incremental*). A lost reply must then not have moved its client. Such a client keeps its
vectors twice, after and before its last round, until the server confirms that round.
"""
SERVERS = """\
For `fedavg`, `fedprox`, `localsgd` and `moon`, the server's step is a mean of models. `server-strategy` names one of
Flower's strategies that takes its place, or your own class by `module:Class`. `differential-privacy` names the
mechanism `central`, which `pisa`, `sisa`, `spectral-pisa` and `nsisa` can use too, or one of Flower's wrappers.
Arguments of Flower's classes are keys; those of strategies have the prefix `server-`. Sampling and weights of clients
stay the same.

- BatchNorm's buffers are averaged and do not pass through the strategy. With privacy, a model with buffers is refused.
- [privacy.md](privacy.md) says what differential privacy protects, and which combinations are refused.
- Flower's FedAdam corrects the bias in round `t` as if it were round `t + 1`.
- `qfed-avg` takes the clients' `learning-rate` for `1 / L`.
"""
SCHEDULES = """\
The same keys serve all algorithms. `schedule` names one of the schedules below. With `warmup-rounds` W, the factor
first rises: it is `r / (W + 1)` in round `r`. `schedule-keys` names the keys that the factor acts on. It multiplies a
step size and divides the inverse of one.

- By default the factor acts on `learning-rate`, including that of `fedsgd`'s optimizer.
- An algorithm without a learning rate has the step `1 / (sigma + rho Q)` or `1 / (sigma + proximity)`. There the factor
  acts on `sigma`, `rho` and `proximity`.
- `server-learning-rate` and `server-step` change only if `schedule-keys` names them.
- In your own algorithm, annotate a key with `StepSize` or `InverseStepSize` of `fedpisa.typing`.

PISA's own `gamma` of (2.12) comes first: the penalty of a round is what `gamma` gives, divided by the factor. The gamma
of the paper's Table 7 is not this key. The authors' scripts multiply the step `1 / (sigma + rho)` by it and scale
`sigma` and `rho` together. Here that is a `schedule`, whose default keys are `sigma` and `rho`: for example
`schedule = "step"` with `schedule-factor = 0.85` and `schedule-every = 3`. Client and server know the round, so nothing
is sent. Algorithms that reach the optimum still do if the factor becomes
constant.

Your own schedule is a function `(rounds_done, num_rounds, *, keys) -> float`, named `module:function`.
"""
KEYS = """\
# Keys

This page is generated from the docstrings by `python docs/generate.py`. Edit the docstrings. `fedpisa list` prints the
same.

A configuration is a flat table of keys. They are the same in a TOML file, in `-c 'key=value key=value'` and in Flower's
run config. The first table lists the keys of every run. Some of them name a component, whose keys are then keys of the
run too. [algorithms.md](algorithms.md) lists the keys of algorithms, preconditioners, schedules and server strategies.
The other components are below.
"""
OPTIONS = """\
The key `optimizer` names a class of another library. Its own options are in a table, `optimizer-options`.
`learning-rate`, `momentum`, `weight-decay` and `nesterov` are ordinary keys. `fedpisa list optimizers` prints the
options that the installed versions have.

```toml
algorithm = "fedsgd"
optimizer = "adam"
learning-rate = 0.001
optimizer-options = {betas = [0.5, 0.999], amsgrad = true}
```

With `-c`, a single option is `optimizer-options.betas=[0.5,0.999]`. In a study's `[sweep]` and `[search]` it is
`optimizer-options.betas = [[0.5, 0.999], [0.9, 0.999]]`. Flower's run config has no tables, so the table is one text
there: `optimizer-options = "{betas = [0.5, 0.999]}"`.
"""
RULES = """\
`rules` gives parameters of some names another preconditioner. It is a table from regular expressions to
preconditioners, with their keys where the defaults do not suit:

    algorithm = "nsisa"
    rules = {"embed|head" = "adam", "bias|norm" = {name = "adam", beta = 0.9}}

The first expression that is found in a parameter's name counts. Parameters without one have the algorithm's own
preconditioner. An expression that selects no parameter is an error, which lists the names. The form is the same with
`-c`, in a study's `[base]` and `[[variant]]`, and in the lists of `[sweep]` and `[search]`. In Flower's run config the
table is one text: `rules = '{"bias" = "adam"}'`.
"""
NODES = """\
These keys exist only with `flwr run` and `fedpisa deploy run`. Flower refuses a key that the app does not list. The
keys of your own components therefore go into the text `more`: `more = "my-key=3"`.
"""
COSTS = re.compile(
    r"(?P<up>.+?) vectors? up, (?P<down>.+?) down, (?P<client>.+?) in the client, "
    r"(?P<server>.+?) on the server; (?P<gradients>.+?) gradients? per round\.?"
)
COLUMNS = {
    "up": "vectors up",
    "down": "down",
    "client": "in the client",
    "server": "on the server",
    "gradients": "gradients per round",
}


def sections(part: object) -> dict[str, str]:
    """Return a docstring's sections by title; ``""`` is the text before them, without the line of costs."""
    text = inspect.cleandoc(getattr(part, "__doc__", None) or "")
    pieces = re.split(r"^(\S[^\n]*)\n-{3,}\n", text, flags=re.M)
    found = {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}
    costs = re.search(r"^Costs: (.*?)(?=\n\n|\Z)", found[""], re.M | re.S)
    if costs:
        found[""] = found[""].replace(costs[0], "")
        found["Costs"] = " ".join(costs[1].split())
    return {title: re.sub(r"\n{3,}", "\n\n", markdown(body)).strip() for title, body in found.items()}


def markdown(text: str) -> str:
    """Return the text with code in Markdown's syntax."""
    return text.replace("``", "`")


def costs_of(component: Component) -> dict[str, str]:
    """Return an algorithm's costs by column; empty if its docstring has no line of costs."""
    match = COSTS.fullmatch(sections(component.factory).get("Costs", ""))
    return match.groupdict() if match else {}


def own_keys(component: Component) -> Iterator[tuple[Key, str | None]]:
    """Yield the keys of a component and of its parts.

    A key that names a part comes with the part's family; the keys of that part are not included.
    """
    for parameter in component.parameters:
        if parameter.key:
            yield parameter.key, parameter.family
        elif parameter.nested:
            yield from own_keys(parameter.nested)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def key_table(component: Component) -> str:
    """Return a table of a component's keys, with defaults in TOML."""
    return key_rows(key for key, _ in own_keys(component))


def key_rows(keys: Iterable[Key]) -> str:
    """Return a table of keys, with defaults in TOML."""
    rows = ((f"`{key.name}`", default(key), markdown(key.doc)) for key in keys)
    return table(("key", "default", "meaning"), rows)


def default(key: Key) -> str:
    """Return a key's default in TOML."""
    if key.default is REQUIRED:
        return "needed"
    if key.default is None:
        return ""
    value = plain(key.default)
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return f'`"{text}"`' if isinstance(value, str) else f"`{text}`"


def ancestors(cls: type, base: type) -> list[type]:
    """Return a class and its bases that are subclasses of ``base``, ``base`` excluded."""
    return [item for item in cls.__mro__ if issubclass(item, base) and item is not base]


def linked(classes: Iterable[type]) -> str:
    """Return links to the classes' own sections."""
    return ", ".join(f"[`{cls.__name__}`](#{cls.__name__.lower()})" for cls in classes)


def algorithm_section(component: Component) -> Iterator[str]:
    """Yield the paragraphs about an algorithm."""
    made: Any = component.factory()
    text = sections(component.factory)
    yield f"## {component.name}"
    yield text[""]
    server, client = ancestors(type(made), Algorithm)[1:], ancestors(type(made.local_update), LocalUpdate)
    parts = [f"the client is {linked(client[:1])}", *([f"the server {linked(server)}"] if server else [])]
    yield f"Below: {', '.join(parts)}."
    if "Notes" in text:
        yield f"**When to choose it.** {text['Notes']}"
    if "Costs" in text:
        yield f"**Costs.** {text['Costs']}"
    yield key_table(component)
    for key, family in own_keys(component):
        if family:
            yield f"The keys of the {family} that `{key.name}` names are keys of the run too."
    if "References" in text:
        yield f"**References.** {text['References']}"


def part_section(cls: type) -> Iterator[str]:
    """Yield the paragraphs about a class that several algorithms use."""
    text = sections(cls)
    yield f"### {cls.__name__}"
    yield text[""]
    if "References" in text:
        yield f"**References.** {text['References']}"


def part_with_keys(component: Component) -> Iterator[str]:
    """Yield the paragraphs about a preconditioner or a schedule."""
    text = sections(component.factory)
    yield f"### {component.name}"
    yield text[""]
    if keys_of(component):
        yield key_table(component)
    if "References" in text:
        yield f"**References.** {text['References']}"


def page() -> str:
    """Return the page of algorithms."""
    algorithms = available("algorithm")
    paragraphs = [HEAD.strip()]
    rows = []
    for name, component in algorithms.items():
        costs = costs_of(component)
        rows.append([f"[`{name}`](#{name})", *(costs.get(column, "") for column in COLUMNS)])
    paragraphs.append(table(("algorithm", *COLUMNS.values()), rows))
    parts: dict[type, None] = {}
    for component in algorithms.values():
        paragraphs += algorithm_section(component)
        made: Any = component.factory()
        parts |= dict.fromkeys(ancestors(type(made), Algorithm)[1:])
        parts |= dict.fromkeys(ancestors(type(made.local_update), LocalUpdate))
    paragraphs += [
        "## Servers and clients",
        "Algorithms share these classes. Their keys are in the tables above.",
    ]
    for cls in sorted(parts, key=lambda cls: cls.__name__):
        paragraphs += part_section(cls)
    paragraphs += ["## Preconditioners", sections(Preconditioner)[""]]
    paragraphs += ["To write your own, see [preconditioner.md](preconditioner.md).", RULES.strip()]
    for component in available("preconditioner").values():
        paragraphs += part_with_keys(component)
    paragraphs += ["## Server strategies", SERVERS.strip()]
    for family in ("server-strategy", "differential-privacy"):
        names = {name: part for name, part in available(family).items() if name != "none"}
        rows = [
            [f"`{name}`", ", ".join(f"`{key.name}` {default(key)}" for key in keys_of(part).values())]
            for name, part in names.items()
        ]
        paragraphs.append(table((f"`{family}`", "keys and their defaults"), rows))
    paragraphs += ["## Schedules", SCHEDULES.strip()]
    for component in available("schedule").values():
        paragraphs += part_with_keys(component)
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def keys_page() -> str:
    """Return the page of keys: those of every run, and those of components that no other page lists."""
    paragraphs = [KEYS.strip(), "## Keys of every run", key_rows(run_keys().values())]
    paragraphs += ["## Options of optimizers", OPTIONS.strip()]
    for family in ("dataset", "partitioner", "model", "task", "pace", "availability"):
        paragraphs.append(f"## Values of `{family}`")
        for name, component in available(family).items():
            keys = keys_of(component).values()
            paragraphs += [f"### {name}", markdown(component.summary), key_rows(keys) if keys else ""]
    nodes = inspect_component("run", "nodes", NodeSettings, injected=())
    paragraphs += ["## On nodes", NODES.strip(), key_table(nodes)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


PAGES = {"algorithms.md": page, "keys.md": keys_page}

if __name__ == "__main__":
    for name, write in PAGES.items():
        Path(__file__).with_name(name).write_text(write(), encoding="utf-8")
