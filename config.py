"""From a TOML entry and the command line to frozen dataclasses: checked, documented, written back.

A layer is a base file, the entry, or the command line. Each is checked under its own name,
so an error names the place that holds the wrong key. The comment of a field is its help text.
Imports nothing of ours.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import math
import os
import re
import shlex
import stat
import sys
import textwrap
import typing
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"analyze.py": ("numpy", "matplotlib"), "data.py": ("numpy",)}  # the others want torch


def say_what_is_missing() -> None:
    """Where a command of this folder runs without its packages, one sentence and no traceback."""
    program = getattr(sys.modules["__main__"], "__file__", None)  # None: no file, as in a notebook
    if not program or Path(program).parent.absolute() != Path(__file__).parent.absolute():
        return
    program = Path(program)
    wanted = PACKAGES.get(program.name, ("numpy", "torch"))
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        venv = (program.parent / ".venv").exists()
        advice = "source .venv/bin/activate" if venv else "bash run_all.sh makes .venv with it"
        print(f"error: {missing[0]} is not installed for this Python; {advice}", file=sys.stderr)
        sys.exit(2)


say_what_is_missing()

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class UserError(Exception):
    """Bad input: one sentence that says where, what was found and what was expected.

    Programs print it and exit with code 2.
    """


# Keys that change how a run is watched or where it computes, not what it computes.
FREE = {
    "hypothesis",
    "expected",
    "out",
    "train.log_every",
    "train.ckpt_minutes",
    "train.device",
    "train.threads",
    "train.wandb",
    "train.tensorboard",
}
SHARED = FREE | {"seed"}  # what the seeds of one entry may differ in
LARGEST = 1e37  # of all numbers: an optimizer divides a rate by 1 - beta and computes in float32


# ---------------------------------------------------------------- one value


def choices_of(kind) -> tuple:
    """The values of a Literal; empty for other types."""
    return typing.get_args(kind)


def describe(kind) -> str:
    """The type of a field in words."""
    if choices_of(kind):
        return "one of " + ", ".join(repr(choice) for choice in choices_of(kind))
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[kind]


def fits(value, kind) -> bool:
    """Whether a value of TOML may stand in a field of this type."""
    if choices_of(kind):
        return value in choices_of(kind)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= LARGEST
    return isinstance(value, kind) and not beyond(value)


def wanted_of(value, kind) -> str:
    """What a field takes, in words, and what else is wrong with a value of the right type."""
    if kind is float:
        right = isinstance(value, (int, float))
    else:
        right = not choices_of(kind) and isinstance(value, kind)
    return f"{describe(kind)} {beyond(value)}".rstrip() if right else describe(kind)


def beyond(value) -> str:
    """Why a value is none that can be computed with, or written back; empty: it can."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "of at most 64 bits"
    if isinstance(value, float) and math.isfinite(value) and abs(value) > LARGEST:
        return f"of at most {LARGEST:g}"
    if isinstance(value, str) and ("\0" in value or not is_unicode(value)):
        return "without NUL and of valid UTF-8"
    return ""


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8. Words of a command line may hold any bytes."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def shown(value) -> str:
    """A value for a sentence: as Python writes it, on one line and not too long."""
    if isinstance(value, int) and beyond(value):
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # deep nesting; a very long integer inside a list
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 300 else f"{text[:200]}... ({len(text)} characters)"


def nearest(word: str, known) -> str:
    """The end of a sentence about an unknown word: what may be meant, or what is known."""
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f", did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def parse_value(text: str, kind):
    """A word of the command line as TOML would read it. Where a string is wanted, it stays a word.

    Numbers may lack the digit that TOML demands: .5 and 2. are fine.
    """
    if kind is str or any(isinstance(choice, str) for choice in choices_of(kind)):
        return text
    if "\n" in text:  # what follows would be another key
        return text
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        if kind is float and re.fullmatch(r"-?(\.\d+|\d+\.)", text):
            return float(text)
        return text  # check_layer says what was expected


# ---------------------------------------------------------------- dataclasses


def comments(cls) -> dict[str, str]:
    """The help text of each field, those of the class's bases included."""
    found = {}
    for base in reversed(cls.__mro__):
        found |= own_comments(base)
    return found


