"""From a TOML entry and the command line to frozen dataclasses: checked, documented by their own comments, written back.

A layer (base file, entry, command line) is checked under its own name, so an error names the place that holds the key.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import math
import re
import sys
import typing
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from data import UserError


# Keys that change how a run is watched or where it computes, not what it computes: a run may continue with others.
FREE = {"hypothesis", "expected", "out", "train.log_every", "train.ckpt_minutes", "train.device", "train.threads", "train.wandb"}
SHARED = FREE | {"seed"}  # what the seeds of one entry may differ in


def describe(kind) -> str:
    choices = typing.get_args(kind)
    return "one of " + ", ".join(repr(c) for c in choices) if choices else {int: "an integer", float: "a number", str: "a string",
                                                                           bool: "true or false"}[kind]


def fits(value, kind) -> bool:
    if typing.get_args(kind):
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def nearest(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f", did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


FIELD = r"^    (\w+): (?:[^#\n]|\n {5,})*?  # (.+)$"  # a field, its type perhaps over several lines, and its comment


def comments(cls) -> dict[str, str]:
    """The comment behind each field of a dataclass: its help text."""
    return {m[1]: m[2] for m in re.finditer(FIELD, inspect.getsource(cls), re.MULTILINE)}


def read_toml(path: Path) -> dict:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot read the entry ({e.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a TOML file ({e})") from None


def check_layer(layer: dict, cls, where: str) -> None:
    """Unknown keys, wrong types and wrong choices of one layer, each as one sentence (UserError)."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in layer.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, fields)}")
        kind, default = fields[key].type, fields[key].default
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key} = {value!r}, expected a table [{key}]")
            check_layer(value, kind, f"{where} [{key}]")
        elif not fits(value, kind):
            guess = nearest(value, typing.get_args(kind)) if typing.get_args(kind) and isinstance(value, str) else ""
            raise UserError(f"{where}: {key} = {value!r}, expected {describe(kind)} (default {default!r})"
                            + (guess if guess.startswith(", did") else ""))


def merge(under: dict, over: dict) -> dict:
    return under | {k: merge(under[k], v) if isinstance(v, dict) and isinstance(under.get(k), dict) else v for k, v in over.items()}


def build(cls, values: dict):
    """The dataclass from nested dicts; numbers become what the field says."""
    made = {}
    for f in dataclasses.fields(cls):
        if f.name in values:
            v = values[f.name]
            made[f.name] = build(f.type, v) if dataclasses.is_dataclass(f.type) else f.type(v) if f.type is float else v
    return cls(**made)


def flatten(cfg) -> dict:
    """{"seed": 0, "model.dim": 512, ...}"""
    flat = {}
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        flat |= {f"{f.name}.{k}": v for k, v in flatten(value).items()} if dataclasses.is_dataclass(value) else {f.name: value}
    return flat


def read_layers(entry: Path) -> list[tuple[str, dict]]:
    """(file, what it says) of the entry, and before it of its base, if it has one.

    `base` in an entry names another entry, relative to it; it has one level, so two files tell all.
    """
    layers = [(str(entry), read_toml(entry))]
    if "base" in layers[0][1]:
        base = layers[0][1].pop("base")
        if not isinstance(base, str):
            raise UserError(f"{entry}: base = {base!r}, expected the path of another entry")
        layers.insert(0, (str(entry.parent / base), read_toml(entry.parent / base)))
        if "base" in layers[0][1]:
            raise UserError(f"{layers[0][0]}: has a base of its own, but {entry} builds on it; base has one level")
        for key in ("hypothesis", "expected"):
            layers[0][1].pop(key, None)
    return layers


def overlay(cls, layers: list[tuple[str, dict]], last: str):
    """The dataclass of all layers, later ones over earlier ones, checked one by one and then as a whole; `last` owns the defaults."""
    values, origin = {}, {}
    for where, layer in layers:
        check_layer(layer, cls, where)
        values = merge(values, layer)
        for table, keys in layer.items():
            origin |= {(table, key): where for key in keys} if isinstance(keys, dict) else {("", table): where}
    cfg = build(cls, values)
    for table, key, expected in cfg.problems():
        where, owner = origin.get((table, key), f"{last} (default)"), getattr(cfg, table) if table else cfg
        raise UserError(f"{where}{f' [{table}]' if table else ''}: {key} = {getattr(owner, key)!r}, expected {expected}")
    return cfg


