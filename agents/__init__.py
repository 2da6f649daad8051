"""Agents that learn to write outlines: the policy, behaviour cloning, GSPO."""

import os

# Threads of GNU's OpenMP wait for each other by spinning, each time for milliseconds. As soon as
# another process wants one of their cores they wait at every operation, and an update takes thirty
# times as long. This number of turns is enough where cores are idle; it is read when torch is first
# imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
