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

Generated from the docstrings by `python docs/generate.py`; edit those.

Costs count vectors as long as the model, up and down per client and round; `N` is the number of clients, `K` that of
local steps, of one mini-batch each unless `batches-per-round` says more. They are those of the default keys: what
another preconditioner or optimizer keeps comes on top. `alpha_i` are the clients' weights, by default `n_i / n`.

Where a reply that is lost must not have moved its client, because the server adds uploads up (*incremental*), a client
keeps its vectors twice: as they are, and as they were before its last round, until the server confirms that one.
"""
SERVERS = """\
Where the server's step is a mean of models (`fedavg`, `fedprox`, `localsgd`, `moon`), `server-strategy` names one of
Flower's strategies that takes its place, or a class of your own by `module:Class`; `differential-privacy` names one of
Flower's wrappers for central privacy. Their numbers are keys, those of strategies with the prefix `server-`. Clients
are sampled and weighed as ever. The noise's standard deviation is `noise-multiplier * clipping-norm / |S|`, which is
calibrated for clients that count alike, as in `localsgd`, and for a cohort `S` of which all reply: where some do not,
each of the others counts for more than the noise hides. BatchNorm's buffers are averaged and do not pass through the
strategy, so a model that has them is refused with privacy. No privacy budget is accounted for. Flower's FedAdam
corrects the bias in round `t` as if it were `t + 1`; `qfed-avg` takes the clients' `learning-rate` for `1 / L`.
"""
SCHEDULES = """\
The same keys for all algorithms: `schedule` names one of these, `warmup-rounds` W lets the factor rise by
`r / (W + 1)` in round `r` before it begins, and `schedule-keys` says what the factor acts on. It multiplies a step
size and divides the inverse of one. By default these are `learning-rate` (also that of `fedsgd`'s optimizer), or
`sigma`, `rho` and `proximity` of an algorithm without a learning rate, whose step is `1 / (sigma + rho Q)` or
`1 / (sigma + proximity)`. Only `schedule-keys` moves `server-learning-rate` and `server-step`. An algorithm of your own
has its keys scheduled by their annotations: `StepSize` and `InverseStepSize` of `fedpisa.typing`.

PISA's own `gamma` comes first: the penalty of a round is what `gamma` gives, divided by the factor. The `gamma` of the
paper's Table 7 moves `sigma` and `rho` together, so it is a `schedule` on `schedule-keys = "sigma, rho"` here. Client
and server know the round, so nothing is sent. Algorithms that reach the optimum still do where the factor comes to
rest.

One of your own is a function `(rounds_done, num_rounds, *, keys) -> float`, named `module:function`.
"""
KEYS = """\
# Keys

Generated from the docstrings by `python docs/generate.py`; edit those. `fedpisa list` prints the same.

A configuration is flat keys, the same in a TOML file, in `-c 'key=value key=value'` and in Flower's run config. The
keys of the first table are the run's own. Some of them name a component, whose keys are then keys of the run too. Those
of algorithms, preconditioners, schedules and server strategies are in [algorithms.md](algorithms.md), others below.
"""
OPTIONS = """\
The key `optimizer` names a class of another library, whose own options are in a table, `optimizer-options`.
`learning-rate`, `momentum`, `weight-decay` and `nesterov` are keys as anywhere else. `fedpisa list optimizers` prints
the options that the installed versions have.

```toml
algorithm = "fedsgd"
optimizer = "adam"
learning-rate = 0.001
optimizer-options = {betas = [0.5, 0.999], amsgrad = true}
```

One option alone is `optimizer-options.betas=[0.5,0.999]` in `-c` and
`optimizer-options.betas = [[0.5, 0.999], [0.9, 0.999]]` in a study's `[sweep]` and `[search]`. Flower's run config has
no tables, so there the table is one text: `optimizer-options = "{betas = [0.5, 0.999]}"`.
"""
NODES = """\
Only with `flwr run` and `fedpisa deploy run`. There, `more` takes as text the keys of components that are your own,
`more = "my-key=3"`, because Flower refuses a key that the app does not list.
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
    """Return a docstring's sections by title: ``""`` is what comes before them, without the line of costs."""
    text = inspect.cleandoc(getattr(part, "__doc__", None) or "")
    pieces = re.split(r"^(\S[^\n]*)\n-{3,}\n", text, flags=re.M)
    found = {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}
    costs = re.search(r"^Costs: (.*?)(?=\n\n|\Z)", found[""], re.M | re.S)
    if costs:
        found[""] = found[""].replace(costs[0], "")
        found["Costs"] = " ".join(costs[1].split())
    return {title: re.sub(r"\n{3,}", "\n\n", markdown(body)).strip() for title, body in found.items()}


def markdown(text: str) -> str:
    """Return text with code as Markdown writes it."""
    return text.replace("``", "`")


def costs_of(component: Component) -> dict[str, str]:
    """Return an algorithm's costs by column, empty where its docstring has no line of the fixed form."""
    match = COSTS.fullmatch(sections(component.factory).get("Costs", ""))
    return match.groupdict() if match else {}


def own_keys(component: Component) -> Iterator[tuple[Key, str | None]]:
    """Yield the keys of a component and of what it is made of, with the family of the part that one chooses.

    The keys of such a part are not its own.
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
    """Return a table of keys, with defaults as TOML writes them."""
    return key_rows(key for key, _ in own_keys(component))


def key_rows(keys: Iterable[Key]) -> str:
    """Return a table of keys, with defaults as TOML writes them."""
    rows = ((f"`{key.name}`", default(key), markdown(key.doc)) for key in keys)
    return table(("key", "default", "meaning"), rows)


def default(key: Key) -> str:
    """Return a key's default as TOML writes it."""
    if key.default is REQUIRED:
        return "needed"
    if key.default is None:
        return ""
    value = plain(key.default)
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    return f'`"{text}"`' if isinstance(value, str) else f"`{text}`"


def ancestors(cls: type, base: type) -> list[type]:
    """Return what a class inherits from below ``base``, itself first."""
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
            yield f"And the keys of the {family} that `{key.name}` names."
    if "References" in text:
        yield f"**References.** {text['References']}"


def part_section(cls: type) -> Iterator[str]:
    """Yield the paragraphs about a class that algorithms share."""
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
    """Return the whole page."""
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
    paragraphs += ["## Servers and clients", "What the algorithms share; their keys are in the tables above."]
    for cls in sorted(parts, key=lambda cls: cls.__name__):
        paragraphs += part_section(cls)
    paragraphs += ["## Preconditioners", sections(Preconditioner)[""]]
    paragraphs.append("One of your own: see [preconditioner.md](preconditioner.md).")
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
    """Return the page of keys: the run's own, and those of components that are on no other page."""
    paragraphs = [KEYS.strip(), "## The run's own", key_rows(run_keys().values())]
    paragraphs += ["## Options of optimizers", OPTIONS.strip()]
    for family in ("dataset", "partitioner", "model", "pace", "availability"):
        paragraphs.append(f"## What `{family}` names")
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
