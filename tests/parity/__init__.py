"""Griffin against the packages that define RecurrentGemma, Griffin, Hawk and Gemma: logits, states, gradients."""
