from griffinlm.model.griffin import Griffin as Griffin
from griffinlm.model.griffin import GriffinState as GriffinState
