"""States: what a model remembers of its conversations."""

from griffinlm.state.identity import Fingerprint as Fingerprint
from griffinlm.state.identity import Identity as Identity
from griffinlm.state.identity import StateError as StateError
from griffinlm.state.identity import StateOwner as StateOwner
from griffinlm.state.layout import ARRAY_TYPES as ARRAY_TYPES
from griffinlm.state.layout import MAX_CAPACITY_TOKENS as MAX_CAPACITY_TOKENS
from griffinlm.state.layout import NOTHING_PENDING as NOTHING_PENDING
from griffinlm.state.layout import ArraySpec as ArraySpec
from griffinlm.state.layout import attention_bytes_per_token as attention_bytes_per_token
from griffinlm.state.layout import block_layout as block_layout
from griffinlm.state.layout import bytes_written_by_a_token as bytes_written_by_a_token
from griffinlm.state.layout import capacity_of as capacity_of
from griffinlm.state.layout import check_layout as check_layout
from griffinlm.state.layout import is_ring as is_ring
from griffinlm.state.layout import row_layout as row_layout
from griffinlm.state.layout import state_bytes as state_bytes
from griffinlm.state.layout import state_layout as state_layout
from griffinlm.state.sealed import flush_entry as flush_entry
from griffinlm.state.sealed import read_whole as read_whole
from griffinlm.state.sealed import require_writable as require_writable
from griffinlm.state.sealed import seal as seal
from griffinlm.state.sealed import unseal as unseal
from griffinlm.state.sealed import write_whole as write_whole
from griffinlm.state.state import STATE_FILE as STATE_FILE
from griffinlm.state.state import State as State
