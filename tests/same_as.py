"""Does this code compute what another copy of it computed, to the bit?

    python tests/same_as.py OTHER [--work FOLDER] [name ...]

A tool for refactorings, not a test. OTHER is a folder with an older commit, made with
git worktree add /tmp/old COMMIT.
Each case below is an entry, made small, that trains for 12 steps with validations in both copies.
Compared are metrics.jsonl without the seconds, the test figures of summary.json
and the tensors of best.pt.
Runs of OTHER are kept in the work folder and used again.
Cases in EXPECTED were changed on purpose since.
Exit codes: 0 all the others are identical, 1 something else differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "--train.dtype=float32 --train.compile=off --train.threads=1 --train.device=cpu"
    " --train.steps=12 --train.eval_every=6 --train.log_every=3"
)
SMALL = "--model.dim=32 --model.heads=4 --model.multiple=8 --train.batch_size=8 --train.warmup=4"
MAZE = (
    f"{SMALL} --data.generate=true --data.size=7 --data.train_rows=80 --data.test_rows=24"
    " --model.T=2 --model.n=2 --model.n_sup=3"
)
SUDOKU = (
    f"{SMALL} --data.generate=true --data.size=4 --data.train_rows=80 --data.val_rows=20"
    " --data.test_rows=24 --model.T=2 --model.n=2 --model.n_sup=3"
)
ARC = (
    f"{SMALL} --arc.train= --arc.test= --arc.side=5 --arc.grid=4 --arc.colours=5"
    " --arc.train_tasks=8 --arc.val_tasks=3 --arc.test_tasks=3"
    " --model.T=2 --model.n=1 --model.n_sup=3"
)
READER = f"{ARC} --encoder.heads=4 --encoder.multiple=8"
ROWS = "--data.train_rows=60 --data.val_rows=20 --data.test_rows=20 --train.batch_size=16"
CASES = {  # name -> entry below sweeps/ and the options that make it small
    "maze_conv_halting": (
        "laptop/maze_perfect.toml",
        f"{MAZE} --model.halting=true --model.explore=0.5",
    ),
    "maze_fresh": ("laptop/maze_random.toml", f"{MAZE} --data.fresh=true --train.accumulate=2"),
    "maze_hard": ("laptop/maze_hard.toml", f"{MAZE} --train.eval_steps=6 --train.eval_average=3"),
    "maze_attention": ("maze_baseline.toml", f"{MAZE} --model.prefix=2"),
    "maze_rope2d": ("ablation/rope2d.toml", MAZE),
    "maze_muon": ("ablation/muon.toml", f"{MAZE} --model.prefix=1"),
    "maze_two_nets": ("ablation/two_nets.toml", f"{MAZE} --model.prefix=1"),
    "maze_random_init": (
        "ablation/random_init.toml",
        f"{MAZE} --model.prefix=1 --model.positions=learned",
    ),
    "maze_continue_loss": (
        "ablation/continue_loss.toml",
        f"{MAZE} --model.mixer=conv --model.positions=none --model.prefix=0 --model.q_from=mean"
        " --model.init=learned",
    ),
    "maze_conv_attention": (
        "maze_baseline.toml",
        f"{MAZE} --model.prefix=0 --model.q_from=mean --model.mixer=conv+attention"
        " --data.test_size=9 --train.optimizer=adam_atan2",
    ),  # fmt: skip
    "sudoku_mixer": ("sudoku_mlp.toml", f"{SUDOKU} --model.prefix=2"),
    "sudoku_6x6": (
        "laptop/sudoku_6x6.toml",
        "--data.train_rows=80 --data.val_rows=20 --data.test_rows=24 --train.batch_size=8",
    ),
    "sudoku_per_digit": ("laptop/sudoku_extreme.toml", f"{SUDOKU} --data.reveal=0.5"),
    "sudoku_grokfast": ("grokking_laptop/ma.toml", f"{SUDOKU} --train.grokfast_window=3"),
    "features": ("features/classify.toml", f"{ROWS} --data.features=16"),
    "features_highpass": (
        "features/grokfast.toml",
        f"{ROWS} --data.features=16 --train.grokfast=highpass",
    ),
    "modular_grokfast": ("grokking/grokfast_ema.toml", "--data.modulus=7 --train.batch_size=8"),
    "control": ("control/van_der_pol.toml", ROWS),
    "control_ablation": ("control_ablation/full_trm.toml", ROWS),
    "control_feedback": ("control_ablation/feedback.toml", ROWS),
    "control_process": ("control_ablation/process.toml", ROWS),
    "control_source": (
        "control/source_double_integrator.toml",
        "--train.batch_size=16 --data.test_rows=20",
    ),
    "control_one_token": (
        "control_ablation/baseline.toml",
        f"{ROWS} --plan.one_token=true --plan.residual=true --plan.feedback=both --plan.hold=1"
        " --model.multiple=1 --model.positions=none --data.plant=double_integrator",
    ),  # fmt: skip
    "arc_embed": ("encoders_laptop/E0v2.toml", ARC),
    "arc_standard": ("encoders_laptop/E1v2.toml", READER),
    "arc_decoder": ("recurrent_laptop/E0b.toml", f"{READER} --encoder.decoder=arc_embed/seed0"),
    "arc_lpn_var": (
        "encoders_debug/E3_lpn_var.toml",
        f"{READER} --model.prefix=4 --encoder.small=32 --arc.augmentations=2",
    ),
    "arc_hybrid": (
        "encoders_laptop/E1v2.toml",
        f"{READER} --encoder.kind=hybrid_variational --arc.mode=loo --arc.drop_demos=true",
    ),
    "arc_cells": ("encoders_laptop/E1v2.toml", f"{READER} --encoder.kind=cells --model.prefix=150"),
    "arc_one_hot": ("encoders_debug/one_hot.toml", f"{ARC} --model.prefix=4"),
    "arc_trm_style": (
        "recurrent/trm_style.toml",
        f"{READER} --encoder.decoder= --model.prefix=4 --encoder.freeze_decoder_steps=4",
    ),
}

MOVED = {  # entry of today -> where older commits have it
    "encoders_laptop/E0v2.toml": "laptop/arc_E0v2.toml",
    "encoders_laptop/E1v2.toml": "laptop/arc_E1v2.toml",
    "recurrent_laptop/E0b.toml": "laptop/arc_E0b.toml",
}

# Cases whose numbers were changed on purpose since the refactoring, and why.
COSINE = "the cosine reaches its floor at the last step, not one step behind it"
ROWS = "the averaged net has the rows of puzzle identifiers as they are, as in the public code"
NOISE = "random first states belong to the puzzle, not to its place in a batch"
EXPECTED = {
    "maze_conv_halting": COSINE,
    "maze_fresh": COSINE,
    "maze_hard": COSINE,
    "maze_attention": ROWS,
    "maze_rope2d": ROWS,
    "maze_muon": ROWS,
    "maze_two_nets": ROWS,
    "maze_random_init": f"{NOISE}; {ROWS}",
    "sudoku_mixer": ROWS,
    "sudoku_per_digit": COSINE,
    "sudoku_grokfast": ROWS,
    "control": COSINE,
    "control_ablation": COSINE,
    "control_feedback": COSINE,
    "control_process": COSINE,
    "control_source": COSINE,
    "control_one_token": COSINE,
    "arc_embed": f"{COSINE}; {ROWS}",
    "arc_standard": COSINE,
    "arc_decoder": COSINE,
    "arc_hybrid": COSINE,
    "arc_cells": COSINE,
}


def train(code: Path, work: Path, name: str) -> Path:
    """Run a case with the code in a folder; the run folder."""
    entry, options = CASES[name]
    path = code / "sweeps" / entry
    if not path.exists():
        path = code / "sweeps" / MOVED[entry]
    folder = work / name
    if not (folder / "seed0" / "summary.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        words = [
            sys.executable,
            str(code / "train.py"),
            str(path),
            f"--out={work / '.runs' / name}",
            *COMMON.split(),
            *options.split(),
        ]
        done = subprocess.run(
            words,
            cwd=work,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise SystemExit(
                f"{code}: {name} ended with {done.returncode}\n"
                f"{' '.join(words)}\n{done.stderr[-1500:]}"
            )
        found = next((work / ".runs" / name).rglob("summary.json")).parent
        folder.mkdir(parents=True, exist_ok=True)
        found.rename(folder / "seed0")
    return folder / "seed0"


RENAMED = {
    "control": {"cells": "to_optimum"}
}  # task -> figures that older commits called otherwise


def renamed(value, names: dict):
    """Nested figures under the names of today."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(inner, names) for key, inner in value.items()}
    return value


