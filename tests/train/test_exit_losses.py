"""Losses of early exits, and what is left out in training.

States:
- the loss and its gradients = the plain formula over whole logits, in float64, with and without a teacher and skips;
- without exits that weigh anything the loss is that of full depth;
- left-out layers have their rate as expectation; weights and curricula are those of the papers;
- a run trains exits, resumes to the bit, and says in its model whether that skips; what does not fit is refused.
"""

import dataclasses
import math
import shutil

import pytest
import torch
from small_models import random_model

pytest.importorskip("transformers", reason="needs the extra train")

from griffinlm.checkpoint import open_checkpoint
from griffinlm.config import ModelConfig, RecursionConfig
from griffinlm.model import Griffin
from griffinlm.model.griffin import read
from griffinlm.presets import PRESETS
from griffinlm.train.curricula import dropout_rate, enabled_exits, exit_weights
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.distillation import Distillation
from griffinlm.train.errors import TrainError
from griffinlm.train.exits import ExitObjective, _with_layer_dropout
from griffinlm.train.exits_config import ExitsConfig
from griffinlm.train.objective import Objective
from griffinlm.train.pretrain import pretrain

GRIFFIN = dataclasses.replace(PRESETS["tiny-griffin"], num_layers=6, logit_soft_cap=5.0)
LOOPED = dataclasses.replace(GRIFFIN, num_layers=10, recursion=RecursionConfig(3, rank=2))


def model_of(config: ModelConfig, seed: int) -> Griffin:
    return random_model(config, seed).double()


def batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows; the second is two documents. Some tokens have no label."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (2, 12), generator=generator)
    labels = tokens.roll(-1, 1)
    labels[:, 4] = IGNORED
    return tokens, torch.stack([torch.arange(12), torch.cat([torch.arange(5), torch.arange(7)])]), labels


def log_probabilities_behind(model: Griffin, exits: list[int]) -> list[torch.Tensor]:
    """[B T, V] behind so many layers each."""
    tokens, positions, _ = batch(model.config)
    found, behind = {}, []

    def call(block, x, layout, state):
        x, after = block(x, layout, state)
        found[id(block)] = x
        return x, after

    x = model.embedding(tokens) * model.config.embedding_scale
    read(model.config, model.layers, x, None, positions, call)
    for num_layers in exits:
        logits = torch.nn.functional.linear(
            model.final_norm(found[id(model.layers[num_layers - 1])]), model.embedding.weight
        )
        if model.config.logit_soft_cap:
            logits = torch.tanh(logits / model.config.logit_soft_cap) * model.config.logit_soft_cap
        behind.append(torch.log_softmax(logits, dim=-1).flatten(0, 1))
    return behind


def plain_loss(
    model: Griffin, exits: list[int], loss: str, weights: list[float], teacher: Griffin | None, share: float
):
    labels = batch(model.config)[2].flatten()
    counted = labels != IGNORED
    behind = [one[counted] for one in log_probabilities_behind(model, exits)]
    final = behind[-1].detach()
    expected = None if teacher is None else log_probabilities_behind(teacher, exits)[-1][counted].detach()
    total = torch.zeros((), dtype=torch.float64)
    for log_q, weight in zip(behind, weights, strict=True):
        if loss == "aggressive" and log_q is not behind[-1]:
            total = total + weight * (final.exp() * (final - log_q)).sum()
            continue
        told = -log_q.gather(1, labels[counted, None]).sum()
        if expected is not None:
            told = share * (expected.exp() * (expected - log_q)).sum() + (1 - share) * told
        total = total + weight * told
    return total


def assert_same_loss_and_gradients(objective: Objective, expected: torch.Tensor, model: Griffin) -> None:
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    tokens, positions, labels = batch(model.config)
    loss = objective(tokens, positions, labels)["loss"]
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    for one, other in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


WEIGHTS = {"weighted": [1 / 6, 2 / 6, 3 / 6], "aggressive": [0.1, 0.1, 1.0]}


@pytest.mark.parametrize("share", [None, 0.6])
@pytest.mark.parametrize("loss", WEIGHTS)
def test_the_loss_behind_every_loop_equals_the_plain_formula(loss, share):
    model, teacher = model_of(LOOPED, 0), None if share is None else model_of(GRIFFIN, 1)
    inner = Objective(model, 5) if teacher is None else Distillation(model, teacher, 5, share)
    expected = plain_loss(model, [3, 6, 10], loss, WEIGHTS[loss], None, 0.0)
    if teacher is not None:
        expected = _with_teacher(model, teacher, loss, share)
    assert_same_loss_and_gradients(ExitObjective(inner, ExitsConfig(loss), 10), expected, model)


