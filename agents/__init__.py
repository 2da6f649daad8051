"""Agents that learn to write outlines: the policy, behaviour cloning, GSPO."""
