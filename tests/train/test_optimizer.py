"""Which parameters are decayed, and that AdamW moves them as its formula says."""

import torch

from griffinlm.config import ModelConfig
from griffinlm.model import Griffin
from griffinlm.train.config import OptimizerConfig
from griffinlm.train.optimizer import build_optimizer, is_decayed


def test_rg_lru_norms_and_biases_are_not_decayed_and_all_else_is():
    names = ModelConfig.preset("tiny-griffin").parameter_shapes()
    spared = {name for name in names if not is_decayed(name)}
    assert {name.split(".", 2)[-1] for name in spared if name.startswith("layers.0.")} == {
        "temporal_norm.scale",
        "mlp_norm.scale",
        "recurrent.linear_y.bias",
        "recurrent.linear_x.bias",
        "recurrent.linear_out.bias",
        "recurrent.conv.bias",
        "recurrent.rg_lru.input_gate.weight",
        "recurrent.rg_lru.input_gate.bias",
        "recurrent.rg_lru.recurrence_gate.weight",
        "recurrent.rg_lru.recurrence_gate.bias",
        "recurrent.rg_lru.a_param",
        "mlp.gate.bias",
        "mlp.up.bias",
        "mlp.down.bias",
    }
    assert "final_norm.scale" in spared
    assert "embedding.weight" not in spared


def test_what_is_read_before_a_text_is_not_decayed():
    names = ("prefix.trained.0", "tuned_state.trained.0", "prompt_encoder.default.embedding.weight")
    assert not any(map(is_decayed, names))


def test_without_a_gradient_a_step_only_decays():
    model = Griffin(ModelConfig.preset("tiny-griffin"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(learning_rate=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = torch.full_like(parameter, 1 - 0.5 * 0.1 if is_decayed(name) else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)