@functools.cache  # reading the source again is what a command line would wait for most
def own_comments(cls) -> dict[str, str]:
    """{field: the comment behind it, or else the comment lines above it}, its own fields alone."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a class of no file, such as object
        return {}
    found, lines = {}, source.splitlines()
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        behind = lines[node.end_lineno - 1].partition("  # ")[2]
        above, at = [], node.lineno - 2
        while lines[at].startswith("    # "):
            above.insert(0, lines[at].removeprefix("    # "))
            at -= 1
        found[node.target.id] = behind or " ".join(above)
    return found


def build(cls, values: dict):
    """The dataclass from nested dicts. Numbers become what the field says."""
    made = {}
    for field in dataclasses.fields(cls):
        if field.name not in values:
            continue
        value = values[field.name]
        if dataclasses.is_dataclass(field.type):
            value = build(field.type, value)
        elif field.type is float:
            value = float(value)
        made[field.name] = value
    return cls(**made)


def known_only(cls, values: dict) -> dict:
    """Nested dicts without the keys that a dataclass lacks.

    Older checkpoints held the keys of every task.
    """
    kept = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            value = values[field.name]
            if dataclasses.is_dataclass(field.type) and isinstance(value, dict):
                value = known_only(field.type, value)
            kept[field.name] = value
    return kept


def flatten(cfg) -> dict:
    """{"seed": 0, "model.dim": 512, ...}"""
    flat = {}
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            flat[field.name] = value
    return flat


def nested(flat: dict) -> dict:
    """The reverse of `flatten`: {"model": {"dim": 512}, "seed": 0, ...}"""
    tables: dict = {}
    for key, value in flat.items():
        table, _, name = key.rpartition(".")
        place = tables.setdefault(table, {}) if table else tables
        place[name] = value
    return tables


def flat_tables(tables: dict) -> dict:
    """Nested dicts, as TOML gives them, with one key per value: {"model.dim": 512, ...}"""
    flat = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def to_toml(cfg, entry: str) -> str:
    """Every key of a config, for the run folder."""

    def lines(part) -> list[str]:
        values = [(field.name, getattr(part, field.name)) for field in dataclasses.fields(part)]
        plain = [(name, value) for name, value in values if not dataclasses.is_dataclass(value)]
        return [f"{name} = {toml_value(value)}" for name, value in plain]

    text = [f"# {toml_value(str(entry))[1:-1]}", *lines(cfg)]
    for field in dataclasses.fields(cfg):
        table = getattr(cfg, field.name)
        if dataclasses.is_dataclass(table):
            text += ["", f"[{field.name}]", *lines(table)]
    return "\n".join(text) + "\n"


def toml_value(value) -> str:
    """A value as TOML: as JSON, which leaves DEL as it is, where TOML wants an escape."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---------------------------------------------------------------- layers


def refuse_device(path) -> None:
    """Raises UserError for a pipe, a device or a socket: reading one may never end.

    A path that leads nowhere is left to whoever opens it.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: is a pipe or a device, expected a regular file")


def read_toml(path: Path) -> dict:
    """The tables of a file, which may begin with a byte order mark. Raises UserError."""
    refuse_device(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise UserError(f"{path}: cannot read the entry ({e.strerror})") from None
    except ValueError as e:  # no TOML, no UTF-8, an integer of thousands of digits
        raise UserError(f"{path}: not a TOML file ({e})") from None
    except RecursionError:
        raise UserError(f"{path}: not a TOML file of ours (nested too deeply)") from None


def refuse_name(entry: Path) -> None:
    """Raises UserError for an entry whose name can be no run folder's."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in str(entry)):
        raise UserError(
            f"{str(entry)!r}: expected the name of an entry without control characters, in UTF-8"
        )
    if not entry.name.removesuffix(".toml").strip("."):
        raise UserError(f"{entry}: expected an entry with a name before .toml")


def check_layer(layer: dict, cls, where: str) -> None:
    """Raises UserError for an unknown key, a wrong type or a wrong choice in one layer."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in layer.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key {shown(key)}{nearest(key, fields)}")
        kind, default = fields[key].type, fields[key].default
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key} = {shown(value)}, expected a table [{key}]")
            check_layer(value, kind, f"{where} [{key}]")
        elif not fits(value, kind):
            wanted = wanted_of(value, kind)
            sentence = f"{where}: {key} = {shown(value)}, expected {wanted} (default {default!r})"
            if choices_of(kind) and isinstance(value, str):
                guess = nearest(value, choices_of(kind))
                sentence += guess if "did you mean" in guess else ""
            raise UserError(sentence)


def merge(under: dict, over: dict) -> dict:
    """Nested dicts, the second one's values over the first one's."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(key), dict)
        merged[key] = merge(under[key], value) if both else value
    return merged


