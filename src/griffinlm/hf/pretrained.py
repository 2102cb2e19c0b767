"""What the models of this package have in common for transformers: loading, saving, names of weights."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from griffinlm.checkpoint.errors import CheckpointError, faults_error
from griffinlm.checkpoint.tokenizer_files import has_tokenizer
from griffinlm.hf.config import GriffinConfig, file_fields
from griffinlm.hf.weights import PREFIX, from_file, to_file
from griffinlm.model.blocks import ResidualBlock
from griffinlm.text import Tokenizer

SCORE = "score.weight"
"""The head of a classifier."""


class GriffinPreTrainedModel(PreTrainedModel):
    """The base of `GriffinModel` and of the models with a head."""

    config: GriffinConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_context_parallel = False
    _no_split_modules = [ResidualBlock.__name__]  # noqa: RUF012  (the type that transformers declares)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__(config)
        self.register_load_state_dict_pre_hook(_accept_names_of_files)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """An embedding that is made to grow into draws its rows as a new model does."""
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.width**-0.5)

    def _set_gradient_checkpointing(self, *args: Any, every_n_layers: int = 1, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, every_n_layers=every_n_layers, **kwargs)
        # transformers counts layers of a class of its own, which the blocks are not.
        base: Any = self.base_model
        base.every_n_layers = every_n_layers

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but weights that are missing, left over or of another shape are an error.

        Reads directories of ours and published ones of RecurrentGemma and Gemma. The ids of control tokens come from
        the directory's tokenizer where config.json has none, and `generate` then stops where the engines do.

        Raises:
            ConfigError, CheckpointError: the directory describes no supported model, or the weights are not its own.
        """
        wants_info, may_differ = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
        # Checked below, with everything else that is wrong.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        # A classifier may begin with a language model's weights, and another model with a classifier's.
        missing, unexpected = (sorted(info[kind] - {SCORE}) for kind in ("missing_keys", "unexpected_keys"))
        faults = [*(f"{name} is missing" for name in missing), *(f"{name} is unexpected" for name in unexpected)]
        if not may_differ:
            faults += [f"{n} is {list(a)}, expected {list(b)}" for n, a, b in sorted(info["mismatched_keys"])]
        faults += info["error_msgs"]
        if faults:
            raise faults_error(pretrained_model_name_or_path or "state_dict", faults)
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            raise CheckpointError(f"{pretrained_model_name_or_path}: lm_head.weight differs from the embedding")
        if pretrained_model_name_or_path is not None:
            model._take_control_tokens(Path(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    def _take_control_tokens(self, directory: Path) -> None:
        if self.config.eos_token_id is not None or not has_tokenizer(directory):
            return
        tokenizer = Tokenizer.from_directory(directory)
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        _fill(self.config, ids)
        if self.can_generate():
            # The end of a turn ends an answer too.
            _fill(self.generation_config, {**ids, "eos": sorted(tokenizer.end_ids) or None})

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers; names and layouts are those of the form in which config.json describes the model.

        With `save_original_format=False` they are those of the modules, which `from_pretrained` alone reads.

        Raises:
            CheckpointError: weights are missing or lie outside of memory.
        """
        has_own_names = not kwargs.pop("save_original_format", True)
        if has_own_names or getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, *args, state_dict=state_dict, save_original_format=False, **kwargs)
            return
        weights = self.state_dict() if state_dict is None else state_dict
        if any(values.is_meta for values in weights.values()):
            raise CheckpointError(f"{save_directory}: weights are offloaded", hint="load the model without device_map")
        config = self.config.model_config
        named = to_file(file_fields(config)["model_type"], config, weights)
        super().save_pretrained(save_directory, *args, state_dict=named, save_original_format=False, **kwargs)


def _fill(config: Any, ids: Mapping[str, int | list[int] | None]) -> None:
    """Sets the ids of control tokens that a configuration does not have."""
    for name, token_id in ids.items():
        if getattr(config, f"{name}_token_id") is None:
            setattr(config, f"{name}_token_id", token_id)


def _accept_names_of_files(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """`load_state_dict` takes what `save_pretrained` wrote, as trainers that resume expect."""
    assert isinstance(module, GriffinPreTrainedModel)
    if prefix == "":
        has_head = module.get_output_embeddings() is not None
        from_file(module.config.model_config, weights, PREFIX if hasattr(module, "model") else "", has_head)
