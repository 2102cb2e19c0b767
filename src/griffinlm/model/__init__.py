from griffinlm.model.griffin import Griffin as Griffin
from griffinlm.model.griffin import GriffinState as GriffinState
from griffinlm.model.state import new_state as new_state