def read_layers(entry: Path) -> list[tuple[str, dict]]:
    """(file, its tables) of the entry, and before it of its base, if it has one.

    `base` names another entry, relative to this one; relative to the file that a link points to,
    where there is none beside the link. That entry may have a base of its own.
    """
    refuse_name(entry)
    layers, chain, file = [], [], entry
    while file:
        chain.append(os.path.realpath(file))
        if chain[-1] in chain[:-1]:
            names = " -> ".join(os.path.relpath(one) for one in chain)
            raise UserError(f"{entry}: base leads back to itself: {names}")
        tables = read_toml(file)
        below = base_of(file, tables)
        if layers:
            for key in ("hypothesis", "expected"):
                tables.pop(key, None)
        layers.insert(0, (str(file), tables))
        file = below
    return layers


def base_of(file: Path, tables: dict) -> Path | None:
    """The entry that an entry builds on. The key leaves its tables. Raises UserError."""
    if "base" not in tables:
        return None
    base = tables.pop("base")
    if not isinstance(base, str) or not base or beyond(base):
        raise UserError(f"{file}: base = {shown(base)}, expected the path of another entry")
    below = file.parent / base
    if not os.path.exists(below) and file.is_symlink():
        below = file.resolve().parent / base
    return below


def origins(layers: list[tuple[str, dict]]) -> dict[tuple[str, str], str]:
    """(table, key) -> the last layer that says it. Keys outside the tables have the table ""."""
    origin = {}
    for where, layer in layers:
        for table, keys in layer.items():
            if isinstance(keys, dict):
                origin |= {(table, key): where for key in keys}
            else:
                origin["", table] = where
    return origin


def overlay(cls, layers: list[tuple[str, dict]], last: str):
    """The dataclass of all layers, later ones over earlier ones. `last` owns the defaults.

    Each layer is checked by itself, then the whole by its `problems()`. A class with a method
    `variant` chooses another one by what the layers say. Raises UserError.
    """
    if hasattr(cls, "variant"):
        cls = cls.variant(layers)
    values: dict = {}
    for where, layer in layers:
        check_layer(layer, cls, where)
        values = merge(without_files(values, layer), layer)
    cfg, origin = build(cls, values), origins(layers)
    for table, key, expected in cfg.problems():
        where = origin.get((table, key), f"{last} (default)")
        owner = getattr(cfg, table) if table else cfg
        place = f"{where} [{table}]" if table else where
        raise UserError(f"{place}: {key} = {shown(getattr(owner, key))}, expected {expected}")
    return cfg


def without_files(values: dict, layer: dict) -> dict:
    """The values below a layer. If it says data.generate = true, they name no files any more."""
    if layer.get("data", {}).get("generate") is not True or "data" not in values:
        return values
    table = {key: value for key, value in values["data"].items() if not key.endswith("_path")}
    return values | {"data": table}


def refuse_problems(table, name: str) -> None:
    """Raises UserError for the first problem of one table, for callers without an entry."""
    for key, expected in table.problems():
        raise UserError(f"{name}.{key} = {shown(getattr(table, key))}, expected {expected}")


def load_config(cls, entry: Path, overrides: dict):
    """base <- entry <- command line. Raises UserError. The table [slurm] is for `slurm_config`."""
    layers = [*read_layers(Path(entry)), ("command line", overrides)]
    for at, (where, layer) in enumerate(layers):
        layers[at] = where, {key: value for key, value in layer.items() if key != "slurm"}
    return overlay(cls, layers, str(entry))


# ---------------------------------------------------------------- the command line


class Parser(argparse.ArgumentParser):
    """The command line of a program: what is wrong with it is a UserError."""

    def __init__(self, program: str, description: str, style=argparse.RawDescriptionHelpFormatter):
        super().__init__(description=description, formatter_class=style, allow_abbrev=False)
        self.program = program

    def error(self, message: str):
        raise UserError(f"command line: {message}; see python {self.program} --help")


def make_parser(program: str, description: str) -> Parser:
    """A parser whose help keeps the line breaks of the keys."""
    return Parser(program, description, argparse.RawTextHelpFormatter)


