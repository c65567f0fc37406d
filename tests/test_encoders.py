"""Demonstration encoders: sizes of the public kinds, gradients at every step, masks, order, carried
states, bottlenecks, switches.

The bugs that were found in the public ETRM code (by their numbers in our list), and what holds
here:
  1, 2  encoder never runs, 2-6 % of slots get gradient
        test_every_encoder_parameter_learns_at_every_step, ..._of_every_slot
  4     empty slots are encoded
        test_encoder_works_on_valid_demonstrations_only
  5     carried state detached before it is used
        test_recurrent_encoder_detaches_what_comes_in_only
  6     0.9 of the old state hides the demonstrations
        test_carry_ema_of_a_recurrent_encoder_is_a_share_of_the_old_state
  8     latent width silently ignored
        test_every_encoder_switch_moves_what_it_should (latent)
  9     KL missing, or scaled by 1 / B
        test_kl_of_an_encoder_by_hand
  17    variances of outputs with and without a norm
        test_encoder_context_has_rms_of_one
  18    weighted pooling of an empty slot is NaN
        test_encoder_of_rows_without_demonstrations_is_finite
  19    padding takes part in attention
        test_encoder_ignores_padding
  20    context positions start as copies
        test_encoder_context_positions_differ_at_the_start
  21    context 22 times as large as tokens
        test_encoder_context_has_rms_of_one
  23    final norm missing under pre-norm
        test_encoder_context_has_rms_of_one (pre)
  30    two factories
        make_encoder is the only one
"""

import dataclasses
import typing

import pytest
import torch

import encoders
from encoders import (
    FAMILY,
    POOLINGS,
    Bottleneck,
    EncoderConfig,
    MaskedAttention,
    Packed,
    Sizes,
    make_encoder,
)
from layers import Attention, rope_1d

B, K, S, V, D, P = 4, 3, 9, 5, 16, 3
TINY = {"heads": 2, "expansion": 2.0, "multiple": 4, "small": 8, "layers": 2}
KINDS = list(FAMILY)
READING = [kind for kind in KINDS if FAMILY[kind].reader]
RECURRENT = ["recurrent_standard", "trm_style"]
VARIATIONAL = [kind for kind in KINDS if FAMILY[kind].bottleneck]


def make(kind: str, seed: int = 0, prefix: int = 0, **changes) -> encoders.Encoder:
    torch.manual_seed(seed)
    prefix = prefix or (K * 2 * S if kind == "cells" else P)
    cfg = EncoderConfig(kind, **TINY | changes)
    return make_encoder(cfg, Sizes(D, prefix, S, V, num_tasks=6, num_puzzles=12))


def examples(seed: int = 1, B: int = B) -> dict[str, torch.Tensor]:
    """Rows with 3, 2, 1 and 3 demonstrations, some cells of which are padding.

    Empty slots hold rubbish.
    """
    g = torch.Generator().manual_seed(seed)
    demos = torch.randint(1, V, (B, K, 2, S), generator=g)
    demos[:, 1, :, 6:] = 0
    demos[0, 0, 1, 4:] = 0
    mask = torch.arange(K) < torch.tensor([3, 2, 1, 3])[:B, None]
    return {
        "demos": demos,
        "mask": mask,
        "task": torch.arange(B) % 6,
        "puzzle": torch.arange(B) % 12,
    }


def context_of(encoder, batch, state=None, noise=None):
    return encoder(batch, state, noise)[0]


