"""Asking a policy, scoring its answers, and the report."""
