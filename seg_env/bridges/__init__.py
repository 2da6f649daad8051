"""The environments in the form that other frameworks take; each needs an extra of its own.

- `seg_env.bridges.openenv`: a server and a client of OpenEnv, ``simpleseg-rl[openenv]``
- `seg_env.bridges.verifiers`: a taskset of verifiers, ``simpleseg-rl[verifiers]``
"""