def _with_teacher(model: Griffin, teacher: Griffin, loss: str, share: float) -> torch.Tensor:
    labels = batch(model.config)[2].flatten()
    counted = labels != IGNORED
    (expected,) = log_probabilities_behind(teacher, [6])
    behind = log_probabilities_behind(model, [3, 6, 10])
    total = torch.zeros((), dtype=torch.float64)
    for log_q, weight in zip(behind, WEIGHTS[loss], strict=True):
        target = behind[-1] if loss == "aggressive" and log_q is not behind[-1] else expected
        target, own = target[counted].detach(), log_q[counted]
        learned, told = (target.exp() * (target - own)).sum(), -own.gather(1, labels[counted, None]).sum()
        is_aggressive = loss == "aggressive" and log_q is not behind[-1]
        total = total + weight * (learned if is_aggressive else share * learned + (1 - share) * told)
    return total


def test_the_loss_behind_some_layers_equals_the_plain_formula_of_layerskip():
    model, scale = model_of(GRIFFIN, 0), 0.5
    exits = ExitsConfig("layer_skip", scale, layers=(1, 3, 4))
    raw = [scale * 0, scale * (0 + 1 + 2), scale * (0 + 1 + 2 + 3), 5 + scale * (0 + 1 + 2 + 3 + 4)]
    weights = [one / sum(raw) for one in raw]
    expected = plain_loss(model, [1, 3, 4, 6], "layer_skip", weights, None, 0.0)
    assert_same_loss_and_gradients(ExitObjective(Objective(model, 7), exits, 10), expected, model)


def test_exits_that_weigh_nothing_leave_the_loss_of_full_depth_and_so_does_evaluation():
    model = model_of(LOOPED, 0)
    plain = Objective(model, 7)
    exits = ExitObjective(plain, ExitsConfig("aggressive", 0.0), 10)
    assert torch.equal(exits(*batch(LOOPED))["loss"], plain(*batch(LOOPED))["loss"])
    weighted = ExitObjective(plain, ExitsConfig("weighted"), 10).eval()
    assert torch.equal(weighted(*batch(LOOPED))["loss"], plain(*batch(LOOPED))["loss"])


