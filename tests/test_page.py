"""The page to play with: its net equals model.py's, in node and in a real browser."""

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

import solve
import tiny
from config import UserError
from tasks import page, puzzles
from tasks.puzzles import check
from train import load_run

STEPS = 8
MAZE = {"task": "maze", "size": 5, "walls": "perfect"}
CASES = {  # name: (data, model)
    "conv": (MAZE, {"mixer": "conv", "n_layers": 2}),
    "conv-pre": (
        MAZE,
        {"mixer": "conv", "norm": "layer", "norm_place": "pre", "mlp": "silu", "init": "learned"},
    ),
    "conv-random": (MAZE, {"mixer": "conv", "init": "random", "two_nets": True}),
    "conv-learned": (MAZE, {"mixer": "conv", "positions": "learned", "mlp": "reglu"}),
    "pool": ({}, {"mixer": "pool", "n": 2}),
    "pool-6x6": ({"size": 6}, {"mixer": "pool", "mlp": "reglu", "q_from": "first"}),
    "pool-maze": (MAZE, {"mixer": "pool", "norm_place": "pre"}),
    "digits": ({}, {"mixer": "pool", "per_digit": True, "n_layers": 2}),
    "digits-6x6": ({"size": 6}, {"mixer": "pool", "per_digit": True, "init": "random"}),
    "mlp": ({}, {"mixer": "mlp", "n_layers": 2}),
    "mlp-prefix": (
        MAZE,
        {"mixer": "mlp", "prefix": 3, "positions": "learned", "mlp": "reglu", "q_from": "first"},
    ),
    "mlp-pre": (
        {},
        {"mixer": "mlp", "prefix": 1, "norm": "layer", "norm_place": "pre", "mlp": "gelu"},
    ),
    "mlp-two": ({}, {"mixer": "mlp", "two_nets": True, "norm": "layer", "init": "random"}),
}
IN_BROWSER = ["conv", "pool", "digits", "mlp"]

NODE = shutil.which("node") or shutil.which("nodejs")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_node = pytest.mark.skipif(not NODE, reason="node is not installed")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="chromium is not installed (Debian: apt-get install chromium)"
)


def make(name):
    """(cfg, net with random weights, what a checkpoint would say).

    With a standard deviation of 0.3 the recursion is chaotic: float32 and float64 part by more
    than 1. With 0.15 they differ by 7e-5 at most, while the logits move by more than 1.
    """
    data, model = CASES[name]
    cfg = tiny.config(data=data, model=model)
    shape = cfg.task.shape(cfg)
    net = cfg.task.make_net(cfg, shape, torch.float32).eval()
    torch.manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return cfg, net, {"shape": shape, "val": {"exact": 0.5}}


def write(name, path):
    """The page of a case as text, its config and its net."""
    cfg, net, state = make(name)
    page.write_page(path, cfg.task, cfg, net, state)
    return path.read_text(encoding="utf-8"), cfg, net


@torch.no_grad()
def trace(net, question, steps=STEPS):
    """(logits (steps, L * V), halting probabilities (steps,)), as solve.py computes them."""
    row = torch.from_numpy(question.astype(np.int64))[None]
    batch = {"inputs": row, "labels": row, "puzzle": torch.zeros(1, dtype=torch.long)}
    states = net.first_states(1, len(question), torch.Generator().manual_seed(0))
    carry = net.refill(net.start(batch), batch, states)
    logits, halting = [], []
    for _ in range(steps):
        carry, out = net.step(carry)
        logits.append(out.logits.flatten().numpy())
        halting.append(out.q_halt.sigmoid().item())
    return np.array(logits), np.array(halting)