def add_keys(
    parser, classes: list[type], hidden: tuple[str, ...] = ("hypothesis",), table: str = ""
) -> dict[str, type]:
    """An option for every key of some configs, its comment as help: {"train.steps": int, ...}

    A key that several configs have is added once. `hidden`: keys to leave out, with their table.
    `table`: the one that all these keys are in.
    """
    kinds, groups = {}, {}
    for cls in classes:
        for key, field, text in keys_of(cls, table):
            if key in hidden or key in kinds:
                continue
            kinds[key] = field.type
            name = key.rpartition(".")[0]
            if name and name not in groups:
                groups[name] = parser.add_argument_group(f"[{name}]")
            place = groups[name] if name else parser
            place.add_argument(f"--{key}", metavar="", default=argparse.SUPPRESS, help=text)
    return kinds


def keys_of(cls, table: str = "") -> Iterator[tuple[str, dataclasses.Field, str]]:
    """(key, field, help text) of every key of a config, tables included."""
    notes = comments(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from keys_of(field.type, field.name)
            continue
        choices = ", ".join(map(str, choices_of(field.type)))
        text = notes.get(field.name, "") + (f" {{{choices}}}" if choices else "")
        text = f"{text} (default {field.default!r})".replace("%", "%%")
        yield f"{table}.{field.name}" if table else field.name, field, text


def parse(parser, argv: list[str], kinds: dict[str, type]) -> tuple[argparse.Namespace, dict]:
    """(options of the parser itself, keys of `kinds` that were given as nested dicts).

    Raises UserError.
    """

    def fail(message: str):
        raise UserError(f"command line: {message}")

    found, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        word = unknown[0]
        if not word.startswith("-"):
            fail(f"unexpected word {word!r}")
        options = [key.replace("_", "-") for key in vars(found) if key not in kinds]
        key = word.removeprefix("--").split("=")[0]
        table = key.partition(".")[0]
        beside = [known for known in kinds if known.startswith(f"{table}.")]
        advice = nearest(key, beside or [*kinds, *options])
        same = [option for option in options if option == f"{key}s"]
        same += [known for known in kinds if known.partition(".")[2] == key]
        if same:
            advice = f", did you mean {' or '.join(f'--{known}' for known in same)}?"
        if not beside and "did you mean" not in advice:
            advice = "; --help lists the keys that this entry can have"
        fail(f"unknown key {shown(word)}{advice}")
    given = {key: text for key, text in vars(found).items() if key in kinds}
    return found, nested({key: parse_value(text, kinds[key]) for key, text in given.items()})


def command_line(cls, argv: list[str], description: str) -> tuple[Path, dict]:
    """`entry.toml --train.steps=200 --seed 1` -> (entry, overrides as nested dicts).

    --help lists every key that this entry can have.
    """
    argv = with_entry(argv)
    layers = hints(argv)
    if hasattr(cls, "variant"):
        cls = cls.variant(layers)
    parser = make_parser("train.py", description + own_values(cls, layers))
    parser.usage = "train.py ENTRY [--KEY=VALUE ...]"
    words = "an entry, for example sweeps/maze_baseline.toml, or the name of one in sweeps/"
    parser.add_argument("entry", type=Path, help=words)
    kinds = add_keys(parser, [cls])
    found, overrides = parse(parser, argv, kinds)
    for key, text in vars(found).items():
        if kinds.get(key) in (bool, int, float) and "," in text:
            option = "seeds" if key == "seed" else key
            raise UserError(
                f"command line: {key} = {text!r}, expected one value here; "
                f"python -m submitit_launch {found.entry} --{option}={text} trains a run for each"
            )
    return found.entry, overrides


def with_entry(argv: list[str]) -> list[str]:
    """The words of a command line, with an entry that is named alone as the file that it is."""
    for at, word in enumerate(argv):
        before = argv[at - 1] if at else ""
        is_value = before.startswith("--") and "=" not in before
        if not word.startswith("-") and not is_value:
            return [*argv[:at], named_entry(word), *argv[at + 1 :]]
    return argv


SWEEPS = Path(__file__).parent / "sweeps"


def named_entry(word: str) -> str:
    """The file of an entry in sweeps/, for its name, as maze_random or laptop/maze_random.

    A file, and a wrong path to one, stay as they are. Raises UserError.
    """
    if os.path.isdir(word):
        raise UserError(
            f"{word}: is a folder, expected one entry; python -m submitit_launch {word} trains all"
        )
    if os.path.exists(word) or not SWEEPS.is_dir():
        return word
    found = entries_named(word)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{word}: several entries have this name, expected one of {listed(found)}")
    if "/" in word or "." in word:
        return word
    every = {os.path.relpath(path): path.stem for path in sorted(SWEEPS.rglob("*.toml"))}
    close = [stem for stem in every.values() if stem.startswith(word)]
    close += difflib.get_close_matches(word, every.values(), 3, 0.5)
    near = [path for name in dict.fromkeys(close) for path in every if every[path] == name][:3]
    advice = f"did you mean {listed(near)}?" if near else "python train.py lists them"
    raise UserError(f"{word}: no such entry; {advice}")


def entries_named(word: str) -> list[str]:
    """The files in sweeps/ that a name may mean: maze_random, laptop/maze_random."""
    wanted = f"/{word.removesuffix('.toml')}.toml"
    every = map(os.path.relpath, sorted(SWEEPS.rglob("*.toml")))
    return [path for path in every if f"/{path}".endswith(wanted)]


def listed(names: list[str]) -> str:
    return " or ".join(names)


def entries_text() -> str:
    """The entries in sweeps/, each with its hypothesis, folder by folder."""
    lines = []
    for folder in sorted({path.parent for path in SWEEPS.rglob("*.toml")}):
        lines += ["", f"{os.path.relpath(folder)}/"]
        for path in sorted(folder.glob("*.toml")):
            words = textwrap.shorten(read_toml(path)["hypothesis"], 92, placeholder=" ...")
            lines.append(f"  {path.stem:22} {words}")
    return "\n".join(lines[1:])


MOST_USED = ("train.steps", "train.batch_size", "train.lr", "train.threads", "data.size")
MOST_USED += ("model.dim", "model.T", "model.n", "seed", "out")


def own_values(cls, layers: list[tuple[str, dict]]) -> str:
    """What an entry says beside the defaults, for its --help: the keys that are used most first."""
    if not layers:
        return ""
    values: dict = {}
    for _, layer in layers:
        values = merge(values, layer)
    own, defaults = flat_tables(values), flatten(cls())
    keys = [key for key in MOST_USED if key in defaults]
    keys += [key for key in own if key in defaults and key not in (*keys, "hypothesis")]
    lines = ["", f"Values of {layers[-1][0]}:"]
    for key in keys:
        value, default = own.get(key, defaults[key]), defaults[key]
        beside = "" if value == default else f"(default {toml_value(default)})"
        lines.append(f"  --{key + '=' + toml_value(value):38} {beside}".rstrip())
    return "\n".join(lines)


def hints(argv: list[str]) -> list[tuple[str, dict]]:
    """The layers that a command line names, as far as they can be read, to choose a class by."""
    layers: list[tuple[str, dict]] = []
    for word in argv:
        path = Path(word)
        is_entry = path.suffix.lower() == ".toml" and os.path.isfile(path)
        if not word.startswith("-") and is_entry:
            layers += read_layers(path)
    for at, word in enumerate(argv):
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key.count(".") == 1:
            value = value if equals else "".join(argv[at + 1 : at + 2])
            layers.append(("command line", nested({key: value})))
    return layers


class Output:
    """A stream that drops what it cannot write: its pipe or terminal is closed, its disk is full.

    What a program does is worth more than what it says about it.
    """

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # letters that a terminal does not have

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            self.drop()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.drop()

    def drop(self) -> None:
        """Lead the stream into nothing, with what is left in its buffer."""
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())
            os.close(nothing)