def noise_of(encoder, seed: int = 5):
    return encoder.noise(B, K, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- sizes

BLOCK = 4 * 512**2 + 3 * 512 * 1536
TABLES, OUT, QUERIES, CLS = 2 * 12 * 512, 512**2, 16 * 512, 512
TWO_HEADS, HEAD = 2 * (512**2 + 512), 512 * 16 * 512
SMALL = (
    12 * 128 + 2 * 30 * 128 + 2 * 128 + 128 + 2 * (4 * 128**2 + 2 * 128 * 512)
)  # tokens, rows and columns, sides, CLS, blocks
SIZES = [
    ("standard", {}, TABLES + 2 * BLOCK + OUT + QUERIES + BLOCK, 10.51),
    ("standard", {"layers": 4}, TABLES + 4 * BLOCK + OUT + QUERIES + BLOCK, 17.32),
    (
        "standard",
        {"pooling": "attention"},
        TABLES + 2 * BLOCK + OUT + QUERIES + BLOCK + 512 + 4 * 512**2,
        10.51 + 1.05,
    ),
    ("hybrid_standard", {"layers": 4}, TABLES + CLS + 4 * BLOCK + QUERIES + BLOCK, 17.06),
    (
        "hybrid_standard",
        {"layers": 4, "set_layers": 2},
        TABLES + CLS + 4 * BLOCK + QUERIES + 2 * BLOCK,
        20.47,
    ),
    (
        "hybrid_variational",
        {"layers": 4},
        TABLES + CLS + 4 * BLOCK + QUERIES + BLOCK + TWO_HEADS + HEAD,
        21.78,
    ),
    ("lpn_standard", {"layers": 4}, TABLES + CLS + 4 * BLOCK + HEAD, 17.84),
    ("lpn_standard", {"layers": 8}, TABLES + CLS + 8 * BLOCK + HEAD, 31.47),
    ("lpn_variational", {"layers": 4}, TABLES + CLS + 4 * BLOCK + TWO_HEADS + HEAD, 18.36),
    ("lpn_variational", {"layers": 6}, TABLES + CLS + 6 * BLOCK + TWO_HEADS + HEAD, 25.18),
    ("lpn", {}, SMALL + 128 * 16 * 512, 1.45),
    ("lpn_var", {}, SMALL + 2 * (128 * 32 + 32) + 32 * 16 * 512, 0.673),
    ("recurrent_standard", {"state": "fixed"}, TABLES + 2 * BLOCK + OUT + BLOCK, 10.50),
    ("recurrent_standard", {"state": "learned"}, TABLES + 2 * BLOCK + OUT + BLOCK + QUERIES, 10.51),
    ("trm_style", {"state": "fixed", "set_layers": 2}, TABLES + 2 * BLOCK + OUT + 2 * BLOCK, 13.91),
    ("lookup", {}, 7 * 512, 0.0036),
    ("one_hot", {}, 5 * 16 * 512, 0.041),
]


@pytest.mark.parametrize(
    "kind, keys, formula, millions", SIZES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_encoder_sizes_are_those_of_the_public_code(kind, keys, formula, millions):
    with torch.device("meta"):
        sizes = Sizes(512, 16, 900, 12, num_tasks=5, num_puzzles=7)
        encoder = make_encoder(EncoderConfig(kind, **keys), sizes)
    count = sum(p.numel() for p in encoder.parameters())
    assert count == formula and abs(count / 1e6 - millions) < 0.006


def test_every_encoder_kind_is_in_the_config_and_none_makes_none():
    assert {"none", *FAMILY} == set(
        typing.get_args(EncoderConfig.__dataclass_fields__["kind"].type)
    )
    assert make_encoder(EncoderConfig(), Sizes(D, P, S, V)) is None


# ---------------------------------------------------------------- pieces


def test_masked_attention_of_an_encoder_is_plain_attention_where_nothing_is_hidden():
    torch.manual_seed(0)
    plain, masked = Attention(D, 2), MaskedAttention(D, 2)
    with torch.no_grad():
        masked.q.weight.copy_(plain.qkv.weight[:D])
        masked.kv.weight.copy_(plain.qkv.weight[D:])
        masked.out.weight.copy_(plain.out.weight)
    h, angles = torch.randn(2, 5, D), rope_1d(5, D // 2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    expected = plain(h, angles)
    for view in (None, None, angles.expand(2, -1, -1)), (h, mask, angles.expand(2, -1, -1)):
        torch.testing.assert_close(masked(h, view), expected)
    mask[1, 2:] = False  # hidden positions might as well not be there
    torch.testing.assert_close(
        masked(h, (None, mask, None))[1], masked(h[1:], (h[1:, :2], None, None))[0]
    )


def test_encoder_pools_by_hand():
    h = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(POOLINGS["mean"](2, 1)(h, valid), torch.tensor([[2.0, 4.0]]))
    pool = POOLINGS["weighted"](2, 1)
    with torch.no_grad():
        pool.score.weight.copy_(
            torch.tensor([[0.5, 0.0]])
        )  # scores 0.5 and 1.5: weights 1 / (1 + e) and e / (1 + e)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(pool(h, valid), (h[:, 0] + e * h[:, 1]) / (1 + e))
    for kind in "mean", "weighted", "attention":
        assert torch.equal(POOLINGS[kind](2, 1)(h, torch.zeros_like(valid)), torch.zeros(1, 2)), (
            kind
        )


# ---------------------------------------------------------------- gradients


LEARNING = [(kind, {}) for kind in KINDS] + [
    ("standard", {"pooling": "attention"}),
    ("recurrent_standard", {"pooling": "weighted"}),
    ("trm_style", {"pooling": "attention"}),
    ("standard", {"norm_place": "pre"}),
    ("recurrent_standard", {"norm_place": "pre"}),
    ("lpn_var", {"normalize": False}),
    ("trm_style", {"carry_ema": 0.9}),
    ("trm_style", {"T": 1}),
]


@pytest.mark.parametrize("kind, keys", LEARNING, ids=str)
def test_every_encoder_parameter_learns_at_every_step(kind, keys):
    """20 consecutive steps as in training.

    The state is carried, one slot after another starts over, and the loss falls.
    """
    encoder, batch, state = make(kind, **keys), examples(), None
    target, g = (
        torch.randn(B, encoder.prefix, D, generator=torch.Generator().manual_seed(9)),
        torch.Generator().manual_seed(5),
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses, first = [], []
    for step in range(20):
        state = encoder.reset(state, torch.arange(B) == step % B)
        context, state, aux = encoder(batch, state, encoder.noise(B, K, g))
        loss = (context - target).square().mean() + 1e-3 * sum(v.sum() for v in aux.values())
        optimizer.zero_grad()
        loss.backward()
        for name, p in encoder.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all(), f"{name} at step {step}"
            first += [name] if step == 0 and not p.grad.any() else []
            assert step == 0 or p.grad.any(), f"{name} at step {step}"
        optimizer.step()
        losses.append(loss.item())
    assert first == [], "nothing waits for a second step"
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", READING)
def test_gradient_of_every_slot_reaches_the_encoder(kind):
    encoder, batch = make(kind), examples()
    context = context_of(encoder, batch, noise=noise_of(encoder))
    for row in range(B):
        grads = torch.autograd.grad(
            context[row].square().sum() + context[row].sum(),
            encoder.reader.tokens,
            retain_graph=True,
        )[0]
        assert grads.any(), f"slot {row}"


def test_frozen_encoder_has_nothing_to_learn_and_still_tells_tasks_apart():
    encoder, batch = make("standard", frozen=True), examples()
    assert not any(p.requires_grad for p in encoder.parameters())
    context = context_of(encoder, batch)
    assert not context.requires_grad and (context[0] - context[3]).abs().max() > 1e-3


# ---------------------------------------------------------------- demonstrations


@pytest.mark.parametrize("kind", READING)
def test_encoder_ignores_the_order_of_demonstrations(kind):
    encoder, batch = make(kind).eval(), examples()
    order = torch.tensor([2, 0, 1])
    shuffled = batch | {"demos": batch["demos"][:, order], "mask": batch["mask"][:, order]}
    a, b = context_of(encoder, batch), context_of(encoder, shuffled)
    if kind == "cells":  # which keeps their places, for the net to look at
        b = b.unflatten(1, (K, -1))[:, order.argsort()].flatten(1, 2)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert (a[0] - a[3]).abs().max() > 1e-3, "other demonstrations, another context"


@pytest.mark.parametrize("kind", [kind for kind in READING if kind != "cells"])
def test_encoder_of_all_demonstrations_twice_is_the_same_and_of_one_twice_is_not(kind):
    encoder, batch = make(kind).eval(), examples()
    twice = batch | {"demos": batch["demos"].repeat(1, 2, 1, 1), "mask": batch["mask"].repeat(1, 2)}
    one = batch | {
        "demos": torch.cat([batch["demos"], batch["demos"][:, :1]], 1),
        "mask": torch.cat([batch["mask"], batch["mask"][:, :1]], 1),
    }
    a = context_of(encoder, batch)
    torch.testing.assert_close(a, context_of(encoder, twice), rtol=1e-4, atol=1e-5)
    b = context_of(encoder, one)
    torch.testing.assert_close(a[2], b[2], rtol=1e-4, atol=1e-5)  # its only demonstration
    assert (a - b)[[0, 1, 3]].abs().amax((1, 2)).min() > 1e-5


@pytest.mark.parametrize("kind", READING)
def test_encoder_ignores_empty_slots(kind):
    encoder, batch = make(kind).eval(), examples()
    other = torch.where(batch["mask"][:, :, None, None], batch["demos"], 1)
    assert (other != batch["demos"]).any()
    a = encoder(batch)
    assert torch.equal(a[0], context_of(encoder, batch | {"demos": other}))
    if kind != "cells":  # whose context has a place for every slot
        more = {
            "demos": torch.cat([batch["demos"], batch["demos"]], 1),
            "mask": torch.cat([batch["mask"], batch["mask"] & False], 1),
        }
        b = encoder(batch | more)
        for x, y in zip((a[0], *a[2].values()), (b[0], *b[2].values()), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", READING)
def test_encoder_works_on_valid_demonstrations_only(kind):
    encoder, batch, seen = make(kind).eval(), examples(), []
    encoder.reader.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    context_of(encoder, batch)
    assert seen == [int(batch["mask"].sum())] == [9]


@pytest.mark.parametrize(
    "keys",
    [{}, {"pooling": "attention"}, {"pooling": "weighted"}, {"positions": "rope2d"}],
    ids=str,
)
@pytest.mark.parametrize("kind", READING)
def test_encoder_ignores_padding(kind, keys):
    """A demonstration says the same beside a fuller one, whatever the token of padding is."""
    encoder, batch = make(kind, **keys, heads=2).eval(), examples()
    alone = {
        k: v[1:2, 1:2] if v.dim() > 1 else v[1:2] for k, v in batch.items()
    }  # row 1, its padded demonstration
    alone["mask"][:] = True
    reader = encoder.reader
    short, full = (
        reader(alone["demos"][0], torch.float32),
        reader(batch["demos"].flatten(0, 1), torch.float32)[K + 1],
    )
    torch.testing.assert_close(short[0], full, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        reader.tokens[::V] += 1.0  # the padding's own row of each table
    torch.testing.assert_close(reader(alone["demos"][0], torch.float32), short, rtol=0, atol=0)


def test_encoder_with_rope2d_puts_input_and_output_in_the_same_place():
    demos = examples()["demos"][:, 0]
    for positions, alike in ("rope2d", True), ("rope", False):
        reader = make("standard", positions=positions, heads=2).reader
        for shared in False, True:
            a, b = (reader(pairs, torch.float32) for pairs in (demos, demos.flip(1)))
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5) == (alike and shared)
            with torch.no_grad():
                reader.tokens[V:] = reader.tokens[:V]  # of tables of their own, now one


def test_encoder_packs_content_without_changing_positions(monkeypatch):
    def everything(demos):  # no packing: all places, padding masked
        tokens = demos.flatten(1)
        places = torch.arange(tokens.shape[1]).expand_as(tokens)
        return Packed(tokens, places, tokens > 0, tokens > 0)

    batch = examples()
    batch["demos"][:, :, 0, 0] = 0  # holes in the middle, as a translated grid leaves them
    batch["demos"][:, :, 1, :2] = 0
    for kind in "standard", "lpn_standard", "lpn", "cells":
        encoder = make(kind).eval()
        packed = context_of(encoder, batch)
        with monkeypatch.context() as patch:
            patch.setattr(encoders, "pack", everything)
            torch.testing.assert_close(packed, context_of(encoder, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention", "weighted"])
@pytest.mark.parametrize("kind", READING)
def test_encoder_of_rows_without_demonstrations_is_finite(kind, pooling):
    encoder, batch = make(kind, pooling=pooling), examples()
    for empty in torch.tensor([False, True, False, False]), torch.ones(B, dtype=torch.bool):
        batch["mask"] = batch["mask"] & ~empty[:, None]
        context, _, aux = encoder(batch, noise=noise_of(encoder))
        grads = (
            torch.autograd.grad(context.square().sum(), encoder.parameters(), allow_unused=True)
            if context.requires_grad
            else ()
        )
        assert all(
            torch.isfinite(t).all() for t in (context, *aux.values(), *grads) if t is not None
        )
    if kind not in VARIATIONAL:
        assert torch.equal(context[0], context[1]), "says nothing of the task"


@pytest.mark.parametrize("kind", ["standard", "recurrent_standard"])
def test_encoder_does_not_rely_on_what_a_kernel_does_where_all_is_masked(kind, monkeypatch):
    def naive(q, k, v, attn_mask=None):  # NaN there
        score = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return (score if attn_mask is None else score.masked_fill(~attn_mask, -torch.inf)).softmax(
            -1
        ) @ v

    encoder, batch = make(kind, pooling="attention"), examples()
    batch["mask"][1] = False
    expected = context_of(encoder, batch)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", naive)
    torch.testing.assert_close(context_of(encoder, batch), expected)


@pytest.mark.parametrize("kind", ["lpn", "lpn_var"])
def test_small_encoder_sums_colour_row_column_and_side(kind):
    reader, demos, seen = make(kind).reader, examples()["demos"][:1, 0], []
    reader.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    demos[:, 1, 4:] = 0
    reader(demos, torch.float32)
    present = [(side, cell) for side in range(2) for cell in range(S) if demos[0, side, cell]]
    expected = [
        reader.tokens[demos[0, side, cell]]
        + reader.rows[cell // 3]
        + reader.cols[cell % 3]
        + reader.sides[side]
        for side, cell in present
    ]
    torch.testing.assert_close(seen[0][: 1 + len(present)], torch.stack([reader.cls[0], *expected]))


def test_cells_encoder_keeps_every_cell_in_its_place():
    encoder, batch = make("cells").eval(), examples()
    h = context_of(encoder, batch).view(B, K, 2, S, D)
    present = (batch["demos"] > 0) & batch["mask"][:, :, None, None]
    assert torch.equal(h.abs().sum(-1) > 0, present)
    with pytest.raises(
        ValueError, match="54 context positions of 3 demonstrations, the net has prefix = 16"
    ):
        context_of(make("cells", prefix=16), batch)


# ---------------------------------------------------------------- context


@pytest.mark.parametrize("norm_place", ["post", "pre"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("lookup", "cells")])
def test_encoder_context_has_rms_of_one(kind, norm_place):
    context = context_of(make(kind, norm_place=norm_place).eval(), examples())
    rms = context.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(B, P), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm_place", ["post", "pre"])
def test_recurrent_encoder_state_does_not_grow(norm_place):
    encoder, batch, state = (
        make("recurrent_standard", norm_place=norm_place).eval(),
        examples(),
        None,
    )
    for _ in range(30):
        context, state, _ = encoder(batch, encoder.reset(state, torch.zeros(B, dtype=torch.bool)))
    torch.testing.assert_close(state.square().mean(-1).sqrt(), torch.ones(B, P), rtol=1e-3, atol=0)


def test_encoder_context_positions_differ_at_the_start():
    batch = examples()

    def diversity(**keys):  # variance over context positions, of a mean square of 1
        return (
            context_of(make("standard", prefix=16, **keys).eval(), batch)
            .var(1, unbiased=False)
            .mean()
        )

    assert diversity(query_std=0.02) < 0.01 < 0.2 < diversity()


def test_lookup_encoder_is_the_nets_own_embedding_to_the_bit():
    from model import TRM, ModelConfig, Shape

    torch.manual_seed(0)
    net = TRM(
        ModelConfig(dim=D, heads=2, n_layers=1, T=2, n=1, prefix=P, multiple=4), Shape(S, V, 12)
    )
    encoder = make("lookup", normalize=True)
    with torch.no_grad():
        net.puzzles.normal_()
        encoder.puzzles.copy_(net.puzzles)
    batch = examples() | {
        "inputs": torch.ones(B, S, dtype=torch.long),
        "labels": torch.ones(B, S, dtype=torch.long),
    }
    batch["puzzle"] = torch.tensor([3, 11, 0, 7])
    carry = net.refill(net.start(batch), batch)
    assert torch.equal(net.step(carry)[1].logits, net.step(carry, encoder(batch)[0])[1].logits)
    assert not torch.equal(
        net.step(carry)[1].logits,
        net.step(carry, encoder(batch | {"puzzle": batch["task"]})[0])[1].logits,
    )


def test_one_hot_encoder_reads_the_task_id_and_nothing_else():
    encoder, batch = make("one_hot"), examples()
    a = context_of(encoder, batch)
    assert torch.equal(
        a, context_of(encoder, batch | {"puzzle": batch["puzzle"] + 1, "demos": batch["demos"] * 0})
    )
    assert not torch.equal(a, context_of(encoder, batch | {"task": batch["task"] + 1}))


# ---------------------------------------------------------------- carried states


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_encoder_detaches_what_comes_in_only(kind):
    encoder, batch = make(kind), examples()
    context, state, _ = encoder(batch, encoder.reset(None, torch.ones(B, dtype=torch.bool)))
    assert context.requires_grad and not state.requires_grad
    second = encoder.reset(state, torch.tensor([True, False, False, False]))
    context, _, _ = encoder(batch, second)
    assert context.requires_grad
    slots = [
        torch.autograd.grad(
            context[row].square().sum() + context[row].sum(),
            encoder.first,
            retain_graph=True,
            allow_unused=True,
        )[0]
        for row in (0, 1)
    ]
    assert slots[0].any(), "a fresh slot moves the learned first state"
    assert not slots[1].any(), "a slot that goes on does not: nothing flows through steps"
    attached = state.clone().requires_grad_()
    assert (
        not encoder.reset(attached, torch.zeros(B, dtype=torch.bool))
        .eq(attached)
        .logical_not()
        .any()
    )
    context, _, _ = encoder(batch, encoder.reset(attached, torch.zeros(B, dtype=torch.bool)))
    context.sum().backward()
    assert attached.grad is None


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_encoder_resets_the_slots_it_is_told_to(kind):
    encoder, batch = make(kind).eval(), examples()
    every = torch.ones(B, dtype=torch.bool)
    _, state, _ = encoder(batch, encoder.reset(None, every))
    g = torch.Generator().manual_seed(2)
    for _ in range(5):
        fresh = torch.rand(B, generator=g) < 0.5
        reset = encoder.reset(state, fresh)
        first = encoder.reset(None, every)
        assert torch.equal(reset[fresh], first[fresh]) and torch.equal(reset[~fresh], state[~fresh])
        context, state, _ = encoder(batch, reset)
        again, _, _ = encoder(batch, first)
        torch.testing.assert_close(context[fresh], again[fresh])  # whatever its neighbours do
    for kind in set(KINDS) - set(RECURRENT):
        assert make(kind).reset(None, every) is None


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_encoder_goes_on_thinking(kind):
    encoder, batch = make(kind).eval(), examples()
    first, state, _ = encoder(batch)
    second, _, _ = encoder(batch, encoder.reset(state, torch.zeros(B, dtype=torch.bool)))
    assert (first - second).abs().max() > 1e-3
    plain = make("standard").eval()
    assert torch.equal(context_of(plain, batch), context_of(plain, batch))


@pytest.mark.parametrize("kind", RECURRENT)
def test_carry_ema_of_a_recurrent_encoder_is_a_share_of_the_old_state(kind):
    off, on, batch = make(kind).eval(), make(kind, carry_ema=0.9).eval(), examples()
    on.load_state_dict(off.state_dict())
    start = off.reset(None, torch.ones(B, dtype=torch.bool))
    new, mixed = (encoder(batch, start)[1] for encoder in (off, on))
    torch.testing.assert_close(mixed, 0.9 * start + 0.1 * new)
    assert EncoderConfig().carry_ema == 0

    def spread(encoder):  # variance over tasks
        return context_of(encoder, batch).var(0).mean()

    assert spread(on) < 0.1 * spread(off), "what hid the demonstrations"


def test_trm_style_encoder_gives_gradient_to_its_last_cycle_only():
    batch = examples()
    long, short = make("trm_style", T=3).eval(), make("trm_style", T=1).eval()
    short.load_state_dict(long.state_dict())
    with torch.no_grad():  # the state after two cycles, written out
        vectors = long.read(batch["demos"], batch["mask"])
        state = long.first.expand(B, -1, -1)
        for _ in range(2):
            state = short.recurse(vectors, batch["mask"], state)
    a, b = context_of(long, batch), context_of(short, batch, state)
    torch.testing.assert_close(a, b)
    for got, expected in zip(
        *(
            torch.autograd.grad(c.square().sum() + c.sum(), e.blocks.parameters())
            for c, e in ((a, long), (b, short))
        )
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- bottlenecks


def test_kl_of_an_encoder_by_hand():
    part = Bottleneck(1, 2).eval()
    with torch.no_grad():
        part.mean.weight.copy_(torch.tensor([[1.0], [0.0]]))
        part.log_var.bias.copy_(torch.tensor([0.0, 2.0]))
    z, kl = part(torch.tensor([[0.0], [3.0]]), None)
    e2 = torch.tensor(2.0).exp()
    torch.testing.assert_close(
        kl, torch.stack([(e2 - 3) / 2, 4.5 + (e2 - 3) / 2])
    )  # half of mu^2 + sigma^2 - 1 - log sigma^2
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    z, _ = part.train()(torch.tensor([[3.0]]), torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(z, torch.tensor([[5.0, -torch.tensor(1.0).exp()]]))


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_kl_of_an_encoder_is_a_mean_over_a_rows_demonstrations(kind):
    """(B,): the same for a row alone, with empty slots, and twice the demonstrations.

    So a sum over rows / B is the mean.
    """
    encoder, batch = make(kind).eval(), examples()
    kl = encoder(batch)[2]["kl"]
    assert kl.shape == (B,) and (kl > 0).all()
    twice = {
        k: v.repeat(1, 2, *[1] * (v.dim() - 2)) if k in ("demos", "mask") else v
        for k, v in batch.items()
    }
    torch.testing.assert_close(encoder(twice)[2]["kl"], kl, rtol=1e-4, atol=1e-5)
    alone = {k: v[2:3] for k, v in batch.items()}
    torch.testing.assert_close(encoder(alone)[2]["kl"], kl[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_variational_encoder_samples_in_training_only(kind):
    encoder, batch = make(kind), examples()
    with pytest.raises(ValueError, match="needs noise"):
        context_of(encoder, batch)
    a, b, c = (context_of(encoder, batch, noise=noise_of(encoder, seed)) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    encoder.eval()
    a = context_of(encoder, batch, noise=noise_of(encoder, 5))
    assert torch.equal(a, context_of(encoder, batch))
    with torch.no_grad():  # the noise of a vanishing sigma is no noise
        encoder.bottleneck.log_var.bias.fill_(-100.0)
    torch.testing.assert_close(
        context_of(encoder.train(), batch, noise=noise_of(encoder)), a, rtol=0.1, atol=0.1
    )


# ---------------------------------------------------------------- switches

# key, value, under, what moves: the weights' shapes, what learns, the context
SWITCHES = [
    ("kind", "hybrid_standard", {}, {"weights"}),
    ("layers", 1, {}, {"weights"}),
    ("heads", 4, {}, {"context"}),
    ("pooling", "attention", {}, {"weights"}),
    ("pooling", "weighted", {}, {"weights"}),
    ("pooling", "attention", {"kind": "hybrid_standard"}, set()),
    ("positions", "rope2d", {}, {"context"}),
    ("norm_place", "pre", {}, {"context"}),
    ("norm_place", "pre", {"kind": "lpn_standard"}, set()),
    ("norm_place", "pre", {"kind": "recurrent_standard"}, {"context"}),
    ("set_layers", 2, {}, {"weights"}),
    ("set_layers", 2, {"kind": "lpn_standard"}, set()),
    ("expansion", 4.0, {}, {"weights"}),
    ("multiple", 64, {}, {"weights"}),
    ("small", 16, {"kind": "lpn"}, {"weights"}),
    ("small", 16, {}, set()),
    ("query_std", 0.5, {}, {"context"}),
    ("latent", 6, {"kind": "lpn_variational"}, {"weights"}),
    ("latent", 6, {"kind": "hybrid_variational"}, {"weights"}),
    ("latent", 6, {"kind": "lpn_var"}, {"weights"}),
    ("latent", 6, {}, set()),
    ("state", "fixed", {"kind": "recurrent_standard"}, {"learned"}),
    ("state", "fixed", {}, set()),
    ("carry_ema", 0.5, {"kind": "recurrent_standard"}, {"context"}),
    ("T", 2, {"kind": "trm_style"}, {"context"}),
    ("n", 2, {"kind": "trm_style"}, {"context"}),
    ("T", 2, {}, set()),
    ("n", 2, {}, set()),
    ("normalize", False, {"kind": "lpn_standard"}, {"context"}),
    ("normalize", False, {}, set()),
    ("frozen", True, {}, {"learned"}),
    ("kl_weight", 0.1, {"kind": "lpn_var"}, set()),  # the training loop's, on aux["kl"]
]


def test_every_encoder_switch_has_a_row():
    # they have theirs in test_conditioned.py
    of_training = {"lr", "freeze_steps", "freeze_decoder_steps", "decoder"}
    assert {row[0] for row in SWITCHES} == {
        f.name for f in dataclasses.fields(EncoderConfig)
    } - of_training


@pytest.mark.parametrize("key, value, under, moves", SWITCHES, ids=lambda v: str(v))
def test_every_encoder_switch_moves_what_it_should(key, value, under, moves):
    seen = []
    for keys in under, under | {key: value}:
        encoder = make(**{"kind": "standard", "heads": 2} | keys).eval()
        seen.append(
            {
                "weights": {k: tuple(v.shape) for k, v in encoder.state_dict().items()},
                "learned": [k for k, p in encoder.named_parameters() if p.requires_grad],
                "context": context_of(encoder, examples()),
            }
        )
    a, b = seen
    moved = {"context"} if not torch.allclose(a["context"], b["context"], atol=1e-5) else set()
    moved |= {part for part in ("weights", "learned") if a[part] != b[part]}
    if "weights" in moves:  # other weights, another context
        assert "weights" in moved
    else:
        assert moved == moves


@pytest.mark.parametrize("kind", READING)
def test_encoder_runs_in_bfloat16(kind):
    torch.manual_seed(0)
    sizes = Sizes(D, K * 2 * S if kind == "cells" else P, S, V)
    encoder = make_encoder(EncoderConfig(kind, **TINY), sizes, torch.bfloat16)
    context, state, _ = encoder(examples(), noise=noise_of(encoder))
    assert context.dtype == torch.float32 and (state is None or state.dtype == torch.bfloat16)
    context.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters())


@pytest.mark.parametrize(
    "keys, problem",
    [
        ({"layers": 0}, ("layers", "at least 1")),
        ({"latent": -1}, ("latent", "at least 0")),
        ({"expansion": 0.0}, ("expansion", "more than 0")),
        ({"carry_ema": 1.0}, ("carry_ema", "a share from 0 to below 1")),
        ({"kind": "lpn", "small": 12}, ("small", "a multiple of encoder.heads = 8")),
        (
            {"kind": "standard"},
            ("kind", "'none' with model.prefix = 0: the context has no place to go"),
        ),
        ({}, None),
    ],
)
def test_impossible_encoder_values_are_named(keys, problem):
    assert list(EncoderConfig(**keys).problems(512, 0 if keys == {"kind": "standard"} else 16)) == (
        [problem] if problem else []
    )
    assert [key for key, _ in EncoderConfig("standard", heads=3).problems(512, 16)] == ["heads"]