def assert_same(found, net, question):
    """What JavaScript computed is what PyTorch computes, and no constant."""
    logits, halting = trace(net, question)
    assert np.abs(np.array(found["logits"]) - logits).max() < 1e-3
    assert np.abs(np.array(found["halting"]) - halting).max() < 1e-4
    answers = np.sort(logits.reshape(STEPS, len(question), -1), -1)
    assert answers[..., -1].std() > 0.01 and halting.std() > 1e-5
    assert not np.allclose(logits[0], logits[-1], atol=1e-2)


def question_of(cfg, size=0):
    return cfg.task.draw_puzzle(cfg, 3, size, 1)[0]


def script(text, name):
    """The content of one script of a page."""
    return re.search(rf'<script[^>]* id="{name}">(.*?)</script>', text, re.DOTALL)[1]


def run_node(text, code, folder):
    """What `code` returns, run by node after the page's scripts without the page itself."""
    parts = [f"const run = {script(text, 'data')};", script(text, "net"), script(text, "puzzles")]
    parts.append(f"console.log(JSON.stringify((() => {{ {code} }})()));")
    (folder / "page.js").write_text("\n".join(parts), encoding="utf-8")
    done = subprocess.run(
        [NODE, str(folder / "page.js")], capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def run_chromium(text, code, folder):
    """What `code` returns, run by a browser in the open page. The code may `await`."""
    code = f"""<script>
        const result = document.createElement("pre");
        result.id = "result";
        document.body.append(result);
        (async () => {{ {code} }})().then((value) => (result.textContent = JSON.stringify(value)));
    </script>"""
    (folder / "opened.html").write_text(text.replace("</body>", f"{code}</body>"), "utf-8")
    flags = "--headless --no-sandbox --disable-gpu --virtual-time-budget=20000 --dump-dom".split()
    where = [f"--user-data-dir={folder}/profile", f"file://{folder}/opened.html"]
    done = subprocess.run([CHROMIUM, *flags, *where], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_one_small_file_with_the_weights_inside(name, tmp_path):
    text, cfg, net = write(name, tmp_path / "deep/page.html")
    assert len(text.encode()) < 1_000_000
    run = json.loads(script(text, "data"))
    frame = text.replace(run["floats"], "").lower()
    for word in ("://", "src=", "href=", "import ", "import(", "fetch(", "url("):
        assert word not in frame
    floats = np.frombuffer(base64.b64decode(run["floats"]), "<f4")
    assert len(floats) == sum(size for _, size in run["weights"])
    at, names = 0, net.state_dict()
    for key, size in run["weights"]:
        if key in names:
            assert (floats[at : at + size] == names[key].flatten().numpy()).all()
        at += size
    assert {key for key, _ in run["weights"]} == names.keys() | {"y0", "z0"}
    assert {kind: tuple(cell) for kind, cell in run["cells"].items()} == cfg.task.cells
    assert ("one fixed draw" in run["about"]) == (cfg.model.init == "random")


def test_only_convolutions_without_learned_places_are_offered_other_sizes():
    sides = {name: page.sides(make(name)[0].task, make(name)[0]) for name in CASES}
    free = {name for name, (low, high) in sides.items() if low < high}
    assert free == {"conv", "conv-pre", "conv-random"} and sides["conv"] == (5, 31)
    assert sides["pool-maze"] == (5, 5) and sides["digits-6x6"] == (6, 6)


def test_text_in_a_page_cannot_end_its_script(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "about", lambda *_: "</script><b>")
    text, *_ = write("pool", tmp_path / "page.html")
    assert "</script><b>" not in text
    assert json.loads(script(text, "data"))["about"] == "</script><b>"


# ---------------------------------------------------------------- the net


@needs_node
@pytest.mark.parametrize("name", CASES)
def test_node_computes_what_pytorch_computes(name, tmp_path):
    text, cfg, net = write(name, tmp_path / "page.html")
    sizes = [0, 7] if name in ("conv", "conv-pre") else [0]
    for size in sizes:
        question = question_of(cfg, size)
        code = f"""
            const states = new TRM(run).trace({question.tolist()}, {STEPS});
            const logits = states.map((state) => [...state.logits]);
            return {{ logits, halting: states.map((state) => state.halt) }};
        """
        assert_same(run_node(text, code, tmp_path), net, question)


@needs_chromium
@pytest.mark.parametrize("name", IN_BROWSER)
@pytest.mark.slow
def test_a_browser_computes_what_pytorch_computes(name, tmp_path):
    text, cfg, net = write(name, tmp_path / "page.html")
    question = question_of(cfg)
    asked = f"{question.tolist()}, {STEPS}"
    code = f"return {{ logits: trm.logits({asked}), halting: trm.halting({asked}) }};"
    assert_same(run_chromium(text, code, tmp_path), net, question)


# ---------------------------------------------------------------- the puzzles


@needs_node
@pytest.mark.parametrize(
    "case, side",
    [("conv", 5), ("conv", 8), ("conv-random-walls", 9), ("pool", 4), ("pool-6x6", 6)],
)
def test_the_page_knows_the_rules_and_solutions_of_its_puzzles(case, side, tmp_path, monkeypatch):
    walls = {"walls": "random", "wall_min": 0.1, "wall_max": 0.6}
    monkeypatch.setitem(CASES, "conv-random-walls", (MAZE | walls, {"mixer": "conv"}))
    text, cfg, _ = write(case, tmp_path / "page.html")
    kind = "Maze" if cfg.task.name == "maze" else "Sudoku"
    code = f"""
        const task = new {kind}(run.puzzles, run.shape);
        return range(12).map(() => {{
            const question = task.random({side});
            const answer = task.solve(question).answer;
            const at = question.findIndex((token, i) => token !== answer[i]);
            const bad = answer.map((token, i) => (i === at ? question[i] : token));
            const empty = task.empty({side});
            const several = task.solve(empty).why;
            return {{ question, answer, valid: task.valid(question, answer),
                      bad: task.valid(question, bad), several }};
        }});
    """
    found = run_node(text, code, tmp_path)
    for one in found:
        question, answer = np.array(one["question"]), np.array(one["answer"])
        assert (cfg.task.solution(cfg.data, question)[0] == answer).all()
        assert check(cfg.task.name, question[None], answer[None])["valid"][0]
        assert one["valid"] and not one["bad"]
        assert one["several"] == ("" if kind == "Maze" else "there are several solutions")
    assert len({tuple(one["question"]) for one in found}) == 12
    if kind == "Sudoku":
        low, high = puzzles.givens_range(cfg.data)
        givens = [(np.array(one["question"]) > 1).sum() for one in found]
        assert low <= min(givens) and np.mean(givens) <= high + 1


# ---------------------------------------------------------------- in the browser

HELP = """
    const press = (key) => document.body.dispatchEvent(
        new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    const box = () => $("grid").getBoundingClientRect();
    const touch = (type, row, col) => $("grid").dispatchEvent(new PointerEvent(type, {
        bubbles: true,
        clientX: box().left + (box().width * (col + 0.5)) / side,
        clientY: box().top + (box().height * (row + 0.5)) / side,
    }));
    const drag = (...cells) => {
        touch("pointerdown", ...cells[0]);
        cells.forEach((cell) => touch("pointermove", ...cell));
        touch("pointerup", ...cells.at(-1));
    };
    const kinds = () => [...$("grid").querySelectorAll("[data-kind]")].map((c) => c.dataset.kind);
    const said = () => $("title").textContent;
    const wait = (ms) => new Promise((done) => setTimeout(done, ms));
"""


@needs_chromium
@pytest.mark.parametrize("name", ["conv", "pool"])
def test_the_grid_shows_what_the_pictures_show(name, tmp_path):
    text, cfg, net = write(name, tmp_path / "page.html")
    question = question_of(cfg)
    code = f"""
        {HELP} trm.ask({question.tolist()});
        const seen = [{{ kinds: kinds(), said: said() }}];
        for (let k = 0; k < 3; k++) {{
            $("step").click();
            seen.push({{ kinds: kinds(), said: said(), halt: $("halt").textContent,
                         changed: $("changed").textContent }});
        }}
        $("bars").firstChild.click();
        seen.push({{ kinds: kinds() }});
        $("reset").click();
        seen.push({{ kinds: kinds() }});
        return seen;
    """
    seen = run_chromium(text, code, tmp_path)
    t = solve.solve(cfg.task, cfg, net, question, 3)
    for step in range(4):
        assert seen[step]["kinds"] == t.kinds(step).tolist()
    assert seen[4]["kinds"] == seen[1]["kinds"] and seen[5]["kinds"] == seen[0]["kinds"]
    for step in range(1, 4):
        wrong = int(t.wrong(step).sum())
        changed = int((t.answer(step) != t.answer(step - 1)).sum())
        cells = f"{wrong} cell{'s' * (wrong > 1)} wrong" if wrong else "right"
        assert seen[step]["said"].startswith(f"Step {step}: {cells}")
        assert f"{t.halt[step - 1]:.2f}" in seen[step]["halt"]
        assert seen[step]["changed"].startswith(f"{changed or 'No'} cell")


@needs_chromium
def test_a_maze_is_drawn_with_finger_and_keys(tmp_path):
    text, *_ = write("conv", tmp_path / "page.html")
    code = f"""
        {HELP} $("clear").click();
        const seen = {{}};
        seen.clear = [...question];
        drag([1, 0], [1, 1], [1, 2]);
        seen.walls = [...question];
        drag([1, 1]);
        seen.erased = [...question];
        drag([0, 0], [0, 1], [1, 2], [2, 2]);
        seen.moved = [...question];
        ["ArrowDown", " ", "ArrowRight", "g"].forEach(press);
        seen.keys = [...question];
        paste("S #\\n ##\\n# G\\n");
        seen.refused = [said(), side];
        paste("S.#..\\n..#..\\n..#\\n.....\\n....G\\n");
        seen.pasted = [...question];
        seen.slider = $("side").value;
        $("side").value = 9;
        $("side").oninput();
        seen.side = question.length;
        seen.sides = $("sides").textContent;
        press("Enter"); press("Enter"); press("[");
        seen.shown = said();
        press("c");
        seen.cleared = said();
        press("n"); press("Enter"); press("n");
        seen.fresh = said();
        return seen;
    """
    seen = run_chromium(text, code, tmp_path)

    def drawn(key):
        letters = puzzles.decode("maze", np.array(seen[key]))
        return [letters[at : at + 5] for at in range(0, 25, 5)]

    assert drawn("clear") == ["S    ", "     ", "     ", "     ", "    G"]
    assert drawn("walls") == ["S    ", "###  ", "     ", "     ", "    G"]
    assert drawn("erased") == ["S    ", "# #  ", "     ", "     ", "    G"]
    assert drawn("moved") == ["     ", "# #  ", "  S  ", "     ", "    G"]
    assert drawn("keys") == ["     ", "# #  ", "  S  ", "  #G ", "     "]
    assert seen["refused"] == ["What was pasted is no maze of 5 to 31 cells a side", 5]
    assert drawn("pasted") == ["S #  ", "  #  ", "  #  ", "     ", "    G"]
    assert seen["slider"] == "5" and seen["sides"] == "9 x 9"
    assert seen["side"] == 81 and seen["shown"].startswith("Step 1: ")
    assert seen["cleared"] == seen["fresh"] == "The question"


@needs_chromium
def test_a_sudoku_is_typed_with_finger_and_keys(tmp_path):
    text, *_ = write("pool", tmp_path / "page.html")
    code = f"""
        {HELP} $("clear").click();
        const seen = {{}};
        drag([0, 1]);
        ["3", "ArrowDown", "4", "9", "ArrowLeft"].forEach(press);
        $("pad").children[1].click();
        seen.typed = [...question];
        press("Backspace");
        seen.erased = [...question];
        press("Enter");
        seen.several = said();
        ["3", "ArrowUp", "3", "Enter"].forEach(press);
        seen.none = said();
        paste("12..|..12|.1..|4..9");
        seen.refused = said();
        paste("12|..\\n..|12\\n--+--\\n.1|..\\n40|01");
        seen.pasted = [...question];
        return seen;
    """
    seen = run_chromium(text, code, tmp_path)
    found = {
        key: puzzles.decode("sudoku", np.array(seen[key])) for key in ("typed", "erased", "pasted")
    }
    assert found["typed"] == ".3..24.........."
    assert found["erased"] == ".3...4.........."
    assert found["pasted"] == "12....12.1..4..1"
    assert seen["refused"] == "What was pasted is no sudoku of 4 cells a side"
    assert seen["several"].endswith("(there are several solutions)")
    assert seen["none"].endswith("(there is no solution)")


@needs_chromium
def test_it_runs_by_itself_pauses_and_goes_on(tmp_path):
    text, cfg, _ = write("pool", tmp_path / "page.html")
    code = f"""
        {HELP}
        const seen = [];
        const note = () => seen.push([said().split(":")[0], $("run").textContent]);
        note();
        $("run").click();
        note();
        $("run").click();
        await wait(3000);
        note();
        press("r");
        await wait(3000);
        note();
        press("m");
        await wait(5000);
        note();
        press("r");
        await wait(50);
        press("Escape");
        await wait(3000);
        note();
        return seen;
    """
    seen = run_chromium(text, code, tmp_path)
    assert cfg.eval_steps == 3
    assert seen[0] == ["The question", "Run"]
    assert seen[1] == ["Step 1", "Pause"] and seen[2] == ["Step 1", "Run"]
    assert seen[3] == ["Step 3", "Run"] and seen[4] == ["Step 6", "Run"]
    assert seen[5] == ["The question", "Run"]


# ---------------------------------------------------------------- the command


def test_solve_writes_the_page_of_a_run_and_nothing_else(tmp_path, capsys):
    tiny.run(tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    out = tmp_path / "new/page.html"
    assert solve.main([str(tmp_path / "run"), "--page", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == before
    run = json.loads(script(out.read_text(encoding="utf-8"), "data"))
    cfg, net, state = load_run(tmp_path / "run")
    assert f"{sum(p.numel() for p in net.parameters()):,} parameters" in run["about"]
    assert run["steps"] == cfg.eval_steps and run["shape"] == state["shape"]
    assert solve.main([str(tmp_path / "run"), "--page", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path) in err


def refused(tmp_path, data, model):
    """The sentence that refuses a net."""
    cfg = tiny.config(data=data, model=model)
    shape = cfg.task.shape(cfg)
    net = cfg.task.make_net(cfg, shape, torch.float32)
    with pytest.raises(UserError) as error:
        page.write_page(
            tmp_path / "page.html", cfg.task, cfg, net, {"shape": shape, "val": {"exact": 0}}
        )
    assert not list(tmp_path.iterdir())
    return str(error.value)


def test_nets_that_the_page_cannot_run_are_refused(tmp_path):
    assert "model.mixer = 'attention'" in refused(tmp_path, {}, tiny.ATTENTION)
    assert "model.mixer = 'groups'" in refused(tmp_path, {}, {"mixer": "groups"})
    both = {"mixer": "conv+attention", "positions": "rope"}
    assert "model.mixer = 'conv+attention'" in refused(tmp_path, MAZE, both)
    assert "data.task = 'grid'" in refused(
        tmp_path, {"task": "grid", "size": ""}, {"mixer": "conv"}
    )
    large = refused(tmp_path, MAZE, {"mixer": "conv", "dim": 256, "expansion": 4.0})
    assert "model.dim = 256" in large and "less than 1 MB" in large