def quiet_output() -> None:
    """From here on no print ends the program, whatever its output leads to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    sys.stdout = Output(sys.stdout or open(1, "w", encoding="utf-8", closefd=False))
    sys.stderr = Output(sys.stderr or open(2, "w", encoding="utf-8", closefd=False))


# ---------------------------------------------------------------- the table [slurm]


@dataclass(frozen=True)
class SlurmConfig:
    """Where a run computes, never what: train.py checks it and goes on without it.

    command line > entry > its base > sweeps/slurm.toml > defaults
    """

    partition: str = ""  # where to queue; empty, here and below: as the cluster does by itself
    account: str = ""  # who pays
    qos: str = ""  # quality of service
    constraint: str = ""  # features a node must have, for example "h100|h200"
    # limit of one job, "90m", "12h", "1d12h" or SLURM's D-HH:MM:SS; a longer run is requeued
    time: str = "12h"
    nodes: int = 1  # nodes of a run
    gpus: int = 0  # GPUs on each node
    # processes on each node, all of a run form one DDP group; 0: one per GPU, at least one
    tasks: int = 0
    cpus: int = 1  # CPUs of each process
    memory: str = ""  # on each node, for example "16GB"
    max_parallel: int = 0  # runs of a launch that compute at the same time; 0: no limit of ours
    # seconds between the warning and the time limit: a step and a checkpoint must fit
    signal_delay: int = 120
    # times a job comes back after a warning before somebody has to launch again
    requeue: int = 100
    setup: str = ""  # shell command on the node before Python starts, like "module load cuda"
    options: str = ""  # further sbatch options, for example "--exclude=n12 --nice=100"

    def problems(self) -> Iterator[tuple[str, str, str]]:
        for key, value in vars(self).items():
            if isinstance(value, str) and has_control_characters(value):
                yield "", key, "one line without control characters, for it becomes a shell script"
        limit = minutes(self.time)
        if not limit:
            yield "", "time", 'a duration like "90m", "12h", "1d12h" or "1-12:00:00"'
        for key in ("nodes", "cpus", "signal_delay"):
            if getattr(self, key) < 1:
                yield "", key, "at least 1"
        for key in ("gpus", "tasks", "max_parallel", "requeue"):
            if getattr(self, key) < 0:
                yield "", key, "at least 0"
        if self.signal_delay >= min(60 * (limit or 1), 65536):
            yield "", "signal_delay", f"fewer seconds than time = {self.time!r} has, at most 65535"
        if not re.fullmatch(r"(\d+[KMGT]B?)?", self.memory):
            yield "", "memory", 'a size like "16GB" or "500M"'
        if not all(
            re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word) for word in shell_words(self.options)
        ):
            yield "", "options", 'long options with their values behind =, like "--exclude=n12"'

    @property
    def processes(self) -> int:
        """All processes of a run."""
        return self.nodes * (self.tasks or self.gpus or 1)


def has_control_characters(text: str) -> bool:
    """Whether a line break, an escape or half a character of a broken encoding is in a text."""
    return any(unicodedata.category(char) in ("Cc", "Cs") for char in text)


def shell_words(text: str) -> list[str]:
    """Shell words; the text itself where a quote is never closed."""
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


def minutes(text: str) -> int:
    """A duration in minutes, 0 where it is none."""
    short = re.fullmatch(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?", text)
    long = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if not (short or long):
        return 0
    days, hours, mins, *seconds = (int(part or 0) for part in (short or long).groups())
    return days * 1440 + hours * 60 + mins + any(seconds)


def below_sweeps(entry: Path) -> tuple[Path | None, Path]:
    """(the sweeps folder or None, the entry's path below it without .toml; else its name)."""
    path = Path(os.path.abspath(entry))  # a link is what its name says, not what it points to
    parts = path.parent.parts
    if "sweeps" not in parts:
        return None, Path(path.stem)
    at = len(parts) - parts[::-1].index("sweeps")
    return Path(*parts[:at]), Path(*parts[at:], path.stem)


def slurm_config(entry: Path, overrides: dict | None = None) -> SlurmConfig:
    """The [slurm] table of an entry, of all the places that may hold it. Raises UserError."""
    layers = read_layers(Path(entry))
    sweeps, _ = below_sweeps(entry)
    shared = sweeps / "slurm.toml" if sweeps else None
    if shared and shared.exists():
        tables = read_toml(shared)
        if other := tables.keys() - {"slurm"}:
            raise UserError(
                f"{shared}: unknown key '{min(other)}', expected the table [slurm] alone"
            )
        layers.insert(0, (str(shared), tables))
    layers.append(("command line", overrides or {}))
    for where, layer in layers:
        if not isinstance(layer.get("slurm", {}), dict):
            raise UserError(f"{where}: slurm = {shown(layer['slurm'])}, expected a table [slurm]")
    tables = [(f"{where} [slurm]", layer.get("slurm", {})) for where, layer in layers]
    return overlay(SlurmConfig, tables, f"{entry} [slurm]")


if __name__ == "__main__":
    raise SystemExit("config.py is a part to import; python train.py begins, README.md says more")
