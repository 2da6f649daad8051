"""Settings that all on-policy agents share."""

from agents.settings import OnPolicyConfig as OnPolicyConfig
