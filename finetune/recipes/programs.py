"""Recipes of `omni-tiny` itself: stages of its training, each a program of `finetune/tiny`.

program: train_vision      # one of PROGRAMS
arguments: {data: ../shared/data, out: runs/omni-tiny/vision, steps: 6000}
"""

import importlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from omni.errors import RequestError

PROGRAMS = ("train_vision", "train_audio", "train_joint", "export")
KEYS = ("program", "arguments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program, and what it is given.

    Attributes:
        name: One of `PROGRAMS`.
        arguments: By option, without dashes; a list gives the option several times.
    """

    name: str
    arguments: Mapping[str, Any]

    def changed(self, arguments: Mapping[str, Any]) -> "Program":
        """The same program with other arguments in place; None leaves what there is.

        Args:
            arguments: Text is read as YAML: ``true`` is a flag, ``[a, b]`` gives an option twice.

        Raises:
            RequestError: Text that is no YAML.
        """
        given = {k: _read(k, v) for k, v in arguments.items() if v is not None}
        return replace(self, arguments={**self.arguments, **given})

    def words(self) -> list[str]:
        """Return the arguments as they stand on a command line."""
        words = []
        for key, value in self.arguments.items():
            option = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                words += [option] if value else []
                continue
            for one in value if isinstance(value, list) else [value]:
                words += [option, str(one)]
        return words

    def command(self) -> str:
        """Return the command that does the same."""
        return shlex.join(["python", "-m", f"finetune.tiny.{self.name}", *self.words()])

    def run(self) -> None:
        """Run it in this process.

        Raises:
            SystemExit: It does not know an argument, and has said which it knows.
        """
        importlib.import_module(f"finetune.tiny.{self.name}").main(self.words())


def _read(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RequestError(f"Found {key}={value}; expected a YAML value: {error}") from error


def read_program(recipe: Mapping[str, Any], source: str) -> Program:
    """Read a recipe that names a program.

    Args:
        recipe: With the keys `KEYS`.
        source: Named in errors.

    Raises:
        RequestError: Another key, an unknown program, or arguments that are no mapping.
    """
    unknown = sorted(set(recipe) - set(KEYS))
    if unknown:
        raise RequestError(f"{source}: found {unknown[0]!r}; expected keys {', '.join(KEYS)}.")
    name, arguments = recipe["program"], recipe.get("arguments") or {}
    if name not in PROGRAMS:
        raise RequestError(
            f"{source}: found program {name!r}; expected one of {', '.join(PROGRAMS)}."
        )
    if not isinstance(arguments, dict):
        raise RequestError(f"{source}: found arguments {arguments!r}; expected KEY: VALUE pairs.")
    return Program(name=name, arguments=arguments)
