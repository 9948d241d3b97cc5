"""Components: their signatures, the values that they take, and the objects that they build."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import pytest

from fedpisa import components
from fedpisa.components import REQUIRED, Component, Key, check, inspect_component, plain
from fedpisa.families import FAMILIES, available, build, checked_values, find, keys_of, lookup, resolve
from fedpisa.typing import Fraction, NonNegative, Positive, PositiveInt

# ------------------------------------------------------------------------------ toys of every kind


@dataclass(frozen=True)
class Spice(ABC):  # noqa: B024
    """A spice.

    Parameters
    ----------
    grams
        How much of it.
    """

    family: ClassVar[str] = "spice"

    grams: Positive = 1.0


@final
@dataclass(frozen=True)
class Salt(Spice):
    """Salt."""


@final
@dataclass(frozen=True)
class BlackPepper(Spice):
    """Pepper.

    Parameters
    ----------
    mesh
        How fine it is ground.
    """

    mesh: PositiveInt = 10


@final
@dataclass(frozen=True)
class Dough:
    """Dough.

    Parameters
    ----------
    flour, water
        Grams.
    """

    flour: Positive = 500.0
    water: NonNegative = 300.0
    spice: Spice = Salt()


@final
@dataclass(frozen=True)
class Pizza:
    """A pizza.

    It is baked.

    Parameters
    ----------
    size
        Slices, or all.
    lambda_
        Heat.
    """

    seed: int = 7
    dough: Dough = Dough(water=250.0, spice=BlackPepper(mesh=20))
    size: PositiveInt | Literal["full"] = "full"
    lambda_: NonNegative = 0.0
    toppings: tuple[str, ...] = ("cheese",)
    oven: str | None = None
    weight: float = field(default=0.0, init=False)


@pytest.fixture(autouse=True)
def _spices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the toys' family."""
    spices = [inspect_component("spice", components.name_of(cls), cls) for cls in (Salt, BlackPepper)]
    monkeypatch.setattr(lookup, "_FAMILIES", {**lookup._FAMILIES, "spice": lambda: spices})
    monkeypatch.setattr(lookup, "_collected", lookup._collected.__wrapped__)


@pytest.fixture
def pizza() -> Component:
    return inspect_component("dish", "pizza", Pizza)


# ------------------------------------------------------------------------------------ introspection


def test_a_dataclass_gives_the_keys_of_its_parts_with_the_defaults_of_its_instances(pizza: Component) -> None:
    assert [(key.name, key.default) for key in keys_of(pizza).values()] == [
        ("flour", 500.0),
        ("water", 250.0),
        ("spice", "black-pepper"),
        ("grams", 1.0),
        ("mesh", 20),
        ("size", "full"),
        ("lambda", 0.0),
        ("toppings", ("cheese",)),
        ("oven", None),
    ]


def test_the_keys_follow_the_chosen_part(pizza: Component) -> None:
    assert "mesh" not in keys_of(pizza, {"spice": "salt"})
    # The default part, named explicitly, keeps the default instance's values, not the class's.
    assert keys_of(pizza, {"spice": "black-pepper"})["mesh"].default == 20


def test_keys_are_explained_by_the_docstring_of_the_class_that_declares_them(pizza: Component) -> None:
    docs = {key.name: key.doc for key in keys_of(pizza).values()}
    assert docs["size"] == "Slices, or all."
    assert docs["lambda"] == "Heat."
    assert docs["flour"] == docs["water"] == "Grams."
    assert docs["grams"] == "How much of it."
    assert pizza.summary == "A pizza."


def test_a_dataclass_without_a_docstring_has_no_summary() -> None:
    @dataclass(frozen=True)
    class Bare:
        a: int = 0

    assert Bare.__doc__ == "Bare(a: 'int' = 0)"
    assert inspect_component("dish", "bare", Bare).summary == ""


