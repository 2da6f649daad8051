"""The environments; `gymnasium.make` finds them by the ids of `seg_env.registration`."""
