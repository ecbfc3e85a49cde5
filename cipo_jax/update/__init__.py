"""What an update needs: the policy, the optimizer, the compiled step, checkpoints."""