def test_a_functions_keys_are_its_parameters_that_are_not_injected() -> None:
    def split(labels: Undefined, num_clients: int, rng: object, *, alpha: Positive = 0.5, k: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Split."""

    component = inspect_component("partitioner", "split", split)
    assert [(key.name, key.default) for key in keys_of(component).values()] == [
        ("alpha", 0.5),
        ("k", REQUIRED),
    ]


def test_an_annotation_that_cannot_be_evaluated_is_explained() -> None:
    def model(*, width: Undefined = 3) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Model."""

    with pytest.raises(ValueError, match=r"annotation 'Undefined' of model .* import what it names"):
        inspect_component("model", "model", model)


def test_a_class_that_is_no_dataclass_and_a_builtin_are_described_too() -> None:
    class Net:
        def __init__(self, shape: tuple[int, ...], width: int = 3, **rest: object) -> None:
            self.args = (shape, width, rest)

    component = inspect_component("model", "net", Net)
    assert [key.name for key in keys_of(component).values()] == ["width"]
    assert build(component, {"width": 4}, shape=(1,), seed=0).args == ((1,), 4, {})
    assert keys_of(inspect_component("model", "dict", dict)) == {}


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 1, 1.0),
        (Positive, math.inf, math.inf),
        (int, np.int64(3), 3),
        (float, np.float32(0.5), 0.5),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (tuple[PositiveInt, ...], (3, 4), (3, 4)),
        (PositiveInt | Literal["full"], "full", "full"),
        (str, Path("a/b"), "a/b"),
        (bool, True, True),
        (Any, {"a": (1, 2)}, {"a": [1, 2]}),
    ],
)
def test_values_that_fit_are_converted(annotation: object, value: object, expected: object) -> None:
    checked = check(Key("k", annotation), value)
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Positive, -1, "key 'k' = -1: must be greater than 0"),
        (float, True, "key 'k' = true: must be a valid number"),
        (int, False, "key 'k' = false: must be a valid integer"),
        (int, 1.0, "key 'k' = 1.0: must be a valid integer"),
        (float, "1.0", "key 'k' = '1.0': must be a valid number"),
        (bool, 1, "key 'k' = 1: must be a valid boolean"),
        (str, 1, "key 'k' = 1: must be a valid string"),
        (float, math.nan, "key 'k' = nan: must be a number"),
        (Fraction, 1.5, "key 'k' = 1.5: must be less than or equal to 1"),
        (PositiveInt | Literal["full"], "ful", "key 'k' = 'ful': must be a valid integer or 'full'"),
        (Literal["a", "b"], "c", "key 'k' = 'c': must be 'a' or 'b'"),
        (float, object(), "key 'k': a value of type object cannot be configured"),
    ],
)
def test_values_that_do_not_fit_are_explained_in_one_line(
    annotation: object, value: object, message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check(Key("k", annotation), value)
    assert str(caught.value) == message


def test_plain_is_what_toml_holds() -> None:
    assert plain({"a": (1, np.float64(2)), "b": Path("x"), "c": None}) == {"a": [1, 2.0], "b": "x"}


# ----------------------------------------------------------------------------------------- building


def test_build_nests_the_values(pizza: Component) -> None:
    values = {"water": 100, "spice": "salt", "grams": 2, "lambda": 1, "toppings": ["ham", "egg"]}
    assert build(pizza, values, seed=3, rng=None) == Pizza(
        seed=3, dough=Dough(water=100.0, spice=Salt(grams=2.0)), lambda_=1.0, toppings=("ham", "egg")
    )


def test_build_without_values_is_the_default(pizza: Component) -> None:
    assert build(pizza) == Pizza()
    assert build(pizza, dict.fromkeys(keys_of(pizza))) == Pizza()  # None means the default


def test_another_choice_has_the_defaults_of_its_class() -> None:
    dish = inspect_component(
        "dish", "dish", dataclasses.make_dataclass("Dish", [("spice", Spice, Salt(grams=5.0))], frozen=True)
    )
    assert build(dish, {"spice": "black-pepper"}).spice == BlackPepper()
    assert build(dish).spice == Salt(grams=5.0)


def test_resolve_gives_all_keys_and_is_enough_to_build_the_same(pizza: Component) -> None:
    resolved = resolve(pizza, {"water": 100})
    assert resolved == {
        "flour": 500.0,
        "water": 100.0,
        "spice": "black-pepper",
        "grams": 1.0,
        "mesh": 20,
        "size": "full",
        "lambda": 0.0,
        "toppings": ["cheese"],
    }
    assert build(pizza, resolved) == build(pizza, {"water": 100})
    assert resolve(pizza, resolved) == resolved


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"watr": 1}, "unknown key 'watr' for dish 'pizza'; did you mean 'water'? (it takes: flour, water"),
        (
            {"spice": "salt", "mesh": 3},
            "key 'mesh' is not used by spice 'salt' (but by black-pepper); it takes: flour",
        ),
        (
            {"spice": "sugar"},
            "unknown spice 'sugar' (available: black-pepper, salt; or your own as 'module:attribute')",
        ),
        ({"spice": "slt"}, "unknown spice 'slt'; did you mean 'salt'?"),
        ({"spice": 3}, "key 'spice' = 3: must be the name of one of black-pepper, salt"),
        ({"flour": 0}, "key 'flour' = 0: must be greater than 0"),
        ({"sigma": 1}, "key 'sigma' is only used by algorithm "),
    ],
)
def test_wrong_values_are_explained(
    pizza: Component, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], message: str
) -> None:
    monkeypatch.setattr("fedpisa.families.builder.FAMILIES", ("spice", "algorithm"))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build(pizza, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_values_are_named() -> None:
    def read(data_dir: str, *, file: str) -> None:
        """Read.

        Parameters
        ----------
        file
            Its name.
        """

    component = inspect_component("dataset", "read", read)
    with pytest.raises(ValueError, match=r"dataset 'read' needs the key 'file' \(Its name\)"):
        checked_values(component, {})
    with pytest.raises(ValueError, match="dataset 'read' needs 'data_dir', which is not available here"):
        build(component, {"file": "x"})


# ------------------------------------------------------------------------------------------ finding


def test_a_users_component_in_the_current_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # monkeypatch restores this after the test; `find` would leave it
    (tmp_path / "my_fedpisa_parts.py").write_text(
        "def net(shape, num_outputs, *, depth: int = 2): return depth\nlist_ = []\n"
    )
    component = find("model", "my_fedpisa_parts:net")
    assert component.name == "my_fedpisa_parts:net"
    assert build(component, {"depth": 3}, shape=(1,), num_outputs=2) == 3
    with pytest.raises(
        ValueError, match="'my_fedpisa_parts:list_' is a list: it must be a function or a class"
    ):
        find("model", "my_fedpisa_parts:list_")
    with pytest.raises(ValueError, match=r"'my_fedpisa_parts:no' cannot be imported \(AttributeError: "):
        find("model", "my_fedpisa_parts:no")


def test_a_users_module_that_fails_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_fedpisa_broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"cannot be imported \(ZeroDivisionError: division by zero\)"):
        find("dataset", "my_fedpisa_broken:data")
    with pytest.raises(ValueError, match=r"cannot be imported \(ModuleNotFoundError: .*'my_fedpisa_missing'"):
        find("dataset", "my_fedpisa_missing:data")


def test_an_unknown_family_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'modl'; did you mean 'model'\?"):
        available("modl")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_component_has_a_name_a_summary_and_documented_keys_with_valid_defaults(family: str) -> None:
    found = available(family)
    assert found
    for name, component in found.items():
        assert name == component.name == name.lower()
        assert component.summary, f"{component} has no docstring"
        for key in keys_of(component).values():
            assert key.name == key.name.lower()
            assert "_" not in key.name
            if (
                key.default is not REQUIRED
                and key.default is not None
                and key.name in resolve_or_empty(component)
            ):
                assert check(key, key.default) == key.default, (
                    f"{component}: the default of {key.name} is refused"
                )
            if family != "optimizer":
                assert key.doc, f"key {key.name!r} of {component} is not documented"


def resolve_or_empty(component: Component) -> Mapping[str, object]:
    required = any(key.default is REQUIRED for key in keys_of(component).values())
    return {} if required else resolve(component)