@pytest.mark.parametrize("loss", WEIGHTS)
def test_rows_that_no_token_leaves_have_the_loss_without_skips(loss):
    model = model_of(LOOPED, 0)
    plain = ExitObjective(Objective(model, 7), ExitsConfig(loss), 10)(*batch(LOOPED))["loss"]
    skipping = ExitObjective(Objective(model, 7), ExitsConfig(loss, skips=True, full_share=1.0), 10)
    torch.testing.assert_close(skipping(*batch(LOOPED))["loss"], plain, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("loss", ["weighted", "aggressive"])
def test_a_token_that_has_left_costs_what_its_last_exit_says(loss):
    """Thresholds of nothing: every token leaves behind the first loop, and deeper loops get no gradient."""
    model = model_of(LOOPED, 0)
    exits = ExitsConfig(loss, skips=True, full_share=0.0, least_threshold=0.0)
    objective = ExitObjective(Objective(model, 7), exits, 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective._draw = lambda tokens: lambda x, loop: torch.ones(x.shape[:2], dtype=torch.bool)
        loss_found = objective(*batch(LOOPED))["loss"]
    expected = plain_loss(model, [3], "weighted", [1.0], None, 0.0)
    torch.testing.assert_close(loss_found, expected, rtol=1e-6, atol=1e-6)
    loss_found.backward()
    named = dict(model.named_parameters())
    assert all(p.grad is None or not p.grad.any() for n, p in named.items() if n.startswith(("layers.4.", "layers.9.")))
    assert named["layers.0.mlp.up.weight"].grad.abs().max() > 0


def test_the_mean_over_many_draws_of_a_left_out_block_is_its_expectation():
    """x + (1 - p) (block(x) - x); rows are drawn one by one."""
    model = model_of(dataclasses.replace(GRIFFIN, num_layers=1, block_pattern=("recurrent",), attention=None), 0)
    rows, rate = 4000, 0.3
    x = torch.randn(1, 3, GRIFFIN.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    call = _with_layer_dropout(model.layers, [rate], torch.nn.Module.__call__)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        out = read(model.config, model.layers, x.expand(rows, -1, -1), None, None, call).x
        full = read(model.config, model.layers, x, None, None).x
    is_left_out = (out == x).flatten(1).all(dim=1)
    torch.testing.assert_close(out[~is_left_out], full.expand(int((~is_left_out).sum()), -1, -1))
    assert abs(is_left_out.double().mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / rows)


def test_layer_dropout_grows_exponentially_by_depth_and_over_time():
    exits = ExitsConfig("layer_skip", layers=(1,), layer_dropout=0.4)
    rates = [dropout_rate(exits, layer, 5, 3, 11) for layer in range(5)]
    assert rates == pytest.approx([0.4 * (2 ** (layer / 4) - 1) for layer in range(5)])
    growing = dataclasses.replace(exits, dropout_curriculum="exponential")
    over_time = [dropout_rate(growing, 4, 5, step, 11) for step in range(11)]
    assert over_time == pytest.approx([0.4 * (2 ** (step / 10) - 1) for step in range(11)])


def test_the_curricula_enable_every_nth_exit_in_turn_or_one_more_from_the_deepest_on():
    layers = [1, 2, 3, 4, 5]
    rotational = ExitsConfig("layer_skip", layers=(1, 2, 3, 4), curriculum="rotational", rotation=2)
    assert [enabled_exits(rotational, layers, step, 8) for step in range(3)] == [
        [True, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
    ]
    gradual = dataclasses.replace(rotational, curriculum="gradual", rotation=None)
    assert [sum(enabled_exits(gradual, layers, step, 16)) for step in range(0, 16, 2)] == [0, 1, 2, 3, 4, 4, 4, 4]
    assert enabled_exits(gradual, layers, 2, 16) == [False, False, False, True]
    weights = exit_weights(rotational, layers, [False, True, False, True])
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] == weights[2] == 0.0


EXITS = 'exits={loss = "weighted", skips = true, full_share = 0.5, least_threshold = 0.0}'
RECURSION = ("model.num_layers=7", "model.recursion={num_loops = 2, rank = 2}")


def test_a_run_trains_skips_says_so_in_its_model_and_resumes_to_the_bit(run):
    whole = run("output=whole", EXITS, *RECURSION)
    outcome = pretrain(whole)
    model = open_checkpoint(outcome.model)
    assert model.config.recursion == RecursionConfig(2, rank=2, skips=True)
    resumed = run("output=resumed", EXITS, *RECURSION)
    shutil.copytree(whole.output / "checkpoints/step-4", resumed.output / "checkpoints/step-4")
    again = open_checkpoint(pretrain(resumed).model)
    assert all((again.tensor(name) == values).all() for name, values in model.tensors())


def test_a_run_does_not_go_on_without_its_exits(run):
    pretrain(run("exits={loss = 'weighted', layers = [1]}"))
    shutil.rmtree(run().output / "model")
    with pytest.raises(TrainError, match="a run with another exits"):
        pretrain(run())


def test_a_run_with_layer_dropout_and_exits_behind_layers_learns(run):
    table = "loss = 'layer_skip', layers = [1, 2, 3], curriculum = 'gradual', layer_dropout = 0.2"
    config = run(f"exits={{{table}, dropout_curriculum = 'exponential'}}")
    outcome = pretrain(config)
    assert outcome.figures["loss"] < 0.95 * math.log(288)
    assert open_checkpoint(outcome.model).config.recursion is None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("{loss = 'hard'}", "exits.loss is 'hard'; allowed are weighted, aggressive, layer_skip"),
        ("{loss = 'weighted', rate = 1}", "exits.rate is unknown"),
        ("{loss = 'weighted', coefficient = 1, layers = [1]}", "aggressive and layer_skip have one"),
        ("{loss = 'weighted'}", "exits.layers is empty"),
        ("{loss = 'weighted', layers = [5]}", r"exits.layers is \[5\]; it must ascend and lie in 1..4"),
        ("{loss = 'weighted', layers = [2, 1]}", r"exits.layers is \[2, 1\]; it must ascend"),
        ("{loss = 'weighted', layers = [1], skips = true}", "the model has no loops"),
        ("{loss = 'weighted', layers = [1], rotation = 2}", "exits.rotation must be given exactly where"),
        ("{loss = 'weighted', layers = [1], full_share = 0.9}", "full_share is 0.9; it is read only where exits.skips"),
        ("{loss = 'weighted', layers = [1], least_threshold = 0.7}", r"exits\.least_threshold is 0.7; it is read only"),
        (
            "{loss = 'weighted', layers = [1], dropout_curriculum = 'exponential'}",
            r"dropout_curriculum is 'exponential'; it is read only where exits\.layer_dropout",
        ),
        ("{loss = 'weighted', layers = [1], layer_dropout = 1}", "exits.layer_dropout is 1; it must be 0 to 0.9"),
    ],
)
def test_what_does_not_fit_is_refused(run, table, words):
    with pytest.raises(TrainError, match=words):
        pretrain(run(f"exits={table}"))


def test_layers_are_refused_where_loops_have_the_exits(run):
    with pytest.raises(TrainError, match=r"exits\.layers is given for a model of 2 loops"):
        pretrain(run("exits={loss = 'weighted', layers = [1]}", *RECURSION))