def result(folder: Path) -> dict:
    """What must not change, as a flat dict of texts and tensors."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    names = RENAMED.get(summary["task"], {})
    summary, lines = renamed(summary, names), [renamed(line, names) for line in lines]
    summary["test_halting"].pop("timed_rows", None)  # newer than some copies
    found = {
        f"metrics.jsonl line {at} {key}": value
        for at, line in enumerate(lines, 1)
        for key, value in line.items()
        if key != "seconds"
    }
    for part in (
        "test",
        "test_halting",
        "val",
        "baseline",
        "parameters",
        "depth",
        "steps",
        "best_step",
        "flop",
        "arc",
    ):
        found[f"summary.json {part}"] = summary.get(part)
    found["summary.json baseline"] = summary["baseline"]["exact"]
    found["summary.json control"] = {
        k: v for k, v in summary.get("control", {}).items() if k != "ms_per_plan"
    }
    best = torch.load(folder / "best.pt", weights_only=True)
    for kind in ("raw", "ema"):
        found |= {f"best.pt {kind} {name}": tensor for name, tensor in (best[kind] or {}).items()}
    return found


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="a folder with another commit")
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir(), "same_as"),
        help="where the runs go",
    )
    parser.add_argument(
        "--only-other", action="store_true", help="make the runs of OTHER, compare nothing"
    )
    args = parser.parse_args()
    bad = on_purpose = 0
    for name in args.names or CASES:
        old = train(args.other.resolve(), args.work / "other", name)
        if args.only_other:
            print(f"made       {name}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as here:
            if name == "arc_decoder":
                train(ROOT, Path(here), "arc_embed")
            one, two = result(old), result(train(ROOT, Path(here), name))
        wrong = [
            key
            for key in one.keys() | two.keys()
            if key not in one or key not in two or not same(one[key], two[key])
        ]
        if not wrong:
            print(f"identical  {name}: {len(one)} values", flush=True)
        elif name in EXPECTED:
            why = EXPECTED[name]
            print(f"changed on purpose  {name}: {len(wrong)} values; {why}", flush=True)
            on_purpose += 1
        else:
            print(f"DIFFERENT  {name}: {len(wrong)} values, {sorted(wrong)[:4]}", flush=True)
            bad += 1
    if not args.only_other:
        count = len(args.names or CASES)
        same_count = count - bad - on_purpose
        print(
            f"{same_count} of {count} identical, {on_purpose} changed on purpose, {bad} different"
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
