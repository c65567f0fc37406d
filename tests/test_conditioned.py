"""A net that is told its task by examples, through train.py.

Gradients, slots, resuming, freezing, rates, decoders, figures, refusals.
All thirty bugs that were found in the public ETRM code, and where we rule them out. E:
test_encoders.py, A: test_arc.py, P: test_arc_report.py, C: here, R: test_rules.py; "by
construction": there is no way to write it.
  1     encoder never runs after the first batch
        C test_gradient_reaches_every_encoder_for_20_steps
  2     cached context, 2-6 % of slots get gradient
        C the same (encoder_coverage is 1 at every step)
  3     loss on labels of other rows
        C test_a_slot_keeps_its_demonstrations_and_labels_until_it_halts
  4     empty slots are encoded
        E test_encoder_works_on_valid_demonstrations_only
  5     carried state detached before use
        C test_gradient_reaches_..., E test_recurrent_encoder_detaches_what_comes_in_only
  6     0.9 of the old state hides demonstrations
        E test_carry_ema_... (a key, off); its figures are logged: C test_health_by_hand
  7     another class than the run says
        C test_every_kind_is_what_the_entry_says; the banner prints it
  8     unknown keys dropped
        C test_bad_input_is_one_sentence
  9     KL missing or scaled by 1 / B
        C test_kl_enters_the_loss_once_per_row
  10    a staged freeze freezes everything
        C test_freezing_freezes_just_that
  11    divided by 400 whatever was evaluated
        A test_four_tasks_are_divided_by_four
  12    percentages without n
        A test_the_sentence_about_votes_has_n_and_an_interval
  13    votes add up over evaluations
        A test_votes_do_not_outlive_an_evaluation
  14    gradient norms after clipping, of one process
        C test_gradient_share_is_taken_before_clipping
  15    clipping before the sum over processes
        by construction: train_step reduces, then clips; test_train.py compares ranks
  16    variances keyed by augmentation
        A test_task_augmentation_and_puzzle_ids_are_three_things
  17    variances that depend on scale
        C test_health_by_hand
  18    weighted pooling of nothing is NaN
        E test_encoder_of_rows_without_demonstrations_is_finite
  19    padding takes part in attention
        E test_encoder_ignores_padding
  20    context positions start as copies
        E test_encoder_context_positions_differ_at_the_start; encoder_diversity is logged
  21    context 22 times as large as tokens
        E test_encoder_context_has_rms_of_one; encoder_rms is logged
  22    decoder trained with another T or n
        C test_a_decoder_that_does_not_fit_is_refused
  23    final norm missing
        E test_encoder_context_has_rms_of_one
  24    warm-up longer than training
        R test_sweeps_have_equal_budgets_and_short_warm_ups
  25    other steps and targets than the baseline
        R the same; A test_baseline_and_encoder_can_answer_the_same_targets
  26    queries dropped, training tasks not evaluated
        A test_every_query_is_evaluated_under_every_augmentation, P
        test_report_covers_both_sides_...
  27    evaluation demonstrations in the decoder
        C test_a_decoder_that_saw_held_out_tasks_is_refused
  28    falls back to another configuration
        C test_a_decoder_that_does_not_fit_is_refused (no summary.json); runs.check_same
  29    one batch, one seed, no interval
        R test_figures_are_means_over_late_lines_and_seeds
  30    two factories
        by construction: encoders.make_encoder is the only one
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import tiny
import train as training
from config import UserError, load_config, merge
from encoders import FAMILY, JOINS, EncoderConfig
from model import TRM, Carry, Output
from tasks.arc_tasks import ArcConfig
from tasks.conditioned import Conditioned, change, health, load_decoder, refuse_seen_init
from train import Config, main

ARC = {
    "data": {"task": "arc"},
    "model": {
        "mixer": "attention",
        "positions": "rope",
        "prefix": 3,
        "q_from": "first",
        "n_sup": 2,
    },
    "arc": {
        "side": 4,
        "grid": 3,
        "colours": 3,
        "train_tasks": 6,
        "val_tasks": 2,
        "test_tasks": 3,
        "rules": "moves",
        "demos": 2,
    },
    "encoder": {
        "kind": "standard",
        "heads": 2,
        "multiple": 8,
        "expansion": 1.0,
        "layers": 1,
        "small": 8,
    },
    "train": {"steps": 6, "eval_every": 3},
}
CELLS = {"model": {"prefix": 2 * 2 * 16}}
EMBED = {"arc": {"mode": "embed", "val_tasks": 0}}
NONE = {"encoder": {k: v for k, v in vars(EncoderConfig()).items() if k in ARC["encoder"]}}
RECURRENT = ["recurrent_standard", "trm_style"]


def tables(kind: str = "standard", *more: dict) -> dict:
    found = merge(ARC, NONE if kind == "none" else {"encoder": {"kind": kind}})
    for each in (CELLS if kind == "cells" else {}, EMBED if kind == "lookup" else {}, *more):
        found = merge(found, each)
    return found


def config(kind: str = "standard", *more: dict) -> Config:
    cfg = tiny.config(**tables(kind, *more))
    assert not list(cfg.problems())
    return cfg


def start(cfg: Config, folder, seed: int = 0):
    """A run in memory and its feed."""
    ds = data.load(cfg)
    run = training.make_run(cfg, folder, training.make_world(cfg.train), ds)
    return run, data.batches(ds, cfg, cfg.train.batch_size, cfg.seed, 0)


def stop_after(monkeypatch, steps: int) -> None:
    """The training step after `steps` raises."""
    whole, calls = training.train_step, itertools.count()

    def step(*args):
        if next(calls) == steps:
            raise KeyboardInterrupt
        whole(*args)

    monkeypatch.setattr(training, "train_step", step)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.slow
def test_gradient_reaches_every_encoder_for_20_steps(kind, tmp_path, monkeypatch):
    cfg = config(kind, {"train": {"steps": 20}})
    run, feed = start(cfg, tmp_path)
    silent, seen = [], training.average_gradients

    def look(params, world):
        fresh = run.step % cfg.model.n_sup == 0
        silent.extend(
            (run.step, name)
            for name, p in run.net.encoder.named_parameters()
            if not p.grad.any() and (fresh or name != "first")
        )  # a learned first state is used where a slot is new
        seen(params, world)

    monkeypatch.setattr(training, "average_gradients", look)
    for step in range(20):
        run.sums = {}
        training.train_step(run, feed)
        line = training.train_line(run)
        assert line["encoder_coverage"] == 1 and 0 < line["encoder_gradient_share"] < 1, (
            step,
            line,
        )
    feed.close()
    assert not silent, silent


def test_gradient_share_is_taken_before_clipping(tmp_path):
    shares = []
    for clip in (0.0, 1e-3):
        cfg = config("standard", {"train": {"clip": clip}})
        run, feed = start(cfg, tmp_path)
        training.train_step(run, feed)
        feed.close()
        shares.append({k: v for k, v in training.train_line(run).items() if "gradient" in k})
    assert shares[0] == shares[1] and shares[0]["encoder_gradient"] > 1e-3


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize("kind", ["standard", *RECURRENT])
def test_a_new_slot_starts_afresh_whatever_its_neighbours_do(kind, tmp_path):
    cfg = config(kind, {"model": {"n_sup": 9, "T": 1}, "train": {"batch_size": 6}})
    ds = data.load(cfg)
    torch.manual_seed(1)
    net = cfg.task.make_net(cfg, ds.shape, torch.float32).train()
    one, two = (
        {k: data.tensor(v) for k, v in data.draw(ds, cfg, 6, 0, step).items()} for step in (0, 1)
    )
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _, alone = net.step(net.refill(net.start(two), two))
        for _ in range(4):  # any pattern of halting
            carry, _ = net.step(net.refill(net.start(one), one))
            carry, going = net.step(carry)
            _, on = net.step(replace(carry, halted=torch.zeros(6, dtype=torch.bool)))
            carry.halted = torch.rand(6, generator=g) < 0.5
            new = carry.halted
            _, out = net.step(net.refill(carry, two))
            torch.testing.assert_close(out.logits[new], alone.logits[new], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(out.logits[~new], on.logits[~new], rtol=1e-5, atol=1e-5)
            if kind in RECURRENT and (~new).any():
                assert (
                    out.aux["context"][~new] - going.aux["context"][~new]
                ).abs().max() > 1e-4  # and running ones went on


def test_a_slot_keeps_its_demonstrations_and_labels_until_it_halts(tmp_path):
    cfg = config("recurrent_standard", {"model": {"n_sup": 3}})
    run, feed = start(cfg, tmp_path)
    for step in range(9):
        training.train_step(run, feed)
        batch = data.draw(data.load(cfg), cfg, 4, 0, step - step % 3)
        for key, value in batch.items():
            np.testing.assert_array_equal(
                run.carry.batch[key].numpy(), value, err_msg=f"{step} {key}"
            )
        assert set(batch) >= {
            "inputs",
            "labels",
            "demos",
            "mask",
            "task",
            "puzzle",
        } and run.carry.more["state"].shape == (4, 3, 16)
    feed.close()


def test_episodes_are_a_function_of_seed_and_step_and_divide_among_ranks():
    cfg = config()
    ds = data.load(cfg)
    whole, parts = (
        data.draw(ds, cfg, 4, 3, 5),
        [data.draw(ds, cfg, 4, 3, 5, rank, 2) for rank in (0, 1)],
    )
    for key in whole:
        np.testing.assert_array_equal(whole[key], np.concatenate([p[key] for p in parts]))
    assert any((whole[k] != v).any() for k, v in data.draw(ds, cfg, 4, 3, 6).items())


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize(
    "kind, more",
    [
        (
            "recurrent_standard",
            {"train": {"optimizer": "muon"}, "model": {"n_sup": 4, "explore": 0.5}},
        ),
        (
            "trm_style",
            {
                "train": {"accumulate": 2, "optimizer": "adam_atan2"},
                "encoder": {"freeze_steps": 3},
            },
        ),
        (
            "hybrid_variational",
            {
                "train": {"grokfast": "ema", "clip": 1.0},
                "encoder": {"freeze_decoder_steps": 4},
                "arc": {"mode": "loo"},
            },
        ),
    ],
    ids=["recurrent", "trm_style", "variational"],
)
def test_a_stopped_run_ends_with_the_same_bits(kind, more, tmp_path, monkeypatch):
    keys = tables(kind, {"train": {"steps": 7, "eval_every": 5}}, more)
    tiny.run(tmp_path / "whole", **keys)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(tmp_path / "parts", **keys)
    if kind in RECURRENT:
        state = tiny.checkpoint(tmp_path / "parts")["processes"][0]["carry"]["more"]["state"]
        assert state.abs().sum() > 0 and not state.requires_grad
    tiny.run(tmp_path / "parts", **keys)
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_lookup_encoder_trains_to_the_bits_of_the_puzzle_embedding(tmp_path):
    for kind in ("none", "lookup"):
        tiny.run(tmp_path / kind, **tables(kind, EMBED))
    one, two = (
        [
            {k: v for k, v in line.items() if not k.startswith("encoder_")}
            for line in tiny.lines(tmp_path / kind)
        ]
        for kind in ("none", "lookup")
    )
    assert one == two and one[-1]["step"] == 6
    a, b = (tiny.checkpoint(tmp_path / kind, "best.pt")["raw"] for kind in ("none", "lookup"))
    assert torch.equal(a["puzzles"], b["encoder.puzzles"]) and a["puzzles"].any()


def test_accumulating_encoder_pieces_changes_nothing_but_rounding(tmp_path):
    lines = []
    for pieces in (1, 2):
        tiny.run(
            tmp_path / str(pieces),
            **tables("recurrent_standard", {"train": {"accumulate": pieces, "steps": 4}}),
        )
        lines.append(tiny.lines(tmp_path / str(pieces), "train"))
    for one, two in zip(*lines, strict=True):
        assert one.keys() == two.keys()
        for key in (
            "loss",
            "encoder_rms",
            "encoder_gradient_share",
            "encoder_coverage",
            "encoder_carry_rms",
        ):
            assert two[key] == pytest.approx(one[key], rel=2e-3), key


# ---------------------------------------------------------------- who learns, and how fast


def moved(before: dict, after: dict) -> set[str]:
    return {
        "encoder" if k.startswith("encoder.") else "decoder"
        for k in after
        if after[k].is_floating_point() and not torch.equal(before[k], after[k])
    }


@pytest.mark.parametrize(
    "keys, parts",
    [
        ({"freeze_steps": 2}, [{"decoder"}] * 2 + [{"encoder", "decoder"}]),
        ({"freeze_decoder_steps": 2}, [{"encoder"}] * 2 + [{"encoder", "decoder"}]),
        ({"frozen": True}, [{"decoder"}] * 3),
        ({}, [{"encoder", "decoder"}] * 3),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adam_atan2"])
def test_freezing_freezes_just_that(keys, parts, optimizer, tmp_path):
    run, feed = start(
        config("standard", {"encoder": keys, "train": {"optimizer": optimizer}}), tmp_path
    )
    for expected in parts:
        before = {k: v.clone() for k, v in run.net.state_dict().items()}
        training.train_step(run, feed)
        assert moved(before, run.net.state_dict()) == expected
    feed.close()
    if keys.get(
        "freeze_steps"
    ):  # and nothing was stored up meanwhile: its first moment is of one gradient
        names = {id(p): n for n, p in run.net.named_parameters()}
        for optimizer in run.optimizers:
            counts = {
                names[id(p)].split(".")[0] == "encoder": s["step"]
                for p, s in optimizer.state.items()
                if "step" in s
            }
            assert not counts or (counts[True], counts[False]) == (1, 3)


def test_rates_are_multiples_for_groups_of_one_optimizer(tmp_path):
    moves = []
    for keys in ({}, {"lr": 0.5}):
        run, feed = start(
            config("standard", {"encoder": keys, "train": {"warmup": 0, "weight_decay": 0.0}}),
            tmp_path,
        )
        before = {k: v.clone() for k, v in run.net.named_parameters()}
        training.train_step(run, feed)
        feed.close()
        assert len(run.optimizers) == 1 and len(run.optimizers[0].param_groups) == 2
        moves.append(
            {k: (v - before[k]).detach().abs().max().item() for k, v in run.net.named_parameters()}
        )
    for name, whole in moves[0].items():
        encoder = name.startswith("encoder.")
        assert moves[1][name] == pytest.approx(whole * (0.5 if encoder else 1), rel=1e-3), name


def test_kl_enters_the_loss_once_per_row(tmp_path):
    totals = {}
    for size in (4, 8):
        for weight in (0.0, 0.1):
            run, feed = start(
                config(
                    "lpn_variational",
                    {"encoder": {"kl_weight": weight}, "train": {"batch_size": size}},
                ),
                tmp_path,
            )
            training.train_step(run, feed)
            feed.close()
            totals[size, weight] = training.train_line(run)
    for size in (4, 8):
        plain, with_kl = totals[size, 0.0], totals[size, 0.1]
        assert (
            with_kl["kl_loss"] == pytest.approx(plain["kl_loss"], rel=1e-5)
            and plain["kl_loss"] > 0.1
        )
        assert with_kl["loss"] - plain["loss"] == pytest.approx(0.1 * plain["kl_loss"], rel=1e-3)


# ---------------------------------------------------------------- figures


def test_health_by_hand():
    context = torch.tensor(
        [[[1.0, 1.0], [1.0, 1.0]], [[3.0, 1.0], [1.0, 3.0]], [[2.0, 2.0], [1.0, -1.0]]],
        requires_grad=True,
    )
    state = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]], [[1.0, 1.0]]])
    before = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[9.0, 9.0]]])
    used = 1.0 * context
    out = Output(
        None,
        None,
        None,
        aux={"context": used, "fresh": torch.tensor([False, False, True]), "before": before},
    )
    sums = health(out, Carry(None, None, None, None, {}, {"state": state}), 1)
    (used * torch.tensor([1.0, 0.0, 2.0])[:, None, None]).sum().backward()
    square = float((context.detach() ** 2).mean())
    c = context.detach().numpy()
    assert sums["encoder_rms"] == pytest.approx(3 * square**0.5) and sums[
        "encoder_variance"
    ] == pytest.approx(3 * c.var(0).mean() / square)
    assert (
        sums["encoder_diversity"] == pytest.approx(3 * c.var(1).mean() / square, rel=1e-5)
        and sums["encoder_coverage"] == 2
    )
    assert sums["encoder_carry_rms"] == pytest.approx((25 / 2) ** 0.5 + 2**0.5 + 1, rel=1e-5)
    assert (
        sums["encoder_carry_change"] == pytest.approx(0 + 1.0) and sums["encoder_going"] == 2
    )  # the fresh row does not count
    twice = health(
        Output(None, None, None, aux={"context": 2 * context, "fresh": out.aux["fresh"]}),
        Carry(None, None, None, None, {}),
        1,
    )
    assert (
        twice["encoder_variance"] == pytest.approx(float(sums["encoder_variance"]), rel=1e-5)
        and "encoder_carry_rms" not in twice
    )
    assert change(2 * before, before).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("kind", ["none", *FAMILY])
def test_every_kind_is_what_the_entry_says(kind):
    cfg = config(kind)
    net = cfg.task.make_net(cfg, data.load(cfg).shape, torch.float32)
    if kind == "none":
        assert type(net) is TRM
    else:
        assert (
            type(net) is Conditioned
            and net.encoder.cfg == cfg.encoder
            and type(net.encoder) is JOINS[FAMILY[kind].join]
        )


# ---------------------------------------------------------------- a decoder from another run


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder") / "seed0"
    tiny.run(folder, **tables("none", EMBED, {"train": {"steps": 3}}))
    return folder


def test_a_decoder_is_where_training_starts(decoder, tmp_path):
    run, feed = start(
        config("standard", {"encoder": {"decoder": str(decoder)}, "arc": {"val_tasks": 0}}),
        tmp_path,
    )
    feed.close()
    theirs, ours = tiny.checkpoint(decoder, "best.pt")["ema"], run.net.state_dict()
    same = {k for k in ours if k in theirs and torch.equal(ours[k], theirs[k])}
    assert same == theirs.keys() - {"puzzles"} and any(k.startswith("encoder.") for k in ours)
    assert not tiny.differences(ours, run.ema.module.state_dict())


def test_a_decoder_that_does_not_fit_is_refused(decoder, tmp_path):
    shape = {"seq_len": 16, "vocab_size": 5}
    model = config().model
    for keys, words in (
        ({"n_layers": 2}, "lacks 'net.blocks.1"),
        ({"multiple": 64}, "expected (64, 16)"),
        ({"n": 2}, "was trained with model.n = 1"),
        ({"T": 1}, "was trained with model.T = 2"),
        ({"two_nets": True}, "lacks 'net_y"),
    ):
        with pytest.raises(UserError, match=".") as error:
            load_decoder(
                Conditioned(replace(model, **keys), config().encoder, shape), str(decoder), set()
            )
        assert words.split("expected (")[0] in str(error.value), (keys, str(error.value))
    with pytest.raises(UserError, match="no finished run there"):
        load_decoder(Conditioned(model, config().encoder, shape), str(tmp_path), set())


def test_a_decoder_that_saw_held_out_tasks_is_refused(decoder):
    ids = json.loads((decoder / "summary.json").read_text())["data"]["ids"]
    net = Conditioned(config().model, config().encoder, {"seq_len": 16, "vocab_size": 5})
    load_decoder(net, str(decoder), set(ids["test"].split()))
    with pytest.raises(UserError, match="was trained on 1 of the held-out tasks"):
        load_decoder(net, str(decoder), {ids["train"].split()[0]})
    refuse_seen_init(decoder / "best.pt", set(ids["test"].split()))
    with pytest.raises(UserError, match=r"train\.init: .* was trained on 1 of the held-out tasks"):
        refuse_seen_init(decoder / "best.pt", {ids["train"].split()[0]})


@pytest.mark.slow
def test_a_net_with_an_encoder_starts_from_another_one_of_its_kind(tmp_path):
    tiny.run(tmp_path / "first", **tables())
    found, init = [], {"train": {"init": str(tmp_path / "first")}}

    def note(run) -> None:
        if run.step == 0:
            found.append({name: t.clone() for name, t in run.net.state_dict().items()})

    tiny.run(tmp_path / "second", note, **tables("standard", init))
    best = tiny.checkpoint(tmp_path / "first", "best.pt")
    assert tiny.differences(found[0], best["ema"]) == []
    with pytest.raises(UserError, match=r"train\.init = .* does not fit: .*encoder\."):
        tiny.run(tmp_path / "third", **tables("trm_style", init))
    assert not (tmp_path / "third").exists()


# ---------------------------------------------------------------- refusals


def entry(folder: Path, change: dict) -> Path:
    """The tables, changed, as a file."""
    shared = {table: tiny.ENTRY[table] for table in ("model", "train")}
    values = merge(merge(shared, ARC), change)
    path = folder / "arc.toml"
    lines = ["hypothesis = 'It is refused.'"]
    for table, keys in values.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


BAD = [  # change of the entry, words of the sentence
    ({"encoder": {"kind": "stndard"}}, "did you mean 'standard'"),
    ({"encoder": {"latnt": 3}}, "did you mean 'latent'"),
    ({"arc": {"demos": 0}}, "expected at least 1"),
    ({"encoder": {"heads": 3}}, "divides model.dim"),
    ({"model": {"prefix": 0}}, "no place to go"),
    ({"data": {"size": 9}}, "[data]: unknown key 'size'"),
    ({"plan": {"hold": 2}}, "unknown key 'plan'"),
    ({"encoder": {"kind": "lookup"}}, "a row per puzzle id"),
    ({"arc": {"mode": "embed"}}, "has no demonstrations"),
    ({"encoder": {"kind": "cells"}}, "expected 64 with"),
    ({"encoder": {"lr": 0.0}}, "more than 0"),
    ({"encoder": {"kind": "none"}}, "its default with encoder.kind = 'none'"),
    ({"encoder": {"frozen": True, "freeze_steps": 3}}, "never learns"),
    ({"encoder": {"decoder": "nowhere"}}, "no finished run"),
    ({"model": {"mixer": "pool", "prefix": 0, "q_from": "mean"}}, "expected"),
    ({"encoder": {"kind": "none"}, "model": {"mixer": "groups", "prefix": 0}}, "no boxes"),
    ({"encoder": {"freeze_steps": -1}}, "at least 0"),
    ({"arc": {"train": "a"}}, "as the other one names one"),
    ({"arc": {"train_tasks": 90}}, "has 14 rules"),
]


@pytest.mark.parametrize("change, words", BAD, ids=[words for _, words in BAD])
def test_bad_input_is_one_sentence(change, words, tmp_path, capsys):
    path = entry(tmp_path, change)
    assert main([str(path), f"--out={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said, said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("table", ["arc", "encoder"])
def test_other_tasks_refuse_the_tables(table, tmp_path):
    for task in ("sudoku", "modular", "control"):
        path = tmp_path / "other.toml"
        key = {"arc": "demos = 2", "encoder": "kind = 'lpn'"}[table]
        path.write_text(f"data.task = '{task}'\n[{table}]\n{key}\n")
        with pytest.raises(UserError, match=f"other.toml.*unknown key '{table}'"):
            load_config(Config, path, {})


def older_carry(carry: dict) -> None:
    """A carry as older code saved it: "state" or None where `more` is now."""
    more = carry.pop("more")
    carry["state"] = more.get("state")


def oldest_carry(carry: dict) -> None:
    """Before there were encoders."""
    del carry["more"]


@pytest.mark.parametrize("age", [older_carry, oldest_carry])
def test_a_folder_of_older_code_goes_on(age, tmp_path):
    """It has tables of other tasks, or lacks newer ones, and another carry."""
    tiny.run(tmp_path / "whole", train={"steps": 2})
    path = tmp_path / "whole/config.toml"
    if age is older_carry:
        path.write_text(path.read_text() + "\n[arc]\ndemos = 3\n[encoder]\ngain = 1.0\n")
    state = torch.load(tmp_path / "whole/ckpt.pt", weights_only=True)
    age(state["processes"][0]["carry"])
    torch.save(state, tmp_path / "whole/ckpt.pt")
    (tmp_path / "whole/summary.json").unlink()
    assert tiny.run(tmp_path / "whole", train={"steps": 2})["steps"] == 2
    with pytest.raises(UserError, match="was made with"):
        tiny.run(tmp_path / "whole", **tables())


def test_an_older_folder_of_a_recurrent_encoder_ends_with_the_same_bits(tmp_path, monkeypatch):
    keys = tables("recurrent_standard", {"model": {"n_sup": 4}})
    tiny.run(tmp_path / "whole", **keys)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(tmp_path / "parts", **keys)
    path = tmp_path / "parts/ckpt.pt"
    state = torch.load(path, weights_only=True)
    older_carry(state["processes"][0]["carry"])
    torch.save(state, path)
    with (tmp_path / "parts/config.toml").open(
        "a"
    ) as file:  # keys that are gone, at the end of the last table
        file.write("gain = 1.0\ndecoder_lr = 1.0\n")
    tiny.run(tmp_path / "parts", **keys)
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "parts")


SWITCHES = {
    "lr": 0.5,
    "freeze_steps": 1,
    "freeze_decoder_steps": 1,
    "frozen": True,
    "kl_weight": 1.0,
    "decoder": None,
    "kind": "lpn_standard",
}


def test_the_keys_of_training_act(tmp_path, decoder):
    """Every key of [encoder] that encoders.py does not read has a row.

    The others have theirs in test_encoders.py.
    """
    from test_encoders import SWITCHES as of_the_encoder

    assert {f for f in EncoderConfig.__dataclass_fields__} <= {
        row[0] for row in of_the_encoder
    } | SWITCHES.keys()
    ends = {}
    for key, value in {"": 0, **SWITCHES}.items():
        kind = "lpn_variational"
        keys = {key: value or str(decoder)} if key else {}
        run, feed = start(config(kind, {"encoder": keys, "arc": {"val_tasks": 0}}), tmp_path)
        for _ in range(3):
            training.train_step(run, feed)
        feed.close()
        ends[key] = float(run.sums["loss"])
    assert len({round(v, 7) for v in ends.values()}) == len(ends), ends


def test_modes_and_translation_reach_the_batches():
    def drawn(**change):
        cfg = config("standard", {"arc": {"rules": "moves+colours", **change}})
        return data.draw(data.load(cfg), cfg, 8, 0, 0)

    base = drawn()
    for keys in ({"mode": "loo"}, {"translate": False}, {"augmentations": 4}, {"demos": 1}):
        other = drawn(**keys)
        assert any(base[k].shape != other[k].shape or (base[k] != other[k]).any() for k in base), (
            keys
        )
    assert ArcConfig().mode == "fewshot"