def load_config(cls, entry: Path, overrides: dict):
    """base <- entry <- command line. Raises UserError. The table [slurm] is another matter: see slurm.py."""
    layers = [*read_layers(Path(entry)), ("command line", overrides)]
    return overlay(cls, [(where, {k: v for k, v in layer.items() if k != "slurm"}) for where, layer in layers], str(entry))


def to_toml(cfg, entry: str) -> str:
    """Every key of a config, for the run folder."""
    def lines(obj):
        return [f"{f.name} = {json.dumps(v, ensure_ascii=False)}" for f in dataclasses.fields(obj)
                if not dataclasses.is_dataclass(v := getattr(obj, f.name))]

    text = [f"# {entry}", *lines(cfg)]
    for f in dataclasses.fields(cfg):
        if dataclasses.is_dataclass(getattr(cfg, f.name)):
            text += ["", f"[{f.name}]", *lines(getattr(cfg, f.name))]
    return "\n".join(text) + "\n"


def parse_value(text: str, kind):
    """A command-line word as TOML would read it, or a number like .5; a word where a string is wanted stays a word."""
    if kind is str or str in map(type, typing.get_args(kind)):
        return text
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return float(text) if kind is float and re.fullmatch(r"-?(\.\d+|\d+\.)", text) else text  # check_layer says what was expected


def add_keys(parser: argparse.ArgumentParser, cls, hidden: tuple[str, ...] = ("hypothesis",), prefix: str = "") -> dict[str, type]:
    """An option for every key of a config, its comment as help. Returns {"train.steps": int, ...}."""
    kinds, notes = {}, comments(cls)
    for f in dataclasses.fields(cls):
        key = f"{prefix}{f.name}"
        if dataclasses.is_dataclass(f.type):
            kinds |= add_keys(parser.add_argument_group(f"[{f.name}]"), f.type, hidden, f"{f.name}.")
        elif key not in hidden:
            kinds[key] = f.type
            choices = f" {{{', '.join(map(str, typing.get_args(f.type)))}}}" if typing.get_args(f.type) else ""
            parser.add_argument(f"--{key}", metavar="", default=argparse.SUPPRESS,
                                help=f"{notes.get(f.name, '')}{choices} (default {f.default!r})".replace("%", "%%"))
    return kinds


def parse(parser: argparse.ArgumentParser, argv: list[str], kinds: dict[str, type]) -> tuple[argparse.Namespace, dict]:
    """Words to (what the parser has beside `kinds`, the keys of `kinds` that were given as nested dicts). Raises UserError."""
    def fail(message: str):
        raise UserError(f"command line: {message}")

    parser.error = fail
    found, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        key = unknown[0].removeprefix("--").split("=")[0]
        known = {**kinds, **{k.replace("_", "-"): None for k in vars(found) if k not in kinds}}
        fail(f"unknown key '{unknown[0]}'{nearest(key, known)}" if unknown[0].startswith("-") else f"unexpected word {unknown[0]!r}")
    overrides: dict = {}
    for key, text in vars(found).items():
        if key in kinds:
            table, _, name = key.rpartition(".")
            (overrides.setdefault(table, {}) if table else overrides)[name] = parse_value(text, kinds[key])
    return found, overrides


class Parser(argparse.ArgumentParser):
    """The command line of a program with options of its own: what is wrong with it is a UserError."""

    def __init__(self, program: str, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.program = program

    def error(self, message: str):
        raise UserError(f"command line: {message}; see python {self.program} --help")


def make_parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter)


def command_line(cls, argv: list[str], description: str) -> tuple[Path, dict]:
    """`entry.toml --train.steps=200 --seed 1` -> (entry, overrides as nested dicts). --help lists every key."""
    parser = make_parser(description)
    parser.add_argument("entry", type=Path, help="a sweep entry, for example sweeps/maze_baseline.toml")
    found, overrides = parse(parser, argv, add_keys(parser, cls))
    return found.entry, overrides
