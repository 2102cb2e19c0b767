"""Checkpoints: one table of names a format, read and written; initial values; fetching from the hub."""

from griffinlm.checkpoint.checkpoint import Checkpoint as Checkpoint
from griffinlm.checkpoint.checkpoint import open_checkpoint as open_checkpoint
from griffinlm.checkpoint.config_file import read_config_file as read_config_file
from griffinlm.checkpoint.errors import CheckpointError as CheckpointError
from griffinlm.checkpoint.initial import initial_tensors as initial_tensors
from griffinlm.checkpoint.pull import pull as pull
from griffinlm.checkpoint.quantization_record import Quantization as Quantization
from griffinlm.checkpoint.quantized import SCALES as SCALES
from griffinlm.checkpoint.quantized_cache import quantized_copy as quantized_copy
from griffinlm.checkpoint.tensor_source import StoredTensor as StoredTensor
from griffinlm.checkpoint.write import write_checkpoint as write_checkpoint
from griffinlm.checkpoint.write_quantized import LayerReport as LayerReport
from griffinlm.checkpoint.write_quantized import check_quantizable as check_quantizable
from griffinlm.checkpoint.write_quantized import write_quantized as write_quantized
from griffinlm.checkpoint.write_quantized import write_random_quantized as write_random_quantized
